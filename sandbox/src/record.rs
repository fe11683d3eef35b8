//! What a sandbox has outside of its own process, written down before it exists, so that the next
//! sandbox can sweep it when this one is killed.
//!
//! ```text
//! /run/fairlead/sandbox/          locked while a sandbox is claimed or released
//!   demo/                         locked by the owner as long as it lives
//!     pid                         the owner, for messages and for `stop`
//!     cgroup → /sys/fs/cgroup/fairlead-sandbox-demo
//!     cgroups/0 → /sys/fs/cgroup/pids/fairlead-node-a
//!     places/web-1/netns → /proc/PID/fd/N
//!     places/node-a/cgroup → /sys/fs/cgroup/fairlead-sandbox-demo/node-a/init
//!     places/web-1/cgroup → /sys/fs/cgroup/fairlead-sandbox-demo/node-a/web-1
//!     bpf/                        a bpffs, once asked for
//! ```

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    process,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
};

use crate::{cgroup, error::BuildError, netns::Netns};

const BASE: &str = "/run/fairlead/sandbox";

/// The claim on a sandbox's name. Dropping it takes down what it lists.
#[derive(Debug)]
pub(crate) struct Record {
    dir: PathBuf,
    cgroup: PathBuf,
    _lock: File,
}

impl Record {
    /// Sweeps what dead owners left, then claims `name`.
    pub(crate) fn claim(name: &str) -> Result<Self, BuildError> {
        let mount = cgroup::find_mount()?;
        let base = lock_base().map_err(at("locking", Path::new(BASE)))?;
        sweep_dead(&base);
        let dir = dir_of(name);
        let cgroup = mount.join(format!("fairlead-sandbox-{name}"));
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(refusal(name, &dir));
            }
            made => made.map_err(at("making", &dir))?,
        }
        let lock = File::open(&dir).map_err(at("opening", &dir))?;
        lock.lock().map_err(at("locking", &dir))?;
        let record = Self { dir, cgroup, _lock: lock };
        // The sandbox is ours now; taking it down, should the rest fail, locks the base again.
        drop(base);
        record.write()?;
        Ok(record)
    }

    /// The sandbox's own directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cgroup above all its nodes.
    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Notes a cgroup that is to go as well; there may be none.
    pub(crate) fn add_cgroup(&self, cgroup: &Path) -> Result<(), BuildError> {
        let notes = self.dir.join("cgroups");
        let n_notes = fs::read_dir(&notes).map_err(at("reading", &notes))?.count();
        let note = notes.join(n_notes.to_string());
        symlink(cgroup, &note).map_err(at("making", &note))
    }

    /// Each step follows the note that undoes it.
    fn write(&self) -> Result<(), BuildError> {
        let pid = self.dir.join("pid");
        fs::write(&pid, process::id().to_string()).map_err(at("writing", &pid))?;
        let note = self.dir.join("cgroup");
        symlink(&self.cgroup, &note).map_err(at("making", &note))?;
        for notes in ["places", "cgroups"].map(|name| self.dir.join(name)) {
            fs::create_dir(&notes).map_err(at("making", &notes))?;
        }
        cgroup::create_anew(&self.cgroup)
            .and_then(|()| fs::create_dir(outside(&self.cgroup)))
            .and_then(|()| cgroup::delegate(&self.cgroup))
            .map_err(at("making cgroup", &self.cgroup))
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let released = lock_base().and_then(|_base| {
            take_down(&self.dir)?;
            remove_empty_base();
            Ok(())
        });
        if let Err(error) = released {
            // The next sandbox tries again.
            tracing::warn!(dir = %self.dir.display(), %error, "a sandbox could not be taken down");
        }
    }
}

/// In a sandbox's cgroup, for processes that are in none of its nodes'.
pub(crate) fn outside(cgroup: &Path) -> PathBuf {
    cgroup.join("outside")
}

/// Sweeps what dead owners left.
pub(crate) fn sweep() -> Result<(), BuildError> {
    let base = lock_base().map_err(at("locking", Path::new(BASE)))?;
    sweep_dead(&base);
    remove_empty_base();
    Ok(())
}

/// The directory of the sandbox `name`.
pub(crate) fn dir_of(name: &str) -> PathBuf {
    Path::new(BASE).join(name)
}

/// The process that runs the sandbox `name`, if one does.
pub(crate) fn owner(name: &str) -> Option<i32> {
    let dir = dir_of(name);
    let lock = File::open(&dir).ok()?;
    let is_held = matches!(lock.try_lock(), Err(TryLockError::WouldBlock));
    is_held.then(|| fs::read_to_string(dir.join("pid")).ok()?.trim().parse().ok())?
}

/// Locks the base directory. Whoever removes it holds the lock, so look again once we have it.
fn lock_base() -> io::Result<File> {
    loop {
        fs::create_dir_all(BASE)?;
        let base = match File::open(BASE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        base.lock()?;
        let is_current = fs::metadata(BASE).is_ok_and(|now| {
            base.metadata().is_ok_and(|ours| (ours.dev(), ours.ino()) == (now.dev(), now.ino()))
        });
        if is_current {
            return Ok(base);
        }
    }
}

/// `_base` shows that the base directory is locked.
fn sweep_dead(_base: &File) {
    let Ok(entries) = fs::read_dir(BASE) else { return };
    for dir in entries.flatten().map(|entry| entry.path()) {
        let Ok(lock) = File::open(&dir) else { continue };
        if lock.try_lock().is_err() {
            continue;
        }
        match take_down(&dir) {
            Ok(()) => tracing::debug!(dir = %dir.display(), "swept what a killed sandbox left"),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "sweeping a killed sandbox failed");
            }
        }
    }
}

/// Undoes what `dir` notes, and removes it last.
fn take_down(dir: &Path) -> io::Result<()> {
    if let Ok(cgroup) = fs::read_link(dir.join("cgroup")) {
        cgroup::kill(&cgroup)?;
        unmount(&dir.join("bpf"))?;
        cgroup::remove(&cgroup)?;
        // Who was in these was in that one, too, and is dead.
        for note in fs::read_dir(dir.join("cgroups")).into_iter().flatten().flatten() {
            cgroup::remove(&fs::read_link(note.path())?)?;
        }
    }
    remove_statuses(&dir.join("bpf"));
    fs::remove_dir_all(dir)
}

/// A proxy writes its status to `/run/fairlead`, in a file named after its directory on the bpffs.
fn remove_statuses(bpffs: &Path) {
    let prefix = bpffs.to_string_lossy().trim_matches('/').replace('/', "-") + "-";
    let files = fs::read_dir("/run/fairlead").into_iter().flatten().flatten();
    for file in files.filter(|file| file.file_name().to_string_lossy().starts_with(&prefix)) {
        if let Err(error) = fs::remove_file(file.path()) {
            tracing::debug!(file = %file.path().display(), %error, "removing a status failed");
        }
    }
}

/// Detached at once, even if a shell still stands in it.
fn unmount(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // EINVAL: it is no mount, as when the owner died before it was.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Leaves nothing, not even empty directories; in use, they stay.
fn remove_empty_base() {
    for dir in [Path::new(BASE), Path::new("/run/fairlead")] {
        if fs::remove_dir(dir).is_err() {
            return;
        }
    }
}

fn refusal(name: &str, dir: &Path) -> BuildError {
    match owner(name) {
        Some(pid) => BuildError::Running { name: name.to_owned(), pid: pid.to_string() },
        None => BuildError::File {
            doing: "sweeping what a killed owner left in",
            path: dir.to_owned(),
            source: io::ErrorKind::ResourceBusy.into(),
        },
    }
}

/// Claims the name of a node or pod in a sandbox, and notes how to enter it.
pub(crate) fn add_place(
    sandbox_dir: &Path,
    name: &str,
    netns: &Netns,
    cgroup: &Path,
) -> Result<(), BuildError> {
    let place = place(sandbox_dir, name);
    match fs::create_dir(&place) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(BuildError::Exists { name: name.to_owned() });
        }
        made => made.map_err(at("making", &place))?,
    }
    let netns = format!("/proc/{}/fd/{}", process::id(), netns.raw_fd());
    symlink(netns, place.join("netns"))
        .and_then(|()| symlink(cgroup, place.join("cgroup")))
        .map_err(at("describing", &place))
}

/// Gives the name of a node or pod free.
pub(crate) fn remove_place(sandbox_dir: &Path, name: &str) -> Result<(), BuildError> {
    let place = place(sandbox_dir, name);
    fs::remove_dir_all(&place).map_err(at("removing", &place))
}

/// The namespace and the cgroup of a node or pod of any sandbox.
pub(crate) fn open_place(sandbox_dir: &Path, name: &str) -> Result<(Netns, PathBuf), BuildError> {
    let place = place(sandbox_dir, name);
    let netns = place.join("netns");
    let netns = Netns::open(&netns).map_err(at("opening", &netns))?;
    let cgroup = place.join("cgroup");
    Ok((netns, fs::read_link(&cgroup).map_err(at("reading", &cgroup))?))
}

fn place(sandbox_dir: &Path, name: &str) -> PathBuf {
    sandbox_dir.join("places").join(name)
}

/// Names what was done to which path in an error.
pub(crate) fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    let path = path.to_owned();
    move |source| BuildError::File { doing, path, source }
}
