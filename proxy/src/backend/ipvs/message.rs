//! The messages of IPVS' generic netlink family. `[pure]`

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use model::name::{Family, Protocol};

use super::item::{FLAGS, Head, PERSISTENT, VirtualKey};
use crate::netlink::attributes::{
    ACK, Attributes, DUMP, NESTED, REQUEST, attribute, message, u16_at, u32_at,
};

/// What is told of a virtual service.
pub(super) type Told = (VirtualKey, Head);

/// A destination of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Destination {
    /// Where it listens.
    pub(super) at: SocketAddr,
    /// How often it is chosen.
    pub(super) weight: u32,
    /// Its connections, those that have ended included.
    pub(super) n_connections: u64,
}

/// What is asked of IPVS.
#[derive(Clone, Copy, Debug)]
pub(super) enum Command<'a> {
    /// A new virtual service.
    New(&'a VirtualKey, &'a Head),
    /// It chooses otherwise.
    Set(&'a VirtualKey, &'a Head),
    /// It goes.
    Delete(&'a VirtualKey),
    /// A new destination.
    NewDestination(&'a VirtualKey, SocketAddr, u32),
    /// It is chosen otherwise.
    SetDestination(&'a VirtualKey, SocketAddr, u32),
    /// It goes.
    DeleteDestination(&'a VirtualKey, SocketAddr),
    /// For how long connections are kept: of TCP, after FIN, of UDP. Zero leaves it as it is.
    Timeouts([Duration; 3]),
}

/// `CTRL_CMD_GETFAMILY`, of the family that gives families their numbers.
pub(super) fn ask_family() -> Vec<u8> {
    const CONTROLLER: u16 = 0x10;
    let name = attribute(2, b"IPVS\0");
    message(CONTROLLER, REQUEST | ACK, &[3, 1, 0, 0], &name)
}

/// The family's number in the answer.
pub(super) fn family(payload: &[u8]) -> Option<u16> {
    let number = |(kind, value): (u16, &[u8])| (kind == 1).then(|| u16_at(value, 0))?;
    Attributes(payload.get(4..)?).find_map(number)
}

/// Asks for all virtual services.
pub(super) fn ask_virtuals(family: u16) -> Vec<u8> {
    message(family, REQUEST | DUMP, &[4, 1, 0, 0], &[])
}

/// Asks for the destinations of one.
pub(super) fn ask_destinations(family: u16, key: &VirtualKey) -> Vec<u8> {
    let service = attribute(SERVICE | NESTED, &name(key));
    message(family, REQUEST | DUMP, &[8, 1, 0, 0], &service)
}

const SERVICE: u16 = 1;
const DESTINATION: u16 = 2;

/// A command.
pub(super) fn command(family: u16, command: Command<'_>) -> Vec<u8> {
    let service =
        |key, more: &[u8]| attribute(SERVICE | NESTED, &[name(key).as_slice(), more].concat());
    let destination = |key, at, more: &[u8]| {
        let what = attribute(DESTINATION | NESTED, &[place(at).as_slice(), more].concat());
        [service(key, &[]), what].concat()
    };
    let (number, attributes) = match command {
        Command::New(key, how) => (1, service(key, &head(key, how))),
        Command::Set(key, how) => (2, service(key, &head(key, how))),
        Command::Delete(key) => (3, service(key, &[])),
        Command::NewDestination(key, at, weight) => (5, destination(key, at, &weighted(weight))),
        Command::SetDestination(key, at, weight) => (6, destination(key, at, &weighted(weight))),
        Command::DeleteDestination(key, at) => (7, destination(key, at, &[])),
        Command::Timeouts(timeouts) => {
            let seconds = timeouts.map(|it| u32::try_from(it.as_secs()).unwrap_or(u32::MAX));
            let attributes = [4, 5, 6].into_iter().zip(seconds);
            let attributes = attributes.flat_map(|(kind, it)| attribute(kind, &it.to_ne_bytes()));
            (12, attributes.collect())
        }
    };
    message(family, REQUEST | ACK, &[number, 1, 0, 0], &attributes)
}

/// What names a virtual service.
fn name(key: &VirtualKey) -> Vec<u8> {
    let family = match key.family() {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    };
    let family = attribute(1, &family.to_ne_bytes());
    let rest = match key {
        VirtualKey::At(at, protocol) => {
            let protocol: u16 = match protocol {
                Protocol::Tcp => 6,
                Protocol::Udp => 17,
                Protocol::Sctp => 132,
            };
            let protocol = attribute(2, &protocol.to_ne_bytes());
            let address = attribute(3, &octets(at.ip()));
            [protocol, address, attribute(4, &at.port().to_be_bytes())].concat()
        }
        VirtualKey::Mark(_, mark) => attribute(5, &mark.to_ne_bytes()),
    };
    [family, rest].concat()
}

fn head(key: &VirtualKey, head: &Head) -> Vec<u8> {
    let scheduler = [head.scheduler.as_bytes(), &[0]].concat();
    let flags = [head.flags.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat();
    // A client is one address.
    let mask: u32 = match key.family() {
        Family::V4 => u32::MAX,
        Family::V6 => 128,
    };
    [
        attribute(6, &scheduler),
        attribute(7, &flags),
        attribute(8, &head.timeout.to_ne_bytes()),
        attribute(9, &mask.to_ne_bytes()),
    ]
    .concat()
}

fn place(at: SocketAddr) -> Vec<u8> {
    let family = if at.is_ipv4() { AF_INET } else { AF_INET6 };
    [
        attribute(1, &octets(at.ip())),
        attribute(2, &at.port().to_be_bytes()),
        attribute(11, &family.to_ne_bytes()),
    ]
    .concat()
}

/// By translation, and no bounds to how many connections it gets.
fn weighted(weight: u32) -> Vec<u8> {
    const TRANSLATED: u32 = 0;
    let numbers = [TRANSLATED, weight, 0, 0];
    let attributes = (3_u16..).zip(numbers);
    attributes.flat_map(|(kind, number)| attribute(kind, &number.to_ne_bytes())).collect()
}

/// The kernel takes sixteen of either family.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let mut octets = [0; 16];
            for (to, from) in octets.iter_mut().zip(v4.octets()) {
                *to = from;
            }
            octets
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A virtual service that the kernel tells of.
pub(super) fn told(payload: &[u8]) -> Option<Told> {
    let (_, attributes) = Attributes(payload.get(4..)?).find(|(kind, _)| *kind == SERVICE)?;
    let of: BTreeMap<u16, &[u8]> = Attributes(attributes).collect();
    let family = of.get(&1).and_then(|value| u16_at(value, 0))?;
    let key = if let Some(mark) = of.get(&5).and_then(|value| u32_at(value, 0)) {
        VirtualKey::Mark(if family == AF_INET { Family::V4 } else { Family::V6 }, mark)
    } else {
        let protocol = match of.get(&2).and_then(|value| u16_at(value, 0))? {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            132 => Protocol::Sctp,
            _ => return None,
        };
        let ip = address(family, of.get(&3)?)?;
        VirtualKey::At(SocketAddr::new(ip, port(of.get(&4)?)?), protocol)
    };
    let scheduler = of.get(&6)?.split(|byte| *byte == 0).next()?;
    let scheduler = String::from_utf8_lossy(scheduler).into_owned();
    let flags = of.get(&7).and_then(|value| u32_at(value, 0)).unwrap_or_default() & FLAGS;
    let timeout = of.get(&8).and_then(|value| u32_at(value, 0)).unwrap_or_default();
    // Who is not remembered is not for any time.
    let timeout = if flags & PERSISTENT == 0 { 0 } else { timeout };
    Some((key, Head { scheduler, flags, timeout }))
}

/// A destination that it tells of.
pub(super) fn told_destination(payload: &[u8], family: Family) -> Option<Destination> {
    let (_, attributes) = Attributes(payload.get(4..)?).find(|(kind, _)| *kind == DESTINATION)?;
    let of: BTreeMap<u16, &[u8]> = Attributes(attributes).collect();
    let number = |kind| of.get(&kind).and_then(|value| u32_at(value, 0)).unwrap_or_default();
    let family = match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    };
    let family = of.get(&11).and_then(|value| u16_at(value, 0)).unwrap_or(family);
    let at = SocketAddr::new(address(family, of.get(&1)?)?, port(of.get(&2)?)?);
    let n_connections = u64::from(number(7)) + u64::from(number(8));
    Some(Destination { at, weight: number(4), n_connections })
}

fn address(family: u16, value: &[u8]) -> Option<IpAddr> {
    if family == AF_INET {
        let octets: [u8; 4] = value.get(..4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets).into())
    } else {
        let octets: [u8; 16] = value.get(..16)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets).into())
    }
}

fn port(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.get(..2)?.try_into().ok()?))
}

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attributes::messages;

    /// What the kernel tells has the same attributes as what it is given.
    fn payload(message: &[u8]) -> Vec<u8> {
        messages(message).next().unwrap().1.to_vec()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let heads = [
            Head { scheduler: "rr".to_owned(), flags: 0, timeout: 0 },
            Head { scheduler: "mh".to_owned(), flags: FLAGS, timeout: 10_800 },
        ];
        let keys = [
            VirtualKey::At("10.96.0.10:53".parse().unwrap(), Protocol::Udp),
            VirtualKey::At("[fd00::1]:80".parse().unwrap(), Protocol::Sctp),
            VirtualKey::Mark(Family::V6, 0x4001),
        ];
        for key in keys {
            for head in &heads {
                let told = told(&payload(&command(33, Command::New(&key, head))));
                assert_eq!(told, Some((key, head.clone())));
            }
            let at = match key.family() {
                Family::V4 => "10.244.1.2:5353".parse().unwrap(),
                Family::V6 => "[fd00:1::2]:5353".parse().unwrap(),
            };
            let command = command(33, Command::NewDestination(&key, at, 7));
            let told = told_destination(&payload(&command), key.family());
            assert_eq!(told, Some(Destination { at, weight: 7, n_connections: 0 }));
        }
    }

    #[test]
    fn a_virtual_service_is_named_as_the_kernel_wants_it() {
        let key = VirtualKey::At("10.96.0.10:80".parse().unwrap(), Protocol::Tcp);
        let bytes = command(33, Command::Delete(&key));
        let expected = [
            &[68, 0, 0, 0, 33, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[3, 1, 0, 0],
            &[48, 0, 1, 0x80],
            &[6, 0, 1, 0, 2, 0, 0, 0],
            &[6, 0, 2, 0, 6, 0, 0, 0],
            &[20, 0, 3, 0, 10, 96, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[6, 0, 4, 0, 0, 80, 0, 0],
        ];
        assert_eq!(bytes, expected.concat());
    }

    #[test]
    fn the_familys_number_is_found() {
        let mut bytes = vec![1, 2, 0, 0];
        bytes.extend(attribute(2, b"IPVS\0"));
        bytes.extend(attribute(1, &[0x21, 0]));
        assert_eq!(family(&bytes), Some(0x21));
    }
}
