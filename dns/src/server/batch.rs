//! Datagrams by the batch: one system call receives or sends many.
//!
//! The safe wrappers at hand tie the buffers of a call to its results, so that receiving into what
//! was received before does not pass the borrow checker, and prepare every header for every call.
//! Here the headers point into buffers that they live beside, and a call touches the ones it needs.
#![expect(unsafe_code, reason = "recvmmsg and sendmmsg take pointers")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use crate::message::LARGEST_UDP;

/// Datagrams in a batch at most.
pub(super) const BATCH: usize = 32;
/// As recvmmsg(2) takes it.
const BATCH_LEN: libc::c_uint = 32;
/// The longest query that is read; longer ones are cut, and malformed for it.
const LARGEST_QUERY: usize = 2048;
/// A socket address of either family.
const NAME: usize = size_of::<libc::sockaddr_in6>();
/// As a header has it.
const NAME_LEN: libc::socklen_t = 28;
const _: () = assert!(NAME == 28 && BATCH == 32);
/// The address that a datagram was sent to, as a control message of either family.
const CONTROL: usize = 64;

/// Room for one batch of queries and their replies.
pub(super) struct Batch {
    queries: Box<[[u8; LARGEST_QUERY]; BATCH]>,
    replies: Box<[[u8; LARGEST_UDP]; BATCH]>,
    names: Box<[[u8; NAME]; BATCH]>,
    controls: Box<[[u8; CONTROL]; BATCH]>,
    received: Box<[libc::mmsghdr; BATCH]>,
    /// The one buffer of each header.
    received_into: Box<[libc::iovec; BATCH]>,
    n_received: usize,
    sent: Box<[libc::mmsghdr; BATCH]>,
    sent_from: Box<[libc::iovec; BATCH]>,
    /// Which reply goes where, and how long it is; the first `n_replies` of them.
    outgoing: [(usize, usize); BATCH],
    n_replies: usize,
    wants_control: bool,
}

/// One query of a batch, and the room for its reply.
pub(super) struct Slot<'b> {
    pub(super) query: &'b [u8],
    pub(super) reply: &'b mut [u8; LARGEST_UDP],
    name: &'b [u8; NAME],
}

impl Batch {
    /// `wants_control` keeps the address that each query was sent to, and replies from it: for
    /// sockets that are bound to every address.
    pub(super) fn new(wants_control: bool) -> Self {
        Self {
            queries: Box::new([[0; LARGEST_QUERY]; BATCH]),
            replies: Box::new([[0; LARGEST_UDP]; BATCH]),
            names: Box::new([[0; NAME]; BATCH]),
            controls: Box::new([[0; CONTROL]; BATCH]),
            received: Box::new([EMPTY; BATCH]),
            received_into: Box::new([NO_BUFFER; BATCH]),
            // All headers are prepared before the first call.
            n_received: BATCH,
            sent: Box::new([EMPTY; BATCH]),
            sent_from: Box::new([NO_BUFFER; BATCH]),
            outgoing: [(0, 0); BATCH],
            n_replies: 0,
            wants_control,
        }
    }

    /// Waits for a datagram and takes those that are there, at most [`BATCH`]. How many.
    ///
    /// # Errors
    /// As recvmmsg(2) fails.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        // What the last call used up has to be given again; the rest is as it was.
        for (idx, header) in self.received.iter_mut().enumerate().take(self.n_received) {
            let (Some(query), Some(name), Some(control), Some(buffer)) = (
                self.queries.get_mut(idx),
                self.names.get_mut(idx),
                self.controls.get_mut(idx),
                self.received_into.get_mut(idx),
            ) else {
                break;
            };
            *buffer = libc::iovec { iov_base: query.as_mut_ptr().cast(), iov_len: LARGEST_QUERY };
            header.msg_hdr.msg_iov = buffer;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = name.as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = NAME_LEN;
            if self.wants_control {
                header.msg_hdr.msg_control = control.as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = CONTROL;
            }
        }
        self.n_received = 0;
        self.n_replies = 0;
        // SAFETY: every header points to one buffer of the length it gives, to a name and, where
        // wanted, a control buffer likewise; all are owned by the batch and stay where they
        // are, and nothing else refers to them until the call returns.
        let n = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.received.as_mut_ptr(),
                BATCH_LEN,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        };
        self.n_received = usize::try_from(n).map_err(|_negative| io::Error::last_os_error())?;
        Ok(self.n_received)
    }

    /// The queries received.
    pub(super) fn queries(&self) -> impl Iterator<Item = &[u8]> {
        let received = self.received.iter().take(self.n_received);
        received
            .zip(&self.queries[..])
            .filter_map(|(header, query)| query.get(..header.msg_len as usize))
    }

    /// Query number `idx` of those received.
    pub(super) fn slot(&mut self, idx: usize) -> Option<Slot<'_>> {
        let len = self.received.get(idx)?.msg_len as usize;
        Some(Slot {
            query: self.queries.get(idx)?.get(..len)?,
            reply: self.replies.get_mut(idx)?,
            name: self.names.get(idx)?,
        })
    }

    /// Marks the reply to query number `idx`, of `len` octets, to be sent.
    pub(super) fn reply(&mut self, idx: usize, len: usize) {
        if let Some(next) = self.outgoing.get_mut(self.n_replies) {
            *next = (idx, len);
            self.n_replies += 1;
        }
    }

    /// Sends the replies. How many the kernel would not take.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>) -> usize {
        let outgoing = self.outgoing.get(..self.n_replies).unwrap_or_default();
        let headers = self.sent.iter_mut().zip(self.sent_from.iter_mut());
        for (&(idx, len), (header, buffer)) in outgoing.iter().zip(headers) {
            let (Some(reply), Some(name), Some(control), Some(received)) = (
                self.replies.get_mut(idx),
                self.names.get_mut(idx),
                self.controls.get_mut(idx),
                self.received.get(idx),
            ) else {
                continue;
            };
            *buffer =
                libc::iovec { iov_base: reply.as_mut_ptr().cast(), iov_len: len.min(LARGEST_UDP) };
            *header = EMPTY;
            header.msg_hdr.msg_iov = buffer;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = name.as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = received.msg_hdr.msg_namelen.min(NAME_LEN);
            let n_control = received.msg_hdr.msg_controllen;
            if self.wants_control && n_control > 0 && n_control <= CONTROL {
                from_where_it_came(control);
                header.msg_hdr.msg_control = control.as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = n_control;
            }
        }
        let mut sent = 0;
        let mut refused = 0;
        while let Some(rest) = self.sent.get_mut(sent + refused..self.n_replies)
            && !rest.is_empty()
        {
            let n_rest = libc::c_uint::try_from(rest.len()).unwrap_or(BATCH_LEN);
            // SAFETY: every header up to `n_replies` points to one buffer of the length it gives,
            // to a name and maybe to a control buffer likewise; all live until the call returns.
            let n = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), n_rest, 0) };
            match usize::try_from(n) {
                Ok(n) if n > 0 => sent += n,
                // This one cannot be sent (its client is gone, or filtered); the rest can.
                _ if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted => {
                    refused += 1;
                }
                _ => {}
            }
        }
        self.n_replies = 0;
        refused
    }
}

impl Slot<'_> {
    /// The address of the client; `None` for a family that is not IP.
    pub(super) fn client(&self) -> Option<IpAddr> {
        let (family, rest) = self.name.split_first_chunk::<2>()?;
        match i32::from(u16::from_ne_bytes(*family)) {
            // struct sockaddr_in: family, port, address.
            libc::AF_INET => rest.get(2..)?.first_chunk::<4>().map(|v4| Ipv4Addr::from(*v4).into()),
            // struct sockaddr_in6: family, port, flow, address.
            libc::AF_INET6 => {
                let v6 = rest.get(6..)?.first_chunk::<16>()?;
                Some(IpAddr::V6(Ipv6Addr::from(*v6)).to_canonical())
            }
            _ => None,
        }
    }
}

/// Turns the message that says where a datagram arrived into the one that says where to send from:
/// the same address, but by whatever interface the routes choose.
fn from_where_it_came(control: &mut [u8; CONTROL]) {
    // struct cmsghdr: length, level, type; then struct in_pktinfo: interface, address, destination;
    // or struct in6_pktinfo: address, interface.
    const LEVEL: usize = 8;
    const DATA: usize = 16;
    let Some(level) = control.get(LEVEL..).and_then(<[u8]>::first_chunk::<4>) else { return };
    let interface = match i32::from_ne_bytes(*level) {
        libc::IPPROTO_IP => Some(DATA),
        // A link-local address means nothing without its interface.
        libc::IPPROTO_IPV6 if control.get(DATA..DATA + 2) == Some(&[0xfe, 0x80]) => None,
        libc::IPPROTO_IPV6 => Some(DATA + 16),
        _ => None,
    };
    if let Some(interface) = interface.and_then(|at| control.get_mut(at..at + 4)) {
        interface.fill(0);
    }
}

const NO_BUFFER: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

const EMPTY: libc::mmsghdr = libc::mmsghdr {
    msg_hdr: libc::msghdr {
        msg_name: ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: ptr::null_mut(),
        msg_iovlen: 0,
        msg_control: ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    },
    msg_len: 0,
};

// SAFETY: the headers hold pointers only into buffers that the batch owns and that move with it;
// nothing is shared with another thread.
unsafe impl Send for Batch {}
