//! The device that has every Service's address, so that their packets come to this node's own IPVS.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use crate::netlink::attributes::{
    ACK, Attributes, DUMP, NESTED, REQUEST, attribute, message, u32_at,
};
use crate::netlink::talk::Talk;

/// Its name, kube-proxy's.
pub(super) const NAME: &str = "kube-ipvs0";

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;

/// The node's addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses {
    /// Those of the device.
    pub(super) ours: BTreeSet<IpAddr>,
    /// Those of others, loopback and link-local ones aside.
    pub(super) others: BTreeSet<IpAddr>,
}

/// Makes the device if there is none. It stays down, as kube-proxy's does: its addresses are the
/// node's nevertheless.
pub(super) fn create() -> io::Result<()> {
    if index().is_some() {
        return Ok(());
    }
    let name = attribute(3, &[NAME.as_bytes(), &[0]].concat());
    let kind = attribute(18 | NESTED, &attribute(1, b"dummy\0"));
    let flags = REQUEST | ACK | CREATE | EXCLUSIVE;
    let order = message(NEW_LINK, flags, &[0; 16], &[name, kind].concat());
    told_but(Talk::with(NETLINK_ROUTE)?.ask(&order), Errno::EEXIST)
}

/// Removes the device, and with it its addresses.
pub(super) fn remove() -> io::Result<()> {
    let Some(index) = index() else { return Ok(()) };
    let mut header = [0; 4].to_vec();
    header.extend(index.to_ne_bytes());
    header.extend([0; 8]);
    let order = message(DELETE_LINK, REQUEST | ACK, &header, &[]);
    told_but(Talk::with(NETLINK_ROUTE)?.ask(&order), Errno::ENODEV)
}

/// Whether there is such a device.
pub(super) fn is_there() -> bool {
    index().is_some()
}

/// Gives the device an address, or takes one away.
pub(super) fn set(talk: &Talk, address: IpAddr, is_there: bool) -> io::Result<()> {
    let index = index().ok_or_else(|| io::Error::from(Errno::ENODEV))?;
    let (family, octets) = match address {
        IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
    };
    let bits = u8::try_from(octets.len() * 8).unwrap_or(u8::MAX);
    let mut header = vec![family, bits, NO_DETECTION, 0];
    header.extend(index.to_ne_bytes());
    let mut attributes = [attribute(2, &octets), attribute(1, &octets)].concat();
    if address.is_ipv6() {
        attributes.extend(attribute(6, &DEPRECATED));
    }
    let (kind, flags, harmless) = if is_there {
        (NEW_ADDRESS, REQUEST | ACK | CREATE | EXCLUSIVE, Errno::EEXIST)
    } else {
        (DELETE_ADDRESS, REQUEST | ACK, Errno::EADDRNOTAVAIL)
    };
    told_but(talk.ask(&message(kind, flags, &header, &attributes)), harmless)
}

/// Reads the node's addresses.
pub(super) fn addresses() -> io::Result<Addresses> {
    let ours = index();
    let question = message(GET_ADDRESS, REQUEST | DUMP, &[0; 8], &[]);
    let mut addresses = Addresses::default();
    for (_, payload) in Talk::with(NETLINK_ROUTE)?.ask(&question)? {
        let Some((index, address)) = address(&payload) else { continue };
        if Some(index) == ours {
            addresses.ours.insert(address);
        } else if !address.is_loopback() && !is_link_local(&address) {
            addresses.others.insert(address);
        }
    }
    // The kernel gives a device that is up one by itself.
    addresses.ours.retain(|address| !is_link_local(address));
    Ok(addresses)
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `IFA_F_NODAD`: several nodes have the address, and none tells others of it.
const NO_DETECTION: u8 = 0x02;

/// Lifetimes, preferred and valid, and two times that the kernel keeps: valid for ever, and no
/// source for what is masqueraded as long as there is another.
const DEPRECATED: [u8; 16] = [0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0];

fn index() -> Option<u32> {
    if_nametoindex(NAME).ok()
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The device's number, and the address itself, not its peer's.
fn address(payload: &[u8]) -> Option<(u32, IpAddr)> {
    let index = u32_at(payload, 4)?;
    let mut found = None;
    for (kind, value) in Attributes(payload.get(8..)?) {
        let v4 = <[u8; 4]>::try_from(value).map(|octets| IpAddr::from(Ipv4Addr::from(octets)));
        let v6 = || <[u8; 16]>::try_from(value).map(|it| IpAddr::from(Ipv6Addr::from(it)));
        match (kind, v4.or_else(|_| v6()).ok()) {
            (1, Some(address)) if found.is_none() => found = Some(address),
            (2, Some(address)) => found = Some(address),
            _ => {}
        }
    }
    Some((index, found?))
}

fn told_but<T>(told: io::Result<T>, harmless: Errno) -> io::Result<()> {
    match told {
        Err(error) if error.raw_os_error() != Some(harmless as i32) => Err(error),
        _ => Ok(()),
    }
}
