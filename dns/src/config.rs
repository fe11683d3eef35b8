//! What a zone view answers for, and how: the options of CoreDNS's `kubernetes` plugin.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::name::{ParseNameError, WireName};

/// The options of one zone view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The cluster domains; PTR records point into the first.
    pub zones: Vec<Zone>,
    /// The zones of addresses under `in-addr.arpa` and `ip6.arpa`.
    pub reverse: Vec<Zone>,
    /// `ttl`: seconds that clients may keep an answer; also how long they may believe that a name
    /// does not exist.
    pub ttl: u32,
    /// `pods`.
    pub pods: PodMode,
    /// `endpoint_pod_names`: an endpoint without hostname is named for its pod.
    pub endpoint_pod_names: bool,
    /// `noendpoints`, reversed: whether endpoints have names at all.
    pub endpoints: bool,
    /// `ignore empty_service`: a Service without ready endpoints does not exist.
    pub ignore_empty_service: bool,
    /// `namespaces`: only these exist; all when `None`.
    pub namespaces: Option<BTreeSet<Arc<str>>>,
    /// `fallthrough`: below these, a name that does not exist may exist elsewhere.
    pub fallthrough: Vec<Zone>,
    /// Where this server is reached; names the zone's NS records.
    pub addresses: Vec<IpAddr>,
}

impl Default for Options {
    /// The reference Corefile's `kubernetes cluster.local in-addr.arpa ip6.arpa`, with kubeadm's
    /// `pods insecure`.
    fn default() -> Self {
        let reverse: Vec<Zone> =
            ["in-addr.arpa", "ip6.arpa"].into_iter().flat_map(Zone::parse).collect();
        Self {
            zones: Zone::parse("cluster.local").into_iter().collect(),
            fallthrough: reverse.clone(),
            reverse,
            ttl: 5,
            pods: PodMode::Insecure,
            endpoint_pod_names: false,
            endpoints: true,
            ignore_empty_service: false,
            namespaces: None,
            addresses: Vec::new(),
        }
    }
}

/// `pods`: whether `10-0-0-1.NS.pod.Z` resolves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodMode {
    /// Never.
    Disabled,
    /// To the address that it spells, whatever that is.
    Insecure,
    /// If an endpoint of the namespace is a pod of that address.
    Verified,
}

/// A zone's apex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// In the letters of the configuration: answers are written so.
    pub name: WireName,
    /// In lower case: questions are compared so.
    pub lower: WireName,
}

impl Zone {
    /// Reads a domain.
    ///
    /// # Errors
    /// Text that is not a domain name.
    pub fn parse(text: &str) -> Result<Self, ParseNameError> {
        let name = WireName::parse(text)?;
        Ok(Self { lower: name.lower(), name })
    }

    /// Whether addresses have their names below it.
    pub fn is_reverse(&self) -> bool {
        let wire = self.lower.wire();
        wire.ends_with(b"\x07in-addr\x04arpa\0") || wire.ends_with(b"\x03ip6\x04arpa\0")
    }

    /// The zones that together hold the addresses of a range: `10.0.0.0/17` is the 128 zones
    /// `0.0.10.in-addr.arpa` to `127.0.10.in-addr.arpa`.
    pub fn of_range(range: IpNet) -> Vec<Self> {
        let step = match range {
            IpNet::V4(_) => 8,
            IpNet::V6(_) => 4,
        };
        let aligned = range.prefix_len().div_ceil(step) * step;
        range
            .subnets(aligned)
            .into_iter()
            .flatten()
            .flat_map(|subnet| Self::parse(&reverse_name(subnet.network(), aligned)))
            .collect()
    }
}

/// The name of the first `prefix` bits of an address, under `in-addr.arpa` or `ip6.arpa`.
pub(crate) fn reverse_name(address: IpAddr, prefix: u8) -> String {
    let mut name = String::new();
    match address {
        IpAddr::V4(v4) => {
            for octet in v4.octets().iter().take(usize::from(prefix / 8)).rev() {
                name.push_str(&format!("{octet}."));
            }
            name.push_str("in-addr.arpa");
        }
        IpAddr::V6(v6) => {
            let nibbles = v6.octets().map(|octet| [octet >> 4, octet & 15]).concat();
            for nibble in nibbles.iter().take(usize::from(prefix / 4)).rev() {
                name.push_str(&format!("{nibble:x}."));
            }
            name.push_str("ip6.arpa");
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_the_zones_that_hold_it() {
        let zones = Zone::of_range("10.0.0.0/17".parse().unwrap());
        assert_eq!(zones.len(), 128);
        assert_eq!(zones[127].name.to_string(), "127.0.10.in-addr.arpa.");
        let zones = Zone::of_range("fd00:10::/32".parse().unwrap());
        assert_eq!(zones[0].name.to_string(), "0.1.0.0.0.0.d.f.ip6.arpa.");
        assert!(zones[0].is_reverse());
        assert!(!Zone::parse("cluster.local").unwrap().is_reverse());
    }
}
