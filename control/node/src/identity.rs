//! A process that may outlive whoever started it: known by its id and its birth, watched by a
//! descriptor.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Ids are used again; together with the time of birth they are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) pid: i32,
    /// In clock ticks since the machine's start.
    born: u64,
}

impl Identity {
    /// The process that has this id now.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, born) = parse_stat(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pid, born })
    }

    pub(crate) fn own() -> io::Result<Self> {
        Self::of(std::process::id().cast_signed())
    }

    pub(crate) fn is_alive(self) -> bool {
        self.open().is_ok_and(|fd| fd.is_some())
    }

    /// Sends a signal; says whether the process was still there.
    pub(crate) fn signal(self, signal: Signal) -> io::Result<bool> {
        let Some(fd) = self.open()? else { return Ok(false) };
        match pidfd_send_signal(fd, signal) {
            Err(Errno::SRCH) => Ok(false),
            sent => Ok(sent.map(|()| true)?),
        }
    }

    /// Returns when the process has ended.
    pub(crate) async fn ended(self) -> io::Result<()> {
        if let Some(fd) = self.open()? {
            // A descriptor of a process becomes readable when it ends.
            #[expect(
                deprecated,
                reason = "its successor is unsafe; an OwnedFd is what it asks for"
            )]
            let fd = AsyncFd::with_interest(fd, Interest::READABLE)?;
            fd.readable().await?.clear_ready();
        }
        Ok(())
    }

    /// A descriptor of the process, if it lives.
    fn open(self) -> io::Result<Option<OwnedFd>> {
        let pid = Pid::from_raw(self.pid).ok_or(io::ErrorKind::InvalidInput)?;
        let fd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Err(Errno::SRCH) => return Ok(None),
            fd => fd?,
        };
        // Looked at after opening: what the descriptor means cannot change any more.
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else {
            return Ok(None);
        };
        let lives = parse_stat(&stat)
            .is_some_and(|(form, born)| born == self.born && !matches!(form, 'Z' | 'X'));
        Ok(lives.then_some(fd))
    }
}

/// The state and the time of birth, from `proc_pid_stat(5)`. The second field is the program's
/// name, and may hold anything.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let form = fields.next()?.chars().next()?;
    Some((form, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_birth_is_found_behind_any_name() {
        let numbers: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
        let stat = format!("7 (a) b (c) S {}", numbers.join(" "));
        assert_eq!(parse_stat(&stat), Some(('S', 22)));
        assert_eq!(parse_stat("7 (sh"), None);
    }

    #[test]
    fn another_process_of_the_same_id_is_not_this_one() {
        let own = Identity::own().unwrap();
        assert!(own.is_alive());
        assert!(!Identity { born: own.born + 1, ..own }.is_alive());
    }
}
