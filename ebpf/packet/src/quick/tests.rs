//! What a name is believed for, and what is counted by it.

extern crate std;

use std::vec::Vec;

use abi::addr::Addr;
use abi::flow::{Record, Seen, Tuple, half};

use crate::decide::{self, Verdict};
use crate::flow;
use crate::memory::{Frame, Memory, Services};
use crate::packet::Packet as _;
use crate::parse::{Parsed, TCP, parse, tcp};
use crate::tables::{Choice, Found, Stage, Tables as _};

const CLIENT: [u8; 4] = [10, 0, 0, 1];
const FRONTEND: [u8; 4] = [10, 96, 0, 10];
const ENDPOINT: [u8; 4] = [10, 0, 0, 2];

/// No Service: what is known is known by connections.
#[derive(Debug)]
struct Nothing;

impl Services for Nothing {
    fn find(&self, _: &Addr, _: u16, _: u8) -> Found {
        Found::Stranger
    }
    fn is_cluster_ip(&self, _: &Addr) -> bool {
        false
    }
    fn is_ours(&self, _: &Addr) -> bool {
        false
    }
    fn concerns(&self, _: &Addr) -> bool {
        false
    }
    fn is_pod(&self, _: &Addr) -> bool {
        false
    }
    fn choose(&self, _: u32, _: &Addr, _: bool, _: u32) -> Choice {
        Choice::Nobody
    }
    fn generation(&self, _: u32) -> u32 {
        0
    }
    fn serves(&self, _: u32, _: &Addr, _: u16) -> Option<u32> {
        None
    }
    fn device(&self, _: bool) -> Option<Addr> {
        None
    }
}

fn addr(bytes: [u8; 4]) -> Addr {
    Addr::from_v4(u32::from_ne_bytes(bytes))
}

fn sent() -> Tuple {
    Tuple {
        src: addr(CLIENT),
        dst: addr(FRONTEND),
        src_port: 40_000u16.to_be(),
        dst_port: 80u16.to_be(),
        protocol: TCP,
        seen: Seen::Sent as u8,
        pad: 0,
    }
}

/// One connection whose client has proved that it exists.
fn established() -> Memory<Nothing> {
    established_after(half::OPEN)
}

/// The same; its endpoint has done that.
fn established_after(reply: u8) -> Memory<Nothing> {
    let memory = Memory::new(Nothing);
    memory.now.set(100);
    memory.add_new(&sent(), |record| {
        *record = Record {
            endpoint: addr(ENDPOINT),
            endpoint_port: 8080u16.to_be(),
            client_port: sent().src_port,
            forward: half::OPEN | half::CONFIRMED,
            reply,
            ..Record::default()
        };
    });
    let live = memory.flow(Stage::New, &sent()).unwrap();
    memory.renew(live, &sent());
    memory.establish(live, &sent());
    memory
}

/// A segment of the endpoint's to its client.
fn reply(flags: u8) -> Frame {
    let mut bytes = Vec::from([0; 12]);
    bytes.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, TCP, 0, 0]);
    bytes.extend(ENDPOINT);
    bytes.extend(CLIENT);
    bytes.extend(8080u16.to_be_bytes());
    bytes.extend(40_000u16.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0, 0, 0, 0, 0, 0]);
    Frame::new(&bytes)
}

/// What the quick way makes of a reply, and what its source is then.
fn quickly(memory: &Memory<Nothing>, flags: u8) -> (Verdict, [u8; 4]) {
    let mut frame = reply(flags);
    let mut parsed = Parsed::default();
    parse(&frame, 14, 0x0800u16.to_be(), &mut parsed).unwrap();
    let verdict = super::leaves(&mut frame, memory, &mut parsed);
    (verdict, frame.load(26).unwrap())
}

/// The same of the whole way.
fn wholly(memory: &Memory<Nothing>, flags: u8) -> [u8; 4] {
    let mut frame = reply(flags);
    let mut parsed = Parsed::default();
    parse(&frame, 14, 0x0800u16.to_be(), &mut parsed).unwrap();
    assert_eq!(decide::leaves(&mut frame, memory, &mut parsed, false), Verdict::PASS);
    frame.load(26).unwrap()
}

fn counted(memory: &Memory<Nothing>) -> (u32, u64) {
    let live = memory.flow(Stage::Established, &sent()).unwrap();
    (live.reply_packets(), live.reply_bytes())
}

#[test]
fn a_name_is_believed_for_the_second_in_which_it_was_compared() {
    let memory = established();
    assert_eq!(quickly(&memory, tcp::ACK), (Verdict::UNKNOWN, ENDPOINT));
    assert_eq!(wholly(&memory, tcp::ACK), FRONTEND);
    assert_eq!(quickly(&memory, tcp::ACK), (Verdict::PASS, FRONTEND));
    memory.now.set(101);
    assert_eq!(quickly(&memory, tcp::ACK), (Verdict::UNKNOWN, ENDPOINT));
}

#[test]
fn a_connection_is_known_by_its_names_as_soon_as_it_is_established() {
    let memory = established_after(half::OPEN | half::CONFIRMED);
    assert_eq!(quickly(&memory, tcp::ACK), (Verdict::PASS, FRONTEND));
    memory.now.set(101);
    assert_eq!(quickly(&memory, tcp::ACK), (Verdict::UNKNOWN, ENDPOINT));
}

#[test]
fn a_name_without_its_record_is_nothing_from_the_next_second_on() {
    let memory = established();
    assert_eq!(wholly(&memory, tcp::ACK), FRONTEND);
    memory.remove_flow(Stage::Established, &sent());
    memory.now.set(101);
    assert_eq!(wholly(&memory, tcp::ACK), ENDPOINT);
}

#[test]
fn what_a_name_counts_is_added_to_the_record_when_they_are_compared() {
    let memory = established();
    for _ in 0..3 {
        assert_eq!(wholly(&memory, tcp::ACK), FRONTEND);
    }
    assert_eq!(counted(&memory), (1, 40));
    memory.now.set(101);
    wholly(&memory, tcp::ACK);
    assert_eq!(counted(&memory), (4, 160));
}

#[test]
fn the_end_of_a_connection_is_noted_in_its_record_at_once() {
    let memory = established();
    wholly(&memory, tcp::ACK);
    wholly(&memory, tcp::ACK);
    assert_eq!(quickly(&memory, tcp::ACK | tcp::FIN).0, Verdict::UNKNOWN);
    wholly(&memory, tcp::ACK | tcp::FIN);
    let live = memory.flow(Stage::Established, &sent()).unwrap();
    assert_ne!(live.reply() & half::FIN, 0);
    assert_eq!(counted(&memory), (3, 120));
    // What follows changes nothing, but for a reset.
    assert_eq!(quickly(&memory, tcp::ACK), (Verdict::PASS, FRONTEND));
    assert_eq!(quickly(&memory, tcp::RST).0, Verdict::UNKNOWN);
    wholly(&memory, tcp::RST);
    assert_ne!(live.reply() & half::RESET, 0);
    assert_eq!(quickly(&memory, tcp::ACK).0, Verdict::UNKNOWN);
}

#[test]
fn a_port_that_another_connection_gave_away_leads_to_the_one_that_took_it() {
    let memory = Memory::new(Nothing);
    memory.now.set(100);
    let node = addr([10, 0, 0, 9]);
    let masqueraded = |sent: &Tuple, forward, reply| Record {
        endpoint: addr(ENDPOINT),
        endpoint_port: 8080u16.to_be(),
        client_port: sent.src_port,
        snat: node,
        snat_port: 60_000u16.to_be(),
        forward,
        reply,
        seen: 100,
        ..Record::default()
    };
    let ended = half::OPEN | half::CONFIRMED | half::FIN;
    memory.add_new(&sent(), |record| *record = masqueraded(&sent(), ended, ended));
    let live = memory.flow(Stage::New, &sent()).unwrap();
    let name = live.returning(&sent(), &node, 60_000u16.to_be());
    memory.establish(live, &sent());

    let another = Tuple { src_port: 40_001u16.to_be(), ..sent() };
    assert!(!memory.claim(Stage::New, &name, &another, false), "its endpoint may remember it");
    memory.now.set(200);
    assert!(memory.claim(Stage::New, &name, &another, false));
    memory.add_new(&another, |record| *record = masqueraded(&another, half::OPEN, 0));
    let mut key = name;
    let found = flow::by_name(&memory, &name, &mut key).unwrap();
    assert_eq!((found.stage, key), (Stage::New, another));
}
