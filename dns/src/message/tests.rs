//! Packets as clients send them, and as they should not.

use super::*;
use crate::name::WireName;

/// A query for `a.b A IN` with these flags and counts, and these bytes behind the question.
fn packet(flags: [u8; 2], counts: [u16; 4], rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34];
    packet.extend(flags);
    packet.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    packet.extend(WireName::parse("a.b").unwrap().wire());
    packet.extend([0, 1, 0, 1]);
    packet.extend(rest);
    packet
}

fn rcode(packet: &[u8]) -> Result<Option<Edns>, Option<Rcode>> {
    match Query::parse(packet) {
        Ok(query) => Ok(query.edns),
        Err(Rejected::Silently(_)) => Err(None),
        Err(Rejected::With { rcode, .. }) => Err(Some(rcode)),
    }
}

const ONE: [u16; 4] = [1, 0, 0, 0];
const ONE_AND_MORE: [u16; 4] = [1, 0, 0, 1];
const FORMERR: Result<Option<Edns>, Option<Rcode>> = Err(Some(Rcode::FormErr));
/// An OPT record: 4096 octets, version 0, DO, no options.
const OPT: [u8; 11] = [0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0, 0];
/// An A record of the question's name.
const A: [u8; 16] = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 1, 2, 3, 4];

#[test]
fn a_plain_query_is_read() {
    let packet = packet([0x01, 0x10], ONE, &[]);
    let query = Query::parse(&packet).unwrap();
    assert_eq!(query.head.id, 0x1234);
    assert!(query.head.recursion_desired && query.head.checking_disabled);
    assert_eq!((query.rtype, query.class), (RecordType::A, 1));
    assert_eq!(query.question, b"\x01a\x01b\0\0\x01\0\x01");
    assert_eq!(query.edns, None);
}

#[test]
fn edns_is_found_behind_other_records() {
    let edns = Edns { udp_size: 4096, version: 0, dnssec_ok: true };
    assert_eq!(rcode(&packet([0, 0], ONE_AND_MORE, &OPT)), Ok(Some(edns)));
    let both = [&A[..], &OPT].concat();
    assert_eq!(rcode(&packet([0, 0], [1, 0, 0, 2], &both)), Ok(Some(edns)));
    assert_eq!(rcode(&packet([0, 0], [1, 0, 1, 1], &both)), Ok(Some(edns)));
    let cookie = [&OPT[..9], &[0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]].concat();
    assert_eq!(rcode(&packet([0, 0], ONE_AND_MORE, &cookie)), Ok(Some(edns)));
    // What follows the last record is nobody's.
    assert_eq!(rcode(&packet([0, 0], ONE, b"junk")), Ok(None));
}

#[test]
fn malformed_edns_is_a_format_error() {
    for (counts, rest) in [
        (ONE_AND_MORE, &OPT[..10]),
        (ONE_AND_MORE, &[]),
        ([1, 0, 0, 2], &[OPT, OPT].concat()[..]),
        ([1, 0, 1, 0], &OPT[..]),
        (ONE_AND_MORE, &[&[1, b'a'], &OPT[..]].concat()[..]),
        // An option longer than the record, and half of an option.
        (ONE_AND_MORE, &[&OPT[..9], &[0, 4, 0, 10, 0, 8]].concat()[..]),
        (ONE_AND_MORE, &[&OPT[..9], &[0, 3, 0, 10, 0]].concat()[..]),
        (ONE_AND_MORE, &[&OPT[..9], &[0, 4, 0, 10]].concat()[..]),
        (ONE_AND_MORE, &[0x40, 0, 41][..]),
    ] {
        assert_eq!(rcode(&packet([0, 0], counts, rest)), FORMERR, "{rest:?}");
    }
    let version_1 = [&OPT[..6], &[1], &OPT[7..]].concat();
    assert_eq!(rcode(&packet([0, 0], ONE_AND_MORE, &version_1)), Err(Some(Rcode::BadVers)));
}

#[test]
fn one_question_and_little_else() {
    for counts in [
        [0, 0, 0, 0],
        [2, 0, 0, 0],
        [1, 2, 0, 0],
        [1, 0, 2, 0],
        [1, 0, 0, 3],
        [256, 0, 0, 0],
        [1, 256, 0, 0],
        [1, 0, 0, 512],
    ] {
        assert_eq!(rcode(&packet([0, 0], counts, &A.repeat(3))), FORMERR, "{counts:?}");
    }
}

#[test]
fn questions_that_run_over_the_end_or_point_somewhere() {
    let whole = packet([0, 0], ONE, &[]);
    for end in HEADER..whole.len() {
        assert_eq!(rcode(&whole[..end]), FORMERR, "{end}");
    }
    let mut pointing = whole.clone();
    pointing[HEADER] = 0xc0;
    assert_eq!(rcode(&pointing), FORMERR);
}

#[test]
fn pseudo_types_cannot_be_asked_for() {
    for rtype in [0, 41, 249, 250] {
        let mut packet = packet([0, 0], ONE, &[]);
        packet[HEADER + 6] = rtype;
        assert_eq!(rcode(&packet), FORMERR);
    }
}

#[test]
fn silence_towards_fragments_and_responses() {
    assert_eq!(rcode(&[]), Err(None));
    assert_eq!(rcode(&[0; 11]), Err(None));
    assert_eq!(rcode(&packet([0x80, 0], ONE, &[])), Err(None));
    // A response with another opcode is a response all the same.
    assert_eq!(rcode(&packet([0xa8, 0], ONE, &[])), Err(None));
}

#[test]
fn other_opcodes_are_not_implemented() {
    for opcode in 1..16_u8 {
        assert_eq!(rcode(&packet([opcode << 3, 0], ONE, &[])), Err(Some(Rcode::NotImp)));
    }
}

#[test]
fn types_have_their_names_and_numbers() {
    assert_eq!(RecordType::parse("aaaa"), Some(RecordType::AAAA));
    assert_eq!(RecordType::parse("TYPE65"), Some(RecordType::HTTPS));
    assert_eq!(RecordType::parse("TYPE65536"), None);
    assert_eq!(RecordType(64000).to_string(), "TYPE64000");
}
