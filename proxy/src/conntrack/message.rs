//! The messages of ctnetlink that are needed to dump UDP flows and to delete one. `[pure]`
//!
//! ```text
//! netlink header 16 | family, version, id 4 | attributes: length 2, type 2, value, padding to 4
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use model::name::Family;

use crate::netlink::attributes::{
    self, ACK, Attributes, DONE, DUMP, ERROR, NESTED, REQUEST, attribute, error_of, messages,
};

/// A flow, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    /// Who sent its first packet.
    pub(super) from: SocketAddr,
    /// Whom its first packet was sent to.
    pub(super) to: SocketAddr,
    /// Who answers.
    pub(super) answered_by: SocketAddr,
    /// What the kernel says of it: [`DST_NAT`], [`ASSURED`].
    pub(super) status: u32,
    /// What names it, as the kernel wrote it: the original tuple, the id and the zone.
    name: Vec<u8>,
}

/// One message of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A flow.
    Flow(Flow),
    /// There are no more.
    Done,
    /// An error's number; 0 for none.
    Error(i32),
}

const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
/// Of the status: packets went to and fro for a while.
pub(super) const ASSURED: u32 = 1 << 2;
/// Of the status: the destination is another one.
pub(super) const DST_NAT: u32 = 1 << 5;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const UDP: u8 = 17;

/// Asks for the UDP flows of a family. Kernels from 5.8 on send no others.
pub(super) fn dump(family: Family) -> Vec<u8> {
    const BY_PROTOCOL: u32 = 1 << 3;
    let protocol = attribute(1, &[UDP]);
    let tuple = attribute(TUPLE_ORIG | NESTED, &attribute(2 | NESTED, &protocol));
    let flags = [attribute(1, &BY_PROTOCOL.to_ne_bytes()), attribute(2, &0_u32.to_ne_bytes())];
    let filter = attribute(FILTER | NESTED, &flags.concat());
    message(GET, REQUEST | DUMP, family, &[tuple, filter].concat())
}

/// Asks for all flows of a family.
pub(super) fn dump_all(family: Family) -> Vec<u8> {
    message(GET, REQUEST | DUMP, family, &[])
}

/// What a datagram tells of translated flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Translated {
    /// How many it has.
    pub(super) n: usize,
    /// That no more datagrams follow: an error's number, 0 for none.
    pub(super) end: Option<i32>,
}

/// Counts the translated flows in a datagram.
pub(super) fn translated(datagram: &[u8]) -> Translated {
    let mut told = Translated::default();
    for (kind, payload) in messages(datagram) {
        match kind {
            DONE => told.end = Some(0),
            ERROR => told.end = Some(error_of(payload)),
            _ => {
                let status = |(kind, value): (u16, &[u8])| (kind == STATUS).then(|| be32(value))?;
                let attributes = payload.get(4..).unwrap_or_default();
                let status = Attributes(attributes).find_map(status).unwrap_or_default();
                told.n += usize::from(status & DST_NAT != 0);
            }
        }
    }
    told
}

/// Deletes a flow.
pub(super) fn delete(family: Family, flow: &Flow) -> Vec<u8> {
    message(DELETE, REQUEST | ACK, family, &flow.name)
}

/// Reads a datagram of messages; flows of other protocols are left out.
pub(super) fn parse(datagram: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    for (kind, payload) in messages(datagram) {
        match kind {
            DONE => answers.push(Answer::Done),
            ERROR => answers.push(Answer::Error(error_of(payload))),
            _ => answers.extend(payload.get(4..).and_then(flow).map(Answer::Flow)),
        }
    }
    answers
}

fn flow(attributes: &[u8]) -> Option<Flow> {
    let (mut ends, mut answered_by, mut status, mut name) = (None, None, 0, Vec::new());
    for (kind, value) in Attributes(attributes) {
        match kind {
            TUPLE_ORIG => {
                ends = tuple(value);
                name.extend(attribute(TUPLE_ORIG | NESTED, value));
            }
            TUPLE_REPLY => answered_by = tuple(value).map(|(from, _)| from),
            STATUS => status = be32(value).unwrap_or_default(),
            ID | ZONE => name.extend(attribute(kind, value)),
            _ => {}
        }
    }
    let (from, to) = ends?;
    Some(Flow { from, to, answered_by: answered_by?, status, name })
}

/// Source and destination, of UDP.
fn tuple(attributes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (mut from, mut to) = (None, None);
    let (mut from_port, mut to_port, mut protocol) = (None, None, None);
    for (kind, value) in Attributes(attributes) {
        for (inner, value) in Attributes(value) {
            match (kind, inner) {
                (1, 1 | 3) => from = address(value),
                (1, 2 | 4) => to = address(value),
                (2, 1) => protocol = value.first().copied(),
                (2, 2) => from_port = port(value),
                (2, 3) => to_port = port(value),
                _ => {}
            }
        }
    }
    (protocol? == UDP)
        .then_some((SocketAddr::new(from?, from_port?), SocketAddr::new(to?, to_port?)))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(|octets| Ipv4Addr::from(octets).into());
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(|octets| Ipv6Addr::from(octets).into())).ok()
}

fn port(value: &[u8]) -> Option<u16> {
    value.try_into().ok().map(u16::from_be_bytes)
}

fn be32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

fn message(kind: u16, flags: u16, family: Family, attributes: &[u8]) -> Vec<u8> {
    let family = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    attributes::message(kind, flags, &[family, 0, 0, 0], attributes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::conntrack) fn flow(to: &str, answered_by: &str) -> Flow {
        let (to, answered_by) = (to.parse().unwrap(), answered_by.parse().unwrap());
        let from = "10.244.1.3:4711".parse().unwrap();
        Flow { from, to, answered_by, status: 0, name: Vec::new() }
    }

    #[test]
    fn translated_flows_are_counted_by_their_status() {
        let status = |status: u32| attribute(STATUS, &status.to_be_bytes());
        let of = |status: Vec<u8>| message(GET, 0, Family::V4, &status);
        let datagram = [of(status(0x1ae)), of(status(0x18e)), of(Vec::new())].concat();
        assert_eq!(translated(&datagram), Translated { n: 1, end: None });
        let done = message(DONE, 0, Family::V4, &[]);
        assert_eq!(translated(&done), Translated { n: 0, end: Some(0) });
    }

    /// The attributes of a tuple, as the kernel writes them.
    fn tuple(from: [u8; 4], to: [u8; 4], ports: [u16; 2], protocol: u8) -> Vec<u8> {
        let ip = [attribute(1, &from), attribute(2, &to)].concat();
        let [from, to] = ports.map(u16::to_be_bytes);
        let proto = [attribute(1, &[protocol]), attribute(2, &from), attribute(3, &to)].concat();
        [attribute(1 | NESTED, &ip), attribute(2 | NESTED, &proto)].concat()
    }

    #[test]
    fn a_dump_is_read_and_its_flows_are_named_as_the_kernel_names_them() {
        let (pod, vip, endpoint) = ([10, 244, 1, 3], [10, 96, 0, 10], [10, 244, 1, 2]);
        let attributes = |protocol| {
            [
                attribute(TUPLE_ORIG | NESTED, &tuple(pod, vip, [4711, 53], protocol)),
                attribute(TUPLE_REPLY | NESTED, &tuple(endpoint, pod, [5353, 4711], protocol)),
                attribute(3, &[0, 0, 0, 8]),
                attribute(ID, &[1, 2, 3, 4]),
            ]
            .concat()
        };
        let mut datagram = message(0x0100, 0, Family::V4, &attributes(UDP));
        datagram.extend(message(0x0100, 0, Family::V4, &attributes(6)));
        datagram.extend([16, 0, 0, 0, 3, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let answers = parse(&datagram);
        let [Answer::Flow(flow), Answer::Done] = &*answers else { panic!("{answers:?}") };
        assert_eq!(flow.from, "10.244.1.3:4711".parse().unwrap());
        assert_eq!(flow.to, "10.96.0.10:53".parse().unwrap());
        assert_eq!(flow.status, 8);
        assert_eq!(flow.answered_by, "10.244.1.2:5353".parse().unwrap());
        let name = [
            attribute(TUPLE_ORIG | NESTED, &tuple(pod, vip, [4711, 53], UDP)),
            attribute(ID, &[1, 2, 3, 4]),
        ];
        assert_eq!(flow.name, name.concat());
    }

    #[test]
    fn an_error_has_its_number() {
        let mut error = [20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
        error.extend((-2_i32).to_ne_bytes());
        assert_eq!(parse(&error), [Answer::Error(2)]);
    }
}
