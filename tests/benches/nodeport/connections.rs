//! Whole TCP connections, put onto both wires of a node frame by frame: many are under way at once, and nobody's
//! sockets cost anything. What is counted is what the node lets through.
//!
//! ```text
//!  client ─ syn ─▶        ─ ack ─▶ ─ request ─▶            ─ fin ─▶        ─ ack ─▶
//!  pod             ◀─ syn-ack ─              ◀─ answer ─          ◀─ fin ─
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
};
use nix::sys::time::TimeVal;
use sandbox::{Node, Pod};
use tests::cpu;
use tests::packet::frame::frame;

use crate::Round;
use crate::stage::{Arm, BY_HAND};
use crate::wire::{Wire, link_address, mac, sink};

/// Connections of a round of an arm.
const CONNECTIONS: u16 = 200;
/// Rounds for which there are ports: each connection has its own, so that none meets what an earlier one left.
/// One arm takes two turns.
pub(crate) const MOST_ROUNDS: usize = 40;
/// The ports that masqueraded connections keep, in whatever way they are led.
const FIRST: u16 = 49_152;
/// How long the last frame may take.
const LATE: Duration = Duration::from_secs(5);

/// Frames from the client or the pod: flags, sequence number, acknowledgement, length.
const STEPS: [(Side, &str, u32, u32, u32); 8] = [
    (Side::Client, "syn", 1000, 0, 0),
    (Side::Pod, "syn-ack", 5000, 1001, 0),
    (Side::Client, "ack", 1001, 5001, 0),
    (Side::Client, "psh ack", 1001, 5001, 64),
    (Side::Pod, "psh ack", 5001, 1065, 64),
    (Side::Client, "fin ack", 1065, 5065, 0),
    (Side::Pod, "fin ack", 5065, 1066, 0),
    (Side::Client, "ack", 1066, 5066, 0),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Pod,
}

/// The connections of one arm.
pub(crate) struct Connections<'s> {
    arm: &'s Arm,
    client: Ipv4Addr,
    outside: Wire,
    pod: Wire,
    seen: Seen,
    /// Destination and source, before the node and at its pod.
    macs: [Vec<u8>; 2],
    next: u16,
}

/// How a client looks to the pod.
struct Seen {
    address: Ipv4Addr,
    mac: [u8; 6],
}

impl<'s> Connections<'s> {
    /// Lets no connection through to the server any more, and looks how a client looks.
    pub(crate) fn open(arm: &'s Arm, outside: &Node) -> Self {
        sink(arm.pod.command("nft"), arm.pod.name(), "tcp");
        let (netns, device) = arm.node.wire();
        let mut wire = Wire::new(netns, &device);
        let client = outside.addresses().v4;
        let before = [mac(arm.node.netns(), "eth0"), mac(outside.netns(), "eth0")].concat();
        let tap = Tap::open(&arm.pod);
        let target = arm.by_hand;
        let first = format!("tcp {} > {target} syn len=0", SocketAddr::new(client.into(), FIRST));
        wire.send([whole(&before, &first).as_slice()]);
        let seen = tap.hears();
        let behind = [seen.mac, mac(arm.pod.netns(), "eth0")].concat();
        let macs = [before, behind];
        let pod = Wire::new(arm.pod.netns(), "eth0");
        Self { arm, client, outside: wire, pod, seen, macs, next: FIRST + 1 }
    }

    pub(crate) fn round(&mut self, softirqs: u32) -> Round {
        let steps = STEPS.map(|step| (step.0, self.frames(step)));
        self.next = self.next.checked_add(CONNECTIONS).expect("a port for each connection");
        let counters = || (self.arm.pod.packets().unwrap(), self.arm.node.packets().unwrap());
        let (at_pod, at_node) = counters();
        let of = |side| STEPS.iter().filter(|step| step.0 == side).count() as u64;
        let n = u64::from(CONNECTIONS);
        let arrived = || {
            let (pod, node) = counters();
            pod.received - at_pod.received >= n * of(Side::Client)
                && node.sent - at_node.sent >= n * of(Side::Pod)
        };
        let (began, worked) = (Instant::now(), cpu::mine() + cpu::of(softirqs));
        for (side, frames) in &steps {
            let wire = if *side == Side::Client { &mut self.outside } else { &mut self.pod };
            wire.send(frames.iter().map(Vec::as_slice));
        }
        let mut took = began.elapsed();
        let work = cpu::mine() + cpu::of(softirqs) - worked;
        while !arrived() {
            took = began.elapsed();
            assert!(took < LATE, "{} of {} were lost", self.arm.node.name(), CONNECTIONS);
        }
        Round::new(n, took, work)
    }

    /// One step of each connection of a round.
    fn frames(&self, (side, flags, seq, acks, len): (Side, &str, u32, u32, u32)) -> Vec<Vec<u8>> {
        let ends = |port| {
            let pod = IpAddr::from(self.arm.pod.addresses().v4);
            match side {
                Side::Client => (SocketAddr::new(self.client.into(), port), self.arm.by_hand),
                Side::Pod => {
                    (SocketAddr::new(pod, BY_HAND), SocketAddr::new(self.seen.address.into(), port))
                }
            }
        };
        let [before, behind] = &self.macs;
        let macs = if side == Side::Client { before } else { behind };
        let ports = self.next..self.next + CONNECTIONS;
        let frames = ports.map(|port| {
            let (from, to) = ends(port);
            whole(macs, &format!("tcp {from} > {to} {flags} seq={seq} acks={acks} len={len}"))
        });
        frames.collect()
    }
}

/// A frame between those two.
fn whole(macs: &[u8], text: &str) -> Vec<u8> {
    [macs, frame(text).get(12..).unwrap()].concat()
}

/// Hears what arrives at a pod.
struct Tap(OwnedFd);

impl Tap {
    fn open(pod: &Pod) -> Self {
        let bound = || {
            let all = SockProtocol::EthAll;
            let packet = AddressFamily::Packet;
            let socket = socket(packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all).unwrap();
            bind(socket.as_raw_fd(), &link_address("eth0")).unwrap();
            setsockopt(&socket, ReceiveTimeout, &TimeVal::new(5, 0)).unwrap();
            socket
        };
        Self(pod.netns().run(bound).unwrap())
    }

    /// What the first connection looks like, whose port is to be its own.
    fn hears(&self) -> Seen {
        let mut frame = [0; 2048];
        loop {
            let n = recv(self.0.as_raw_fd(), &mut frame, nix::sys::socket::MsgFlags::empty());
            let frame = &frame[..n.expect("the first connection arrives")];
            let is_tcp = frame[12..14] == [8, 0] && frame[23] == 6;
            if is_tcp && frame[36..38] == BY_HAND.to_be_bytes() {
                assert_eq!(frame[34..36], FIRST.to_be_bytes(), "it has another port");
                let address = <[u8; 4]>::try_from(&frame[26..30]).unwrap();
                return Seen { address: address.into(), mac: frame[6..12].try_into().unwrap() };
            }
        }
    }
}
