//! Attaches the packet programs where the kernel has no links to devices (before 6.6): as filters of a
//! device's clsact qdisc.
//!
//! A filter outlives the process, and goes with its device. Where ours stands is fixed, behind those of
//! others; that it stands there is told by a pin of its program. The qdisc stays when the filter
//! goes, for others may have theirs in it by then.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use aya::programs::links::Link as _;
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use crate::pins::{self, ReplaceError};
use crate::sys::{self, Hook};

/// Behind what others attach: filters run from low to high, and those that care choose low ones.
const PRIORITY: u16 = 49_000;
const HANDLE: TcHandle = TcHandle::new(0, 1);
/// The same as a word.
const HANDLE_WORD: u32 = 1;

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

/// The program of the filter that stands at a device; none if no filter of ours does.
pub(crate) fn program(index: u32, hook: Hook) -> Option<u32> {
    let reply = ask(index, hook).ok()?;
    program_of(&reply)
}

/// Asks the kernel for the one filter.
fn ask(index: u32, hook: Hook) -> nix::Result<Vec<u8>> {
    let (family, kind) = (AddressFamily::Netlink, SockType::Raw);
    let netlink = socket(family, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    send(netlink.as_raw_fd(), &request(index, hook), MsgFlags::empty())?;
    let mut reply = vec![0; 4096];
    let n = recv(netlink.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    reply.truncate(n);
    Ok(reply)
}

/// `struct nlmsghdr`, then `struct tcmsg`.
fn request(index: u32, hook: Hook) -> Vec<u8> {
    /// The clsact qdisc's hooks: `TC_H_CLSACT` with `TC_H_MIN_INGRESS` or `TC_H_MIN_EGRESS`.
    const INGRESS: u32 = 0xffff_fff2;
    const EGRESS: u32 = 0xffff_fff3;
    const ALL_PROTOCOLS: u16 = 3;
    let parent = match hook {
        Hook::Ingress => INGRESS,
        Hook::Egress => EGRESS,
    };
    let info = u32::from(PRIORITY) << 16 | u32::from(ALL_PROTOCOLS.to_be());
    let mut bytes = Vec::with_capacity(HEADERS);
    bytes.extend(36_u32.to_ne_bytes());
    bytes.extend(libc::RTM_GETTFILTER.to_ne_bytes());
    // NLM_F_REQUEST.
    bytes.extend(1_u16.to_ne_bytes());
    for word in [0, 0, 0, index, HANDLE_WORD, parent, info] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

/// The length of the two headers.
const HEADERS: usize = 36;

/// From `RTM_NEWTFILTER`: the number of its program, in the options of its kind.
fn program_of(reply: &[u8]) -> Option<u32> {
    const TCA_OPTIONS: u16 = 2;
    const TCA_BPF_ID: u16 = 11;
    let kind = u16::from_ne_bytes(*reply.get(4..)?.first_chunk()?);
    if kind != libc::RTM_NEWTFILTER {
        return None;
    }
    let options = attribute(reply.get(HEADERS..)?, TCA_OPTIONS)?;
    attribute(options, TCA_BPF_ID)?.first_chunk().copied().map(u32::from_ne_bytes)
}

/// The value of the attribute of that kind, among others.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    /// Without the bits that say how its value is written.
    const KIND: u16 = 0x3fff;
    loop {
        let [a, b, c, d] = *attributes.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(4..len)?;
        if u16::from_ne_bytes([c, d]) & KIND == kind {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
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

#[cfg(test)]
mod tests {
    use super::{HEADERS, program_of, request};
    use crate::sys::Hook;

    /// A reply with a name, then options of a class and a program.
    fn reply(kind: u16) -> Vec<u8> {
        let mut bytes = vec![0; HEADERS];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let attribute = |len: u16, kind: u16| [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend([attribute(7, 1), b"bpf\0".to_vec()].concat());
        bytes.extend(attribute(20, 2));
        bytes.extend([attribute(8, 3), vec![9, 0, 0, 0]].concat());
        bytes.extend([attribute(8, 11), 4711_u32.to_ne_bytes().to_vec()].concat());
        bytes
    }

    #[test]
    fn a_filter_tells_its_program() {
        assert_eq!(program_of(&reply(libc::RTM_NEWTFILTER)), Some(4711));
        assert_eq!(program_of(&reply(2)), None, "an error");
        let cut = reply(libc::RTM_NEWTFILTER);
        for len in 0..cut.len() {
            assert_eq!(program_of(&cut[..len]), None, "cut at {len}");
        }
    }

    #[test]
    fn a_question_is_as_long_as_it_says() {
        let request = request(7, Hook::Egress);
        assert_eq!(request.len(), HEADERS);
        assert_eq!(request[..4], 36_u32.to_ne_bytes());
    }
}
