//! UDP flows that the kernel's conntrack would keep on a dead way: those to an endpoint that no
//! longer serves, and those that began before there was a rule. TCP and SCTP flows are left alone,
//! so that they can end by themselves.
//!
//! ```text
//!  a round that changed UDP frontends ─▶ dump UDP flows ─▶ stale? ─▶ delete each, by its id
//! ```

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

use model::name::{Family, Protocol};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};
use nix::errno::Errno;

mod message;

use message::{ASSURED, Answer, DST_NAT, Flow};

use crate::plan::{At, FrontendKey, Plan};

/// What is remembered from one look to the next.
#[derive(Debug, Default)]
pub struct Cleaner {
    known: BTreeSet<FrontendKey>,
}

impl Cleaner {
    /// Removes the flows that are stale under a plan, in this network namespace. Says how many.
    /// Those of frontends that have gone since the last look are stale as well.
    ///
    /// # Errors
    /// The kernel does not tell its flows; the next look is for the same frontends then.
    pub fn clean(&mut self, plan: &Plan) -> io::Result<usize> {
        let now: BTreeSet<FrontendKey> =
            plan.frontends.keys().filter(|key| key.protocol == Protocol::Udp).copied().collect();
        if now.is_empty() && self.known.is_empty() {
            return Ok(0);
        }
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        let mut removed = 0;
        for family in Family::ALL {
            for flow in dump(&socket, family)? {
                if is_stale(&flow, plan, &self.known) {
                    removed += usize::from(delete(&socket, family, &flow)?);
                }
            }
        }
        self.known = now;
        Ok(removed)
    }
}

/// A UDP flow that netfilter translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// Who sends.
    pub client: SocketAddr,
    /// To whom.
    pub frontend: SocketAddr,
    /// Who answers.
    pub endpoint: SocketAddr,
    /// Packets went to and fro for a while, so that it is remembered for longer.
    pub is_assured: bool,
}

/// The UDP flows of this network namespace that have another destination than they were sent to.
///
/// # Errors
/// The kernel does not tell its flows.
pub fn translated() -> io::Result<Vec<Translated>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    let mut translated = Vec::new();
    for family in Family::ALL {
        let flows = dump(&socket, family)?.into_iter();
        translated.extend(flows.filter(|flow| flow.status & DST_NAT != 0).map(|flow| Translated {
            client: flow.from,
            frontend: flow.to,
            endpoint: flow.answered_by,
            is_assured: flow.status & ASSURED != 0,
        }));
    }
    Ok(translated)
}

/// How many flows of this network namespace have another destination than they were sent to. They
/// are translated as long as something is hooked into the kernel that translates.
///
/// # Errors
/// The kernel does not tell its flows.
pub fn n_translated() -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    let mut n = 0;
    for family in Family::ALL {
        socket.send(&message::dump_all(family), 0)?;
        loop {
            let (datagram, _) = socket.recv_from_full()?;
            let told = message::translated(&datagram);
            n += told.n;
            match told.end {
                None => {}
                Some(0 | EINTR) => break,
                Some(code) => return Err(io::Error::from_raw_os_error(code)),
            }
        }
    }
    Ok(n)
}

/// Whether a flow leads to a frontend's address and port, but not to an endpoint of it that serves.
fn is_stale(flow: &Flow, plan: &Plan, known: &BTreeSet<FrontendKey>) -> bool {
    let key = |at| FrontendKey { at, port: flow.to.port(), protocol: Protocol::Udp };
    let family = Family::of(&flow.to.ip());
    [key(At::Address(flow.to.ip())), key(At::NodePort(family))].iter().any(|key| {
        match plan.frontends.get(key) {
            Some(frontend) => frontend.serving.binary_search(&flow.answered_by).is_err(),
            None => known.contains(key),
        }
    })
}

/// The UDP flows of one family.
fn dump(socket: &Socket, family: Family) -> io::Result<Vec<Flow>> {
    socket.send(&message::dump(family), 0)?;
    let mut flows = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for answer in message::parse(&datagram) {
            match answer {
                Answer::Flow(flow) => flows.push(flow),
                Answer::Done => return Ok(flows),
                // What was heard so far is right; the rest is found at the next look.
                Answer::Error(EINTR) => return Ok(flows),
                Answer::Error(code) => return Err(io::Error::from_raw_os_error(code)),
            }
        }
    }
}

/// Whether the flow was there to be deleted.
fn delete(socket: &Socket, family: Family, flow: &Flow) -> io::Result<bool> {
    socket.send(&message::delete(family, flow), 0)?;
    let (datagram, _) = socket.recv_from_full()?;
    for answer in message::parse(&datagram) {
        match answer {
            Answer::Error(0) => return Ok(true),
            Answer::Error(ENOENT) => return Ok(false),
            Answer::Error(code) => return Err(io::Error::from_raw_os_error(code)),
            Answer::Flow(_) | Answer::Done => {}
        }
    }
    Ok(false)
}

const EINTR: i32 = Errno::EINTR as i32;
const ENOENT: i32 = Errno::ENOENT as i32;

#[cfg(test)]
mod tests;
