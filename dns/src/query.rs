//! What a name asks for, by its shape alone.
//!
//! ```text
//!            Z                apex                        dns-version.Z      version
//!        svc.Z    pod.Z       roots                           dns.Z, ns.dns.Z  the server itself
//!     NS.svc.Z NS.pod.Z       namespaces
//!    SVC.NS.svc.Z             a Service          1-2-3-4.NS.pod.Z   a pod
//!  X.SVC.NS.svc.Z             one endpoint, or `_tcp`: the parent of its ports
//! _P._tcp.SVC.NS.svc.Z        a port
//!  d.c.b.a.in-addr.arpa       an address, or the parent of addresses
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::{Options, Zone};
use crate::name::LowerName;

/// A question, understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked<'o, 'n> {
    /// The zone that it falls into.
    pub zone: &'o Zone,
    /// What of that zone.
    pub what: What<'n>,
}

/// What of a zone is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What<'n> {
    /// The zone itself.
    Apex,
    /// `dns-version`: the schema that this server follows.
    Version,
    /// `ns.dns`: the server.
    NameServer,
    /// A name that only exists because names below it do: `svc`, `pod`, `dns`.
    Root,
    /// `NS.svc` or `NS.pod`.
    Namespace(&'n [u8]),
    /// `SVC.NS.svc`.
    Service(Key<'n>),
    /// `X.SVC.NS.svc`.
    Endpoint(Key<'n>, &'n [u8]),
    /// `_tcp.SVC.NS.svc`, the parent of the names of its TCP ports.
    Protocol(Key<'n>, Protocol<'n>),
    /// `_P._tcp.SVC.NS.svc`.
    Port(Key<'n>, Protocol<'n>, &'n [u8]),
    /// `10-0-0-1.NS.pod`.
    Pod {
        /// The namespace.
        namespace: &'n [u8],
        /// The address; `None` for what spells none.
        address: Option<IpAddr>,
    },
    /// An address.
    Address(IpAddr),
    /// A parent of the names of addresses.
    Range(IpNet),
    /// A shape that nothing in this zone has.
    Nothing,
}

/// A Service by its two labels as they stand on the wire, lower-cased: `\3web\4shop`. One piece
/// of the name, so that finding the Service costs one hash of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<'n>(pub &'n [u8]);

/// A transport protocol's label without the underscore, lower-case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol<'n>(pub &'n [u8]);

impl Protocol<'_> {
    /// The protocol, if it is one that a port may have.
    pub fn known(self) -> Option<model::name::Protocol> {
        match self.0 {
            b"tcp" => Some(model::name::Protocol::Tcp),
            b"udp" => Some(model::name::Protocol::Udp),
            b"sctp" => Some(model::name::Protocol::Sctp),
            _ => None,
        }
    }
}

impl<'o, 'n> Asked<'o, 'n> {
    /// Understands a name; `None` is outside every zone of ours.
    pub fn parse(options: &'o Options, name: &'n LowerName) -> Option<Self> {
        for zone in &options.zones {
            if let Some(n_labels) = name.labels_before(zone.lower.wire()) {
                return Some(Self { zone, what: forward(name, n_labels) });
            }
        }
        // The most specific of nested zones; they are few, and PTR is not the hot question.
        options
            .reverse
            .iter()
            .filter_map(|zone| Some((zone, name.labels_before(zone.lower.wire())?)))
            .min_by_key(|&(_, n_labels)| n_labels)
            .map(|(zone, n_labels)| Self {
                zone,
                what: if n_labels == 0 { What::Apex } else { reverse(name) },
            })
    }
}

fn forward(name: &LowerName, n_labels: usize) -> What<'_> {
    let Some(last) = n_labels.checked_sub(1) else { return What::Apex };
    match (name.label(last), last) {
        (b"svc", _) => service(name, last),
        (b"pod", _) => pod(name, last),
        (b"dns", 0) => What::Root,
        (b"dns", 1) if name.label(0) == b"ns" => What::NameServer,
        (b"dns-version", 0) => What::Version,
        _ => What::Nothing,
    }
}

fn service(name: &LowerName, svc: usize) -> What<'_> {
    match svc {
        0 => What::Root,
        1 => What::Namespace(name.label(0)),
        2 => What::Service(Key(name.labels(0, 2))),
        3 => {
            let key = Key(name.labels(1, 3));
            match name.label(0).strip_prefix(b"_") {
                Some(protocol) => What::Protocol(key, Protocol(protocol)),
                None => What::Endpoint(key, name.label(0)),
            }
        }
        4 => match (name.label(0).strip_prefix(b"_"), name.label(1).strip_prefix(b"_")) {
            (Some(port), Some(protocol)) => {
                What::Port(Key(name.labels(2, 4)), Protocol(protocol), port)
            }
            _ => What::Nothing,
        },
        _ => What::Nothing,
    }
}

fn pod(name: &LowerName, pod: usize) -> What<'_> {
    match pod {
        0 => What::Root,
        1 => What::Namespace(name.label(0)),
        2 => What::Pod { namespace: name.label(1), address: dashed_address(name.label(0)) },
        _ => What::Nothing,
    }
}

/// Reads `10-0-0-1` or `fd00--1`: with exactly three dashes, none doubled, it is IPv4.
pub fn dashed_address(label: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(label).ok()?;
    if text.matches('-').count() == 3 && !text.contains("--") {
        return text.replace('-', ".").parse().ok().map(IpAddr::V4);
    }
    let v6: Ipv6Addr = text.replace('-', ":").parse().ok()?;
    // An IPv4 address in IPv6 spelling is an IPv4 address, as it is to CoreDNS.
    Some(IpAddr::V6(v6).to_canonical())
}

fn reverse(name: &LowerName) -> What<'_> {
    let Some(n_labels) = name.n_labels().checked_sub(2) else { return What::Nothing };
    match name.label(n_labels) {
        b"in-addr" => reverse_v4(name, n_labels),
        b"ip6" => reverse_v6(name, n_labels),
        _ => What::Nothing,
    }
}

fn reverse_v4(name: &LowerName, n_labels: usize) -> What<'_> {
    let mut octets = [0_u8; 4];
    for idx in 0..n_labels {
        let label = name.label(n_labels - 1 - idx);
        // `010` is a different name than `10`, and no address's.
        let octet = std::str::from_utf8(label).ok().and_then(|text| text.parse::<u8>().ok());
        match (octets.get_mut(idx), octet) {
            (Some(to), Some(octet)) if octet.to_string().as_bytes() == label => *to = octet,
            _ => return What::Nothing,
        }
    }
    let address = Ipv4Addr::from(octets);
    match u8::try_from(n_labels * 8) {
        Ok(32) => What::Address(address.into()),
        Ok(prefix) => Ipv4Net::new(address, prefix)
            .map_or(What::Nothing, |range| What::Range(IpNet::V4(range))),
        Err(_) => What::Nothing,
    }
}

fn reverse_v6(name: &LowerName, n_labels: usize) -> What<'_> {
    let mut octets = [0_u8; 16];
    for idx in 0..n_labels {
        let nibble = match *name.label(n_labels - 1 - idx) {
            [digit @ b'0'..=b'9'] => digit - b'0',
            [letter @ b'a'..=b'f'] => letter - b'a' + 10,
            _ => return What::Nothing,
        };
        let Some(octet) = octets.get_mut(idx / 2) else { return What::Nothing };
        *octet |= if idx % 2 == 0 { nibble << 4 } else { nibble };
    }
    let address = Ipv6Addr::from(octets);
    match u8::try_from(n_labels * 4) {
        Ok(128) => What::Address(address.into()),
        Ok(prefix) => Ipv6Net::new(address, prefix)
            .map_or(What::Nothing, |range| What::Range(IpNet::V6(range))),
        Err(_) => What::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::WireName;

    fn ask(text: &str) -> String {
        let options = Options::default();
        let name = LowerName::parse(WireName::parse(text).unwrap().wire()).unwrap();
        match Asked::parse(&options, &name) {
            None => "outside".to_owned(),
            Some(asked) => match asked.what {
                What::Service(key) => format!("service {}", key.0.escape_ascii()),
                What::Endpoint(_, host) => format!("endpoint {}", host.escape_ascii()),
                What::Port(_, protocol, port) => {
                    format!("port {} {:?}", port.escape_ascii(), protocol.known())
                }
                other => format!("{other:?}"),
            },
        }
    }

    #[test]
    fn shapes_are_told_apart() {
        assert_eq!(ask("cluster.local"), "Apex");
        assert_eq!(ask("example.com"), "outside");
        assert_eq!(ask("."), "outside");
        assert_eq!(ask("Web.SHOP.svc.cluster.local"), "service \\x03web\\x04shop");
        assert_eq!(ask("a.web.shop.svc.cluster.local"), "endpoint a");
        assert_eq!(ask("_http._TCP.web.shop.svc.cluster.local"), "port http Some(Tcp)");
        assert_eq!(ask("http.tcp.web.shop.svc.cluster.local"), "Nothing");
        assert_eq!(ask("a.b.c.web.shop.svc.cluster.local"), "Nothing");
        assert_eq!(ask("web.shop.cluster.local"), "Nothing");
        assert_eq!(ask("dns.cluster.local"), "Root");
        assert_eq!(ask("a.dns.cluster.local"), "Nothing");
        assert_eq!(ask("ns.dns.cluster.local"), "NameServer");
    }

    #[test]
    fn reverse_names_are_addresses_or_ranges() {
        assert_eq!(ask("10.0.96.10.in-addr.arpa"), "Address(10.96.0.10)");
        assert_eq!(ask("96.10.in-addr.arpa"), "Range(10.96.0.0/16)");
        assert_eq!(ask("010.0.96.10.in-addr.arpa"), "Nothing");
        assert_eq!(ask("256.0.96.10.in-addr.arpa"), "Nothing");
        assert_eq!(ask("1.10.0.96.10.in-addr.arpa"), "Nothing");
        assert_eq!(ask("D.F.ip6.arpa"), "Range(fd00::/8)");
        let nibbles = format!("1.{}0.0.d.f.ip6.arpa", "0.".repeat(27));
        assert_eq!(ask(&nibbles), "Address(fd00::1)");
    }

    #[test]
    fn dashes_spell_addresses() {
        let read = |text: &str| dashed_address(text.as_bytes()).map(|ip| ip.to_string());
        assert_eq!(read("10-0-0-1").as_deref(), Some("10.0.0.1"));
        assert_eq!(read("fd00--1").as_deref(), Some("fd00::1"));
        assert_eq!(read("1-2-3--4").as_deref(), Some("1:2:3::4"));
        assert_eq!(read("1-2-3"), None);
        assert_eq!(read("1--2-3").as_deref(), Some("1::2:3"));
        assert_eq!(read("--ffff-a00-1").as_deref(), Some("10.0.0.1"));
        assert_eq!(read("10-0-0-256"), None);
        assert_eq!(read("web"), None);
    }
}
