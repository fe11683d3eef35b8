//! Attaches the packet programs where the kernel has no links to devices (before 6.6): as filters of a
//! device's clsact qdisc.
//!
//! A filter outlives the process, and goes with its device. Where ours stands is fixed, behind those of
//! others; that it stands there is told by a pin of its program. The qdisc stays when the filter
//! goes, for others may have theirs in it by then.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya::programs::links::Link as _;
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};

use crate::pins::{self, ReplaceError};
use crate::sys::{self, Hook};

/// Behind what others attach: filters run from low to high, and those that care choose low ones.
const PRIORITY: u16 = 49_000;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// Runs a program on a device's packets, and pins it at a path. A former one is replaced: every packet
/// passes the old program or the new one.
pub(crate) fn attach(program: impl AsFd, device: &str, hook: Hook, path: &Path) -> io::Result<()> {
    match qdisc_add_clsact(device) {
        Err(error) if errno(&error) != Some(libc::EEXIST) => return Err(io::Error::other(error)),
        _ => {}
    }
    // The pin comes first, so that no filter stands that nobody knows of.
    pins::replace(path, |fresh| sys::object_pin(program.as_fd(), fresh)).map_err(|error| {
        match error {
            ReplaceError::Pin(source) | ReplaceError::Rename(source) => source,
        }
    })?;
    let mut program = SchedClassifier::from_pin(path).map_err(io::Error::other)?;
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let options = TcAttachOptions::Netlink(options);
    let attached = match program.attach_with_options(device, attach_type(hook), options) {
        Err(ProgramError::TcError(error)) if errno(&error) == Some(libc::EEXIST) => {
            program.attach_to_link(standing(device, hook)?)
        }
        attached => attached,
    };
    let link = attached.and_then(|id| program.take_link(id)).map_err(io::Error::other)?;
    // It would take the filter away with it.
    std::mem::forget(link);
    Ok(())
}

/// Takes the filter away whose program is pinned at a path, and the pin.
pub(crate) fn detach(index: u32, hook: Hook, path: &Path) -> io::Result<()> {
    // A device that has gone took its filters with it.
    if let Ok(name) = nix::net::if_::if_indextoname(index)
        && let Ok(name) = name.into_string()
    {
        match standing(&name, hook)?.detach() {
            Err(ProgramError::NetlinkError(error))
                if !matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
                ) =>
            {
                return Err(io::Error::other(error));
            }
            // It was not there, which is what is wanted.
            _ => {}
        }
    }
    std::fs::remove_file(path)
}

fn standing(device: &str, hook: Hook) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(device, attach_type(hook), PRIORITY, HANDLE, None)
}

const fn attach_type(hook: Hook) -> TcAttachType {
    match hook {
        Hook::Ingress => TcAttachType::Ingress,
        Hook::Egress => TcAttachType::Egress,
    }
}

fn errno(error: &TcError) -> Option<i32> {
    match error {
        TcError::NetlinkError(error) => error.raw_os_error(),
        TcError::IoError(error) => error.raw_os_error(),
        _ => None,
    }
}
