//! A network namespace, held by a descriptor: when the last one goes, so does the namespace.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, RawFd},
    panic,
    path::Path,
    sync::Arc,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace. Clones are the same namespace.
#[derive(Debug, Clone)]
pub struct Netns {
    file: Arc<File>,
}

impl Netns {
    /// A new, empty one: a loopback device that is down.
    pub(crate) fn create() -> io::Result<Self> {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(Self { file: Arc::new(File::open("/proc/thread-self/ns/net")?) })
        })
    }

    /// The one that a file under `/proc` stands for.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: Arc::new(File::open(path)?) })
    }

    /// Runs `f` on a thread of its own inside this namespace: sockets that `f` opens belong to it.
    ///
    /// The thread stays in the caller's cgroup (a thread cannot leave its process there), so a
    /// proxy attached to the pod's cgroup does not see these sockets. Start a process for that.
    ///
    /// # Errors
    /// When no thread can be made, or the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_a_thread(|| {
            setns(&*self.file, CloneFlags::CLONE_NEWNET)?;
            Ok(f())
        })
    }

    /// Writes settings under `/proc/sys/net`, which shows each thread its own namespace's.
    pub fn set_sysctls(&self, settings: &[(&str, &str)]) -> io::Result<()> {
        self.run(|| {
            for (name, value) in settings {
                fs::write(format!("/proc/sys/net/{name}"), value)?;
            }
            Ok(())
        })?
    }

    /// The packets that entered and left through `link`.
    pub(crate) fn packets(&self, link: &str) -> io::Result<Option<Packets>> {
        let devices = self.run(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
        Ok(parse_packets(&devices, link))
    }

    /// The descriptor's number in this process; `/proc/PID/fd/N` names the namespace with it.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Packets that a link counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packets {
    /// Those that came in.
    pub received: u64,
    /// Those that went out.
    pub sent: u64,
}

/// From the table in `/proc/net/dev`: name, eight receive columns, eight transmit columns.
fn parse_packets(devices: &str, link: &str) -> Option<Packets> {
    let counters = devices.lines().find_map(|line| {
        let (name, counters) = line.split_once(':')?;
        (name.trim() == link).then_some(counters)
    })?;
    let mut counters = counters.split_whitespace().map(str::parse);
    let received = counters.nth(1)?.ok()?;
    let sent = counters.nth(7)?.ok()?;
    Some(Packets { received, sent })
}

/// A thread's namespace cannot leak into the caller's: the thread ends with `f`.
fn on_a_thread<T: Send>(f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, f)?;
        thread.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_the_second_and_tenth_column() {
        let devices = "Inter-|   Receive  |  Transmit\n face |bytes packets\n    \
                       lo:  10 1 0 0 0 0 0 0  20 2 0 0 0 0 0 0\n  \
                       eth0: 900 9 0 0 0 0 0 0 700 7 0 0 0 0 0 0\n";
        assert_eq!(parse_packets(devices, "eth0"), Some(Packets { received: 9, sent: 7 }));
        assert_eq!(parse_packets(devices, "eth1"), None);
    }
}
