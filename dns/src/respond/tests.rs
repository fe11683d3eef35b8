//! Any packet, and what comes back.

use std::sync::Arc;

use hickory_proto::op::Message;
use model::cluster::Snapshot;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::config::Options;
use crate::name::WireName;
use crate::zone::Origin;
use crate::zone::tests::{Object, apply, objects};

const UDP: Ask = Ask { transport: Transport::Udp, turn: 0, allowed: true };

fn view(objects: &[Object]) -> ZoneView {
    let options =
        Arc::new(Options { addresses: vec!["10.0.0.1".parse().unwrap()], ..Options::default() });
    ZoneView::build(options, &apply(objects), Origin::Watch, 1)
}

fn query(name: &str, rtype: u16, opt: &[u8]) -> Vec<u8> {
    let mut packet = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(!opt.is_empty())];
    packet.extend(WireName::parse(name).unwrap().wire());
    packet.extend(rtype.to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(opt);
    packet
}

#[test]
fn what_is_rejected_is_told_with_what_was_understood() {
    let view = ZoneView::build(Arc::default(), &Snapshot::default(), Origin::Watch, 1);
    let mut out = [0; LARGEST_UDP];
    // Opcode 5, UPDATE: header alone.
    let update = [0, 7, 0x29, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 1];
    let reply = respond(&view, &update, UDP, &mut out).unwrap();
    assert_eq!(&out[..reply.len], [0, 7, 0xa9, 0x84, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((reply.rcode, reply.rtype), (Rcode::NotImp, None));
    // EDNS version 1: the question and an OPT that says BADVERS and 0.
    let opt = [0, 0, 41, 4, 208, 0, 1, 0, 0, 0, 0];
    let reply = respond(&view, &query("a.b", 1, &opt), UDP, &mut out).unwrap();
    let message = Message::from_vec(&out[..reply.len]).unwrap();
    assert_eq!(message.queries.len(), 1);
    let edns = message.edns.unwrap();
    assert_eq!((edns.version(), edns.rcode_high()), (0, 1));
    assert_eq!(respond(&view, &[0; 4], UDP, &mut out), Err(Drop::Short));
}

#[test]
fn a_name_of_the_longest_kind_is_answered() {
    let view = ZoneView::build(Arc::default(), &Snapshot::default(), Origin::Watch, 1);
    let label = "a".repeat(63);
    let name = format!("{label}.{label}.{label}.{}.cluster.local", "a".repeat(47));
    let mut out = [0; LARGEST_UDP];
    let opt = [0, 0, 41, 2, 0, 0, 0, 0, 0, 0, 0];
    let reply = respond(&view, &query(&name, 1, &opt), UDP, &mut out).unwrap();
    assert_eq!(reply.rcode, Rcode::NxDomain);
    assert!(reply.len <= PLAIN_UDP && !reply.truncated);
    Message::from_vec(&out[..reply.len]).unwrap();
}

/// Names that are likely to hit something, with anything in front.
fn names() -> impl Strategy<Value = String> {
    let label = prop_oneof![
        Just("web"),
        Just("db"),
        Just("shop"),
        Just("svc"),
        Just("pod"),
        Just("_tcp"),
        Just("_http"),
        Just("host-0"),
        Just("10-0-0-1"),
        Just("fd00--1"),
        Just("dns"),
        Just("ns"),
        Just("dns-version"),
        Just("1"),
        Just("0"),
        Just("10"),
    ];
    let zone = prop_oneof![
        4 => Just("svc.cluster.local"), 1 => Just("cluster.LOCAL"), 1 => Just("in-addr.arpa"), 1 => Just("example.com"),
    ];
    (vec(label, 0..5), zone).prop_map(|(mut labels, zone)| {
        labels.push(zone);
        labels.join(".")
    })
}

proptest! {
    #[test]
    fn whatever_arrives_the_reply_is_whole_and_within_limits(packet in vec(any::<u8>(), 0..600)) {
        let view = view(&[]);
        let mut out = [0; LARGEST_UDP];
        if let Ok(reply) = respond(&view, &packet, UDP, &mut out) {
            prop_assert!(reply.len <= LARGEST_UDP);
            Message::from_vec(&out[..reply.len]).unwrap();
        }
    }

    #[test]
    fn every_answer_is_read_by_others_and_fits(
        objects in objects(),
        name in names(),
        rtype in prop_oneof![Just(1_u16), Just(28), Just(33), Just(12), Just(5), Just(6), Just(2), Just(16)],
        size in 0..5000_u16,
        turn: usize,
    ) {
        let view = view(&objects);
        let mut out = vec![0; LARGEST_TCP];
        let [hi, lo] = size.to_be_bytes();
        let packet = query(&name, rtype, &[0, 0, 41, hi, lo, 0, 0, 0, 0, 0, 0]);
        let reply = respond(&view, &packet, Ask { turn, ..UDP }, &mut out).unwrap();
        prop_assert!(reply.len <= usize::from(size).clamp(PLAIN_UDP, LARGEST_UDP));
        let cut = Message::from_vec(&out[..reply.len]).unwrap();
        let tcp = Ask { transport: Transport::Tcp, turn, allowed: true };
        let reply = respond(&view, &packet, tcp, &mut out).unwrap();
        let whole = Message::from_vec(&out[..reply.len]).unwrap();
        prop_assert!(!whole.metadata.truncation);
        prop_assert_eq!(cut.metadata.truncation, cut.answers.len() < whole.answers.len());
        prop_assert_eq!(&cut.answers[..], &whole.answers[..cut.answers.len()]);
        // Nothing is an answer, or it is said to be nothing by the SOA.
        let is_empty = whole.answers.is_empty() && reply.in_zone;
        prop_assert_eq!(is_empty, whole.answers.is_empty() && whole.authorities.len() == 1);
        // No record is told twice.
        for (idx, record) in whole.all_sections().enumerate() {
            prop_assert!(!whole.all_sections().take(idx).any(|before| before == record), "{record}");
        }
    }
}
