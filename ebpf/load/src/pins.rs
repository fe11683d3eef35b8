//! Where things are pinned, and who may write there.
//!
//! ```text
//!  /sys/fs/bpf/fairlead/     --bpffs; its lock is held by the one writer
//!    v3/FRONTENDS …          maps, under the schema's version
//!    links/connect4 …        attachments
//!    programs/connect4-… …   loaded programs, for the next start
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use abi::SCHEMA;
use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

use crate::clsact;
use crate::sys::Hook;

/// Maps that are pinned, in the order in which they are.
pub(crate) const MAPS: [&str; 28] = [
    "FILTER",
    "NEW_NAMES",
    "NEW_FLOWS",
    "NAMES",
    "FLOWS",
    "DATAGRAMS",
    "HELD",
    "DEVICES",
    "SOCKETS",
    "UDP_PEERS",
    "TCP_SOCKETS",
    "LEFT_ALONE",
    "N_LEFT_ALONE",
    "COUNTERS",
    "DROPS",
    "DNS",
    "DNS_ALIVE",
    "DNS_CLIENTS",
    "AFFINITY",
    "ENDPOINT_COUNTS",
    "SERVICE_COUNTS",
    "NODE",
    "PREFIXES",
    "ADDRESSES",
    "RANGES",
    "ENDPOINTS",
    "SLOTS",
    "FRONTENDS",
];

/// Those of them that user space writes, which go together: one of them alone means nothing.
pub(crate) const WRITTEN: [&str; 9] = [
    "ENDPOINT_COUNTS",
    "SERVICE_COUNTS",
    "NODE",
    "PREFIXES",
    "ADDRESSES",
    "RANGES",
    "ENDPOINTS",
    "SLOTS",
    "FRONTENDS",
];

/// Ends the temporary name of what is being pinned; bpffs allows no dots.
const FRESH: &str = "_new";

/// Ends the name of a program that is a filter of a device.
const FILTER: &str = "-clsact";

/// One node's directory on bpffs.
#[derive(Debug, Clone)]
pub struct Pins {
    dir: PathBuf,
}

/// Held by the one process that may write a node's maps; the kernel drops it with the process.
#[derive(Debug)]
pub struct WriterLock(Flock<File>);

impl WriterLock {
    /// Whether it is the lock of that directory, and not of one that was removed.
    pub(crate) fn is_of(&self, pins: &Pins) -> bool {
        let locked = self.0.metadata().map(|held| (held.dev(), held.ino()));
        let there = fs::metadata(&pins.dir).map(|found| (found.dev(), found.ino()));
        locked.is_ok_and(|locked| there.is_ok_and(|there| locked == there))
    }
}

/// Why a process may not write.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another process holds the lock.
    #[error(
        "another fairlead process serves this node: it holds {dir}; \
         stop it first, or give this one a --bpffs and a --cgroup of its own",
        dir = dir.display()
    )]
    Held {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory cannot be made or opened.
    #[error("cannot use {dir} to pin maps and links: {source}", dir = dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Pins {
    /// The pins under a directory, which need not exist.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory and takes its lock.
    ///
    /// # Errors
    /// Another process holds it, or the directory cannot be made.
    pub fn lock(&self) -> Result<WriterLock, LockError> {
        let directory = |source| LockError::Directory { dir: self.dir.clone(), source };
        fs::create_dir_all(&self.dir).map_err(directory)?;
        let file = File::open(&self.dir).map_err(directory)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(WriterLock(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                Err(LockError::Held { dir: self.dir.clone() })
            }
            Err((_, error)) => Err(directory(error.into())),
        }
    }

    /// Where this schema's map of that name is pinned.
    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.maps_dir().join(name)
    }

    pub(crate) fn maps_dir(&self) -> PathBuf {
        self.dir.join(format!("v{SCHEMA}"))
    }

    /// Where the link of the program of that name is pinned.
    pub(crate) fn link(&self, program: &str) -> PathBuf {
        self.links_dir().join(program)
    }

    pub(crate) fn links_dir(&self) -> PathBuf {
        self.dir.join("links")
    }

    /// Where the link of a program to a device is pinned.
    pub(crate) fn device(&self, index: u32, hook: &str) -> PathBuf {
        self.devices_dir().join(format!("{index}-{hook}"))
    }

    /// Where a program is pinned that is a filter of a device.
    pub(crate) fn filter(&self, index: u32, hook: &str) -> PathBuf {
        self.devices_dir().join(format!("{index}-{hook}{FILTER}"))
    }

    pub(crate) fn devices_dir(&self) -> PathBuf {
        self.dir.join("devices")
    }

    /// Where programs are pinned for the next start.
    pub(crate) fn programs_dir(&self) -> PathBuf {
        self.dir.join("programs")
    }

    /// The links to devices and filters of devices that are pinned, with the device's index.
    pub(crate) fn devices(&self) -> Vec<(u32, PathBuf)> {
        entries(&self.devices_dir())
            .into_iter()
            .filter_map(|path| {
                let (index, _) = path.file_name()?.to_str()?.split_once('-')?;
                Some((index.parse().ok()?, path))
            })
            .collect()
    }

    /// Whether a former process left anything here.
    pub fn is_empty(&self) -> bool {
        entries(&self.dir).is_empty()
    }

    /// Removes maps of other schemas, and what a process that died while pinning left half done.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        let current = self.maps_dir();
        for dir in entries(&self.dir) {
            let is_maps = dir
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.strip_prefix('v'))
                .is_some_and(|version| version.parse::<u32>().is_ok());
            if is_maps && dir != current {
                remove_dir(&dir)?;
            }
        }
        let dirs = [current, self.links_dir(), self.programs_dir()];
        for file in dirs.iter().flat_map(|dir| entries(dir)) {
            if file.to_string_lossy().ends_with(FRESH) {
                fs::remove_file(file)?;
            }
        }
        Ok(())
    }

    /// Removes everything: links first, so that no program runs on maps without a name.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn remove_all(&self) -> io::Result<()> {
        remove_dir(&self.links_dir())?;
        for (index, path) in self.devices() {
            remove_device(index, &path)?;
        }
        remove_dir(&self.devices_dir())?;
        for dir in entries(&self.dir) {
            remove_dir(&dir)?;
        }
        match fs::remove_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the directories that hold nothing, so that a start that failed leaves no trace.
    pub(crate) fn remove_if_empty(&self) {
        let programs = self.programs_dir();
        for dir in
            [self.links_dir(), self.devices_dir(), programs, self.maps_dir(), self.dir.clone()]
        {
            // One that holds something refuses, which is what is wanted.
            _ = fs::remove_dir(dir);
        }
    }
}

/// Removes the pin of a device's link, which detaches it, or of its filter together with that.
pub(crate) fn remove_device(index: u32, path: &Path) -> io::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let hook = name.strip_suffix(FILTER).and_then(|name| name.split_once('-'));
    match hook.and_then(|(_, hook)| Hook::named(hook)) {
        Some(hook) => clsact::detach(index, hook, path),
        None => fs::remove_file(path),
    }
}

/// Pins under a temporary name first and renames, so that the name leads to the old object or to
/// the new one, never to none.
pub(crate) fn replace<E>(
    path: &Path,
    pin: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), ReplaceError<E>> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(FRESH);
    let fresh = PathBuf::from(fresh);
    _ = fs::remove_file(&fresh);
    pin(&fresh).map_err(ReplaceError::Pin)?;
    fs::rename(&fresh, path).map_err(ReplaceError::Rename)
}

/// Which step of [`replace`] failed.
#[derive(Debug)]
pub(crate) enum ReplaceError<E> {
    Pin(E),
    Rename(io::Error),
}

/// What a directory has; nothing if there is none.
pub(crate) fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    for file in entries(dir) {
        fs::remove_file(file)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
