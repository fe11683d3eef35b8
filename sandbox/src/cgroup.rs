//! cgroup v2 directories: found, made, emptied, removed.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long killed processes may take to leave.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// Why there is no cgroup v2 to be had.
#[derive(Debug, thiserror::Error)]
pub enum FindCgroupError {
    /// The list of mounts is not readable.
    #[error("reading /proc/self/mountinfo")]
    ReadMounts(#[source] io::Error),
    /// None is mounted.
    #[error(
        "no cgroup v2 file system is mounted: mount one with \
         `mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2`"
    )]
    NotMounted,
}

/// The directory where cgroup v2 is mounted.
///
/// # Errors
/// When none is, with the command that mounts it.
pub fn find_mount() -> Result<PathBuf, FindCgroupError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(FindCgroupError::ReadMounts)?;
    parse_mount(&mounts).ok_or(FindCgroupError::NotMounted)
}

/// The first writable cgroup2 mount, if there is any, from `proc_pid_mountinfo(5)`.
fn parse_mount(mountinfo: &str) -> Option<PathBuf> {
    let mut first = None;
    for line in mountinfo.lines() {
        let Some((fields, types)) = line.split_once(" - ") else { continue };
        if types.split(' ').next() != Some("cgroup2") {
            continue;
        }
        let mut fields = fields.split(' ').skip(4);
        let (Some(path), Some(options)) = (fields.next(), fields.next()) else { continue };
        let path = PathBuf::from(path.replace("\\040", " "));
        if options.split(',').any(|option| option == "rw") {
            return Some(path);
        }
        first.get_or_insert(path);
    }
    first
}

/// Makes an empty cgroup, in place of one that outlived the record of its sandbox.
pub(crate) fn create_anew(path: &Path) -> io::Result<()> {
    kill(path)?;
    remove(path)?;
    fs::create_dir(path)
}

/// Lets the cgroups in this one have the controllers that it has. On version 2 no process may be in it then.
pub(crate) fn delegate(path: &Path) -> io::Result<()> {
    let controllers = fs::read_to_string(path.join("cgroup.controllers"))?;
    for controller in controllers.split_whitespace() {
        fs::write(path.join("cgroup.subtree_control"), format!("+{controller}"))?;
    }
    Ok(())
}

/// Kills every process in a cgroup and in those below it, and waits until they are gone.
pub fn kill(path: &Path) -> io::Result<()> {
    match fs::write(path.join("cgroup.kill"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    let deadline = Instant::now() + EMPTY_WITHIN;
    while is_populated(path, deadline)? {
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

/// Removes a cgroup and those below it; they must be empty.
pub fn remove(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// Whether anybody is in there; if so, returns once that may have changed.
fn is_populated(path: &Path, deadline: Instant) -> io::Result<bool> {
    let events = fs::File::open(path.join("cgroup.events"))?;
    let populated = io::read_to_string(&events)?.contains("populated 1");
    if populated {
        // The kernel wakes pollers of cgroup.events when its content changes.
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], left)?;
    }
    Ok(populated)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n";
    const UNIFIED: &str = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    const READ_ONLY: &str = "40 31 0:38 / /sys/fs/cgroup ro,nosuid shared:9 - cgroup2 cgroup rw\n";

    #[test]
    fn a_writable_mount_is_preferred() {
        let found = |lines: &[&str]| parse_mount(&lines.concat());
        assert_eq!(found(&[V1]), None);
        assert_eq!(found(&[V1, UNIFIED]), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(found(&[READ_ONLY, UNIFIED]), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(found(&[V1, READ_ONLY]), Some("/sys/fs/cgroup".into()));
    }
}
