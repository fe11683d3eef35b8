//! Addresses as the API has always accepted them: leading zeros are decimal (CVE-2021-29923).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::name::Family;
use crate::parse::fault::Faults;

/// How to write an address, as a remedy.
pub(super) const WRITE_IP: &str = "write it as 10.0.0.1 or fd00::1";
const WRITE_NET: &str = "write it as 10.0.0.0/8 or fd00::/64";

/// Parses an address. IPv4 octets may have leading zeros, which do not make them octal; an
/// IPv4-mapped IPv6 address is the IPv4 address.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        let address: Ipv6Addr = text.parse().ok()?;
        return Some(address.to_canonical());
    }
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = decimal(parts.next()?)?.try_into().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

/// Parses a network, its host bits cleared.
pub fn parse_net(text: &str) -> Option<IpNet> {
    let (address, prefix) = text.split_once('/')?;
    let prefix = decimal(prefix)?.try_into().ok()?;
    // A mapped prefix counts from the front of 128 bits, so the address is not made IPv4 here.
    let address =
        if address.contains(':') { IpAddr::V6(address.parse().ok()?) } else { parse_ip(address)? };
    Some(IpNet::new(address, prefix).ok()?.trunc())
}

/// A number of decimal digits and nothing else. Bounded, because an absurd run of zeros is no
/// address.
fn decimal(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// The valid addresses of a list, without blanks and repetitions; the others become faults.
pub(super) fn ips<'a>(
    field: &str,
    list: impl IntoIterator<Item = &'a str>,
    faults: &mut Faults,
) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for (idx, text) in list.into_iter().enumerate() {
        let trimmed = text.trim();
        match parse_ip(trimmed) {
            Some(ip) if !found.contains(&ip) => found.push(ip),
            None if !trimmed.is_empty() => {
                faults.add(format_args!("{field}[{idx}]"), text, "no IP address", WRITE_IP);
            }
            Some(_) | None => {}
        }
    }
    found
}

/// The valid networks of a list, without blanks and repetitions; the others become faults.
pub(super) fn nets<'a>(
    field: &str,
    list: impl IntoIterator<Item = &'a String>,
    faults: &mut Faults,
) -> Vec<IpNet> {
    let mut found = Vec::new();
    for (idx, text) in list.into_iter().enumerate() {
        let trimmed = text.trim();
        match parse_net(trimmed) {
            Some(net) if !found.contains(&net) => found.push(net),
            None if !trimmed.is_empty() => {
                faults.add(format_args!("{field}[{idx}]"), text, "no network", WRITE_NET);
            }
            Some(_) | None => {}
        }
    }
    found
}

/// The family that the API spells `IPv4` or `IPv6`.
pub(super) fn family(text: &str) -> Option<Family> {
    Family::ALL.into_iter().find(|family| family.to_string() == text)
}
