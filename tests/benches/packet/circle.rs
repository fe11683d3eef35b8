//! Connections in a circle: what a program makes of a packet of one is a packet of the next.
//!
//! The yardstick goes the same way through the same memory, and does nothing with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use abi::addr::Addr;
use abi::endpoint::{Endpoint, Head};
use abi::flow::{Name, Record, Seen, Tuple, flag, half};
use abi::frontend::{FrontendKey, FrontendValue};
use abi::slot::{Kind, N_HEADS, Rules, Slot};
use load::test_run::Bench;
use tests::packet::frame::frame;
use tests::packet::show::show;

const TCP: u8 = 6;
const UDP: u8 = 17;
const GENERATION: u32 = 1;

/// What is done to the packets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Dnat,
    Snat,
    UnSnat,
    UnDnat,
}

/// A way through the programs.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) program: &'static str,
    step: Step,
    protocol: u8,
    v6: bool,
}

/// Every step of a connection's packets, and the first of them for other packets.
pub(crate) const WAYS: [Way; 6] = [
    Way::new("TCP over IPv4: DNAT at ingress", Step::Dnat, TCP, false),
    Way::new("UDP over IPv4: DNAT at ingress", Step::Dnat, UDP, false),
    Way::new("TCP over IPv6: DNAT at ingress", Step::Dnat, TCP, true),
    Way::new("TCP over IPv4: SNAT at egress", Step::Snat, TCP, false),
    Way::new("TCP over IPv4: un-SNAT at ingress", Step::UnSnat, TCP, false),
    Way::new("TCP over IPv4: un-DNAT at egress", Step::UnDnat, TCP, false),
];

impl Way {
    const fn new(name: &'static str, step: Step, protocol: u8, v6: bool) -> Self {
        let program = match step {
            Step::Dnat | Step::UnSnat => "tc_ingress",
            Step::Snat | Step::UnDnat => "tc_egress",
        };
        Self { name, program, step, protocol, v6 }
    }

    /// The program that makes the same lookups and nothing else.
    pub(crate) const fn yardstick(self) -> &'static str {
        match self.step {
            Step::Dnat => "tc_walk_flows",
            Step::Snat | Step::UnSnat | Step::UnDnat => "tc_walk_names",
        }
    }

    /// The one end that the packets of all connections have in common.
    fn fixed(self) -> SocketAddr {
        let port = if matches!(self.step, Step::Dnat | Step::UnDnat) { 40_000 } else { 80 };
        if self.v6 {
            (Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 9), port).into()
        } else {
            // Names have the smaller end first, by its last byte: always the other one.
            (Ipv4Addr::new(192, 0, 2, 255), port).into()
        }
    }

    /// The end that is rewritten.
    fn place(self, number: u32) -> SocketAddr {
        let port = if matches!(self.step, Step::Dnat | Step::UnDnat) { 80 } else { 50_000 };
        let ip = if self.v6 {
            let [a, b, c, d] = number.to_be_bytes();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            IpAddr::from(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, high, low))
        } else {
            // Below the last byte of the other end.
            let [b, c, d] = [62_500, 250, 1].map(|unit| number / unit % 250);
            IpAddr::from(Ipv4Addr::from((10 << 24) | ((128 + b) << 16) | (c << 8) | d))
        };
        (ip, port).into()
    }
}

/// Connections of Services from `first` on, in that order.
pub(crate) struct Circle {
    pub(crate) way: Way,
    pub(crate) first: u32,
    pub(crate) order: Vec<u32>,
}

impl Circle {
    /// Writes its Services and connections, in another order than they are met in: what the kernel
    /// allocates one after the other lies side by side.
    pub(crate) fn lay(&self, bench: &mut Bench) {
        let nexts = self.order.iter().skip(1).chain(self.order.first());
        let mut pairs: Vec<(u32, u32)> = self.order.iter().copied().zip(nexts.copied()).collect();
        pairs.sort_unstable();
        for (here, next) in pairs {
            let slot = self.first + 1 + here;
            let [here, next] = [here, next].map(|number| self.way.place(self.first + number));
            service(bench, slot, here, next, self.way.protocol);
            self.connection(bench, slot, here, next);
        }
    }

    fn connection(&self, bench: &mut Bench, slot: u32, here: SocketAddr, next: SocketAddr) {
        let (way, fixed) = (self.way, self.way.fixed());
        // A Service that all connections have, where it is not what is rewritten.
        let vip = SocketAddr::new(fixed.ip(), 443);
        let (from, to, endpoint, snat) = match way.step {
            Step::Dnat => (fixed, here, next, None),
            Step::UnDnat => (fixed, next, here, None),
            Step::Snat => (here, vip, fixed, Some(next)),
            Step::UnSnat => (next, vip, fixed, Some(here)),
        };
        let sent = Tuple { seen: Seen::Sent as u8, ..tuple(from, to, way.protocol) };
        let record = Record {
            endpoint: endpoint.ip().into(),
            endpoint_port: endpoint.port().to_be(),
            snat: snat.map_or_else(Addr::default, |snat| snat.ip().into()),
            snat_port: snat.map_or(0, |snat| snat.port().to_be()),
            client_port: from.port().to_be(),
            flags: if snat.is_some() { flag::MASQUERADE } else { 0 },
            forward: half::OPEN | half::CONFIRMED,
            reply: half::OPEN | half::CONFIRMED,
            slot,
            generation: GENERATION,
            ..Record::default()
        };
        let filter = bench.filter().unwrap();
        filter.mark_service(&sent.dst);
        filter.mark_flow(&sent, &record);
        filter.trust();
        bench.hash("FLOWS").unwrap().insert(sent, record, 0).unwrap();
        let leaving = tuple(from, endpoint, way.protocol).leaving();
        bench.hash("NAMES").unwrap().insert(leaving, Name::of(sent), 0).unwrap();
        if let Some(snat) = snat {
            let returning = tuple(endpoint, snat, way.protocol).at(Seen::Returning);
            bench.hash("NAMES").unwrap().insert(returning, Name::of(sent), 0).unwrap();
        }
    }

    /// A packet of its first connection.
    pub(crate) fn packet(&self) -> String {
        let place = self.way.place(self.first + self.order.first().unwrap());
        self.text(place)
    }

    fn text(&self, place: SocketAddr) -> String {
        let fixed = self.way.fixed();
        let (src, dst) = match self.way.step {
            Step::Dnat | Step::UnSnat => (fixed, place),
            Step::Snat | Step::UnDnat => (place, fixed),
        };
        match self.way.protocol {
            UDP => format!("udp {src} > {dst} len=10"),
            _ => format!("tcp {src} > {dst} ack len=10"),
        }
    }

    /// The yardstick's packet: what it is to look at, and the first key.
    pub(crate) fn key(&self) -> Vec<u8> {
        let (way, fixed) = (self.way, self.way.fixed());
        let place = way.place(self.first + self.order.first().unwrap());
        let (key, field, moves) = match way.step {
            Step::Dnat => (tuple(fixed, place, way.protocol), u8::from(way.protocol == UDP), place),
            Step::Snat => (tuple(place, fixed, way.protocol).leaving(), 0, place),
            Step::UnSnat => (tuple(fixed, place, way.protocol).at(Seen::Returning), 1, place),
            Step::UnDnat => (tuple(fixed, place, way.protocol).leaving(), 2, place),
        };
        let is_destination = key.dst == Addr::from(moves.ip());
        let leaves = matches!(way.step, Step::Snat | Step::UnDnat);
        let mut bytes = vec![field, u8::from(is_destination), u8::from(leaves)];
        bytes.resize(16, 0);
        bytes.extend([key.src, key.dst].iter().flat_map(|it| it.words).flat_map(u32::to_ne_bytes));
        bytes.extend([key.src_port, key.dst_port].iter().flat_map(|port| port.to_ne_bytes()));
        bytes.extend([key.protocol, key.seen, 0, 0]);
        bytes
    }

    /// Makes sure that the way is the one that is meant: each packet becomes the next, and after a
    /// round the first again.
    pub(crate) fn goes_round(&self, bench: &mut Bench) {
        let bytes = frame(&self.packet());
        let second = self.way.place(self.first + self.order.get(1).unwrap());
        let once = bench.run(self.way.program, &bytes, 1, 1).unwrap();
        assert_eq!(show(once.packet, false), show(&frame(&self.text(second)), false));
        let n = u32::try_from(self.order.len()).unwrap();
        let round = bench.run(self.way.program, &bytes, 1, n).unwrap();
        assert_eq!(show(round.packet, false), show(&bytes, false), "{}", self.way.name);
        let key = self.key();
        let yardstick = self.way.yardstick();
        let once = bench.run(yardstick, &key, 1, 1).unwrap();
        assert!(once.action == -1 && once.packet != key, "{}: no step", self.way.name);
        let round = bench.run(yardstick, &key, 1, n).unwrap();
        assert!(round.action == -1 && round.packet == key, "{}: no circle", self.way.name);
    }
}

/// A Service with one endpoint.
fn service(bench: &mut Bench, slot: u32, vip: SocketAddr, endpoint: SocketAddr, protocol: u8) {
    let head = Head::new(slot, 1, GENERATION);
    let rules = Rules::new(slot, 0, Kind::ClusterIp, false);
    let entry = Slot { heads: [head; N_HEADS], rules, ..Slot::default() };
    bench.array::<Slot>("SLOTS").unwrap().set(slot, entry, 0).unwrap();
    let endpoint = Endpoint {
        addr: endpoint.ip().into(),
        port: endpoint.port().to_be(),
        generation: GENERATION,
        ..Endpoint::default()
    };
    bench.array::<Endpoint>("ENDPOINTS").unwrap().set(slot, endpoint, 0).unwrap();
    let key = FrontendKey::new(vip.ip().into(), vip.port().to_be(), protocol);
    bench.hash("FRONTENDS").unwrap().insert(key, FrontendValue::new(&key, slot), 0).unwrap();
}

fn tuple(src: SocketAddr, dst: SocketAddr, protocol: u8) -> Tuple {
    Tuple {
        src: src.ip().into(),
        dst: dst.ip().into(),
        src_port: src.port().to_be(),
        dst_port: dst.port().to_be(),
        protocol,
        seen: Seen::Sent as u8,
        pad: 0,
    }
}

/// The numbers below `n` in an order that no prefetcher knows, the same every time.
pub(crate) fn shuffled(n: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for last in (1..order.len()).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let other = usize::try_from(random % (last as u64 + 1)).unwrap();
        order.swap(last, other);
    }
    order
}
