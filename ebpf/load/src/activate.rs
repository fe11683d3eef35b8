//! Attaches the programs, or swaps them behind the links that a former process pinned.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::{MapData, MapInfo};
use aya::pin::PinError;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, Program, ProgramError, loaded_programs};
use thiserror::Error;

use crate::kept::{self, Kept};
use crate::pins::{self, LockError, MAPS, Pins, ReplaceError};
use crate::sys;

/// The hooks of the way back come first, so that no answer ever bears an address that its socket
/// did not name; those that translate come last.
const REVERSE: [&str; 5] = ["recvmsg4", "recvmsg6", "getpeername4", "getpeername6", "sock_release"];
const FORWARD: [&str; 6] = ["bind4", "bind6", "sendmsg4", "sendmsg6", "connect4", "connect6"];

/// The names of all programs.
pub(crate) fn programs() -> impl Iterator<Item = &'static str> {
    REVERSE.into_iter().chain(FORWARD)
}

/// Why the dataplane cannot become active.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// The object lacks a program.
    #[error("the eBPF object has no program {name}; build it anew with `cargo xtask build`")]
    NoProgram {
        /// Its name.
        name: &'static str,
    },
    /// A program cannot be attached.
    #[error("cannot attach {name} to cgroup {cgroup}: {source}", cgroup = cgroup.display())]
    Attach {
        /// The program.
        name: &'static str,
        /// The cgroup.
        cgroup: PathBuf,
        /// Why.
        source: ProgramError,
    },
    /// A map or link cannot be pinned.
    #[error("cannot pin {path}: {source}", path = path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why.
        source: PinError,
    },
    /// The directory was removed, and cannot be had again.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file, a directory or a link cannot be used.
    #[error("cannot use {path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

pub(crate) fn activate(
    ebpf: &mut Ebpf,
    pins: &Pins,
    cgroup: &Path,
    kept: Option<&Kept>,
) -> Result<(), ActivateError> {
    let was_empty = pins.is_empty();
    let done = pin_maps(ebpf, pins)
        .and_then(|()| attach_all(ebpf, pins, cgroup))
        .and_then(|()| keep(ebpf, pins, kept));
    if done.is_err() && was_empty {
        // The first error is the one to tell.
        _ = pins.remove_all();
    }
    done
}

/// Removes the links that translate; those of the way back stay for the sockets that need them.
pub(crate) fn drain(pins: &Pins) -> Result<(), ActivateError> {
    for name in FORWARD {
        let path = pins.link(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(|source| ActivateError::Io { path, source })?,
        }
    }
    Ok(())
}

/// The program behind the pinned link of that name, if there is one.
pub(crate) fn pinned_program(pins: &Pins, name: &str) -> Option<u32> {
    let link = sys::object_get(&pins.link(name)).ok()?;
    sys::link_info(link.as_fd()).ok().map(|info| info.program_id)
}

/// Whether a loaded program is one of Fairlead's: it uses a map that only ours have.
pub(crate) fn is_ours(program_id: u32) -> bool {
    loaded_programs()
        .filter_map(Result::ok)
        .find(|info| info.id() == program_id)
        .and_then(|info| info.map_ids().ok().flatten())
        .into_iter()
        .flatten()
        .filter_map(|id| MapInfo::from_id(id).ok())
        .any(|map| map.name_as_str() == Some("FRONTENDS"))
}

fn attach_all(ebpf: &mut Ebpf, pins: &Pins, cgroup: &Path) -> Result<(), ActivateError> {
    make_dir(&pins.links_dir())?;
    let directory = File::open(cgroup)
        .map_err(|source| ActivateError::Io { path: cgroup.to_owned(), source })?;
    let cgroup_id = directory
        .metadata()
        .map_err(|source| ActivateError::Io { path: cgroup.to_owned(), source })?
        .ino();
    for name in programs() {
        let program = ebpf.program_mut(name).ok_or(ActivateError::NoProgram { name })?;
        let path = pins.link(name);
        match pinned_link(&path, cgroup_id) {
            Some(link) => swap(program, &link, name, &path)?,
            None => attach(program, &directory, name, &path, cgroup)?,
        }
    }
    remove_unknown_links(pins)
}

/// The link pinned there, if it is attached to this cgroup.
fn pinned_link(path: &Path, cgroup_id: u64) -> Option<OwnedFd> {
    let link = sys::object_get(path).ok()?;
    let info = sys::link_info(link.as_fd()).ok()?;
    (info.cgroup_id == cgroup_id).then_some(link)
}

fn swap(
    program: &Program,
    link: &OwnedFd,
    name: &'static str,
    path: &Path,
) -> Result<(), ActivateError> {
    let fd = program.fd().map_err(|source| ActivateError::Attach {
        name,
        cgroup: path.to_owned(),
        source,
    })?;
    sys::link_update(link.as_fd(), fd.as_fd())
        .map_err(|source| ActivateError::Io { path: path.to_owned(), source })
}

fn attach(
    program: &mut Program,
    directory: &File,
    name: &'static str,
    path: &Path,
    cgroup: &Path,
) -> Result<(), ActivateError> {
    let failed = |source| ActivateError::Attach { name, cgroup: cgroup.to_owned(), source };
    let link: FdLink = match program {
        Program::CgroupSockAddr(program) => {
            let id = program.attach(directory, CgroupAttachMode::Single).map_err(failed)?;
            let link = program.take_link(id).map_err(failed)?;
            link.try_into().map_err(|_error| ActivateError::NoProgram { name })?
        }
        Program::CgroupSock(program) => {
            let id = program.attach(directory, CgroupAttachMode::Single).map_err(failed)?;
            let link = program.take_link(id).map_err(failed)?;
            link.try_into().map_err(|_error| ActivateError::NoProgram { name })?
        }
        _ => return Err(ActivateError::NoProgram { name }),
    };
    replaced(path, pins::replace(path, |fresh| link.pin(fresh).map(drop)))
}

/// Leaves the programs for the next start, and none of before.
fn keep(ebpf: &mut Ebpf, pins: &Pins, kept: Option<&Kept>) -> Result<(), ActivateError> {
    kept::sweep(kept, pins)
        .map_err(|source| ActivateError::Io { path: pins.programs_dir(), source })?;
    for name in programs() {
        if let (Some(kept), Some(program)) = (kept, ebpf.program_mut(name)) {
            kept.keep(name, program);
        }
    }
    Ok(())
}

/// Gives the maps that the programs use now their names, in the place of those used before.
fn pin_maps(ebpf: &Ebpf, pins: &Pins) -> Result<(), ActivateError> {
    make_dir(&pins.maps_dir())?;
    for name in MAPS {
        let Some(map) = ebpf.map(name) else { return Err(ActivateError::NoProgram { name }) };
        let path = pins.map(name);
        replaced(&path, pins::replace(&path, |fresh| map.pin(fresh)))?;
    }
    Ok(())
}

/// Links of programs that a newer version had and this one has not.
fn remove_unknown_links(pins: &Pins) -> Result<(), ActivateError> {
    let known: BTreeSet<PathBuf> = programs().map(|name| pins.link(name)).collect();
    let dir = pins.links_dir();
    let entries = fs::read_dir(&dir).map_err(|source| ActivateError::Io { path: dir, source })?;
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if !known.contains(&path) {
            fs::remove_file(&path).map_err(|source| ActivateError::Io { path, source })?;
        }
    }
    Ok(())
}

fn replaced(path: &Path, result: Result<(), ReplaceError<PinError>>) -> Result<(), ActivateError> {
    result.map_err(|error| match error {
        ReplaceError::Pin(source) => ActivateError::Pin { path: path.to_owned(), source },
        ReplaceError::Rename(source) => ActivateError::Io { path: path.to_owned(), source },
    })
}

fn make_dir(path: &Path) -> Result<(), ActivateError> {
    fs::create_dir_all(path).map_err(|source| ActivateError::Io { path: path.to_owned(), source })
}

/// How many entries a pinned map has room for.
pub(crate) fn max_entries(path: &Path) -> Option<u32> {
    MapData::from_pin(path).ok()?.info().ok().map(|info| info.max_entries())
}
