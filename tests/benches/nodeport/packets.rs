//! Packets of known UDP flows: put onto the wire before a node, counted at its pod.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use sandbox::Node;
use tests::cpu;
use tests::packet::frame::frame;

use crate::Round;
use crate::stage::Arm;
use crate::wire::{Wire, mac, sink};

/// Packets of a round of an arm.
const PACKETS: u64 = 20_000;
const FLOWS: usize = 64;
/// How long the last of them may take.
const LATE: Duration = Duration::from_millis(100);

/// The flows of one arm.
pub(crate) struct Stream<'s> {
    arm: &'s Arm,
    wire: Wire,
    frames: Vec<Vec<u8>>,
    /// They hold the ports.
    _clients: Vec<UdpSocket>,
}

impl<'s> Stream<'s> {
    /// Opens the flows by real questions and answers, and then lets nothing more through to the server.
    pub(crate) fn open(arm: &'s Arm, outside: &Node) -> Self {
        let clients: Vec<UdpSocket> = (0..FLOWS).map(|_| acquainted(outside, arm.target)).collect();
        let (netns, device) = arm.node.wire();
        let macs = [mac(arm.node.netns(), "eth0"), mac(outside.netns(), "eth0")].concat();
        let own = outside.addresses().v4;
        let frames = clients.iter().map(|client| {
            let from = SocketAddr::new(own.into(), client.local_addr().unwrap().port());
            let packet = frame(&format!("udp {from} > {} len=18", arm.target));
            [macs.as_slice(), packet.get(12..).unwrap()].concat()
        });
        let frames = frames.collect();
        // Datagrams end where they come out of the node.
        sink(arm.pod.command("nft"), arm.pod.name(), "udp");
        Self { arm, wire: Wire::new(netns, &device), frames, _clients: clients }
    }

    pub(crate) fn round(&mut self, softirqs: u32) -> Round {
        let before = self.arm.pod.packets().unwrap().received;
        let arrived = || self.arm.pod.packets().unwrap().received - before;
        let (began, worked) = (Instant::now(), cpu::mine() + cpu::of(softirqs));
        let frames = self.frames.iter().map(Vec::as_slice).cycle();
        self.wire.send(frames.take(usize::try_from(PACKETS).unwrap()));
        let mut took = began.elapsed();
        let work = cpu::mine() + cpu::of(softirqs) - worked;
        while arrived() < PACKETS && took < LATE {
            took = began.elapsed();
        }
        Round::new(arrived(), took, work)
    }
}

/// A socket whose flow is known to be one.
fn acquainted(outside: &Node, target: SocketAddr) -> UdpSocket {
    let socket = outside.netns().run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)));
    let socket = socket.unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.connect(target).unwrap();
    for _ in 0..3 {
        socket.send(b"x").unwrap();
        socket.recv(&mut [0]).unwrap();
    }
    socket
}
