//! Ranges of pods' addresses: each node that has none is given some, as long as it lives.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use futures::FutureExt;
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::cache::Key;
use crate::cluster::{Happened, Result};
use crate::json::{is_being_deleted, list_at, name, str_at};
use crate::kinds::NODE;
use crate::run::{Again, Context, Controller};

const NAME: &str = "node-ipam-controller";

/// All nodes are one key: what one is given, no other may be given at the same time.
pub(crate) const CONTROLLER: Controller = Controller {
    name: NAME,
    kinds: &[NODE],
    concerns: |_, change| {
        let lacks = change.new.as_deref().is_some_and(|node| own(node).is_empty());
        // What a node that goes had, another one may be waiting for.
        let matters = lacks || change.new.is_none();
        matters.then(|| Key::new("", "nodes")).into_iter().collect()
    },
    reconcile: |context, _| reconcile(context).boxed(),
};

/// A range out of which nodes are given theirs, all of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterCidr {
    range: IpNet,
    /// How long a node's prefix is.
    node_prefix: u8,
}

/// Why a text is no such range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// It is no range.
    #[error("{0:?} is no range: write 10.244.0.0/16")]
    Parse(String),
    /// A node's range does not fit into it.
    #[error("{range} has no room for a node's /{node_prefix}: take a shorter prefix")]
    Small {
        /// The range.
        range: IpNet,
        /// How long a node's prefix is.
        node_prefix: u8,
    },
}

impl FromStr for ClusterCidr {
    type Err = CidrError;

    /// Upstream's sizes: /24 of IPv4 and /64 of IPv6 for a node.
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let range: IpNet =
            text.trim().parse().map_err(|_error| CidrError::Parse(text.to_owned()))?;
        let node_prefix = if range.addr().is_ipv4() { 24 } else { 64 };
        if range.prefix_len() > node_prefix {
            return Err(CidrError::Small { range, node_prefix });
        }
        Ok(Self { range: range.trunc(), node_prefix })
    }
}

impl fmt::Display for ClusterCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.range.fmt(f)
    }
}

impl ClusterCidr {
    /// The first range for a node that meets none of those that are taken.
    fn free(self, taken: &[IpNet]) -> Option<IpNet> {
        // Of a larger number of nodes nobody has heard; of IPv6 ranges there is no end.
        let bits = u32::from(self.node_prefix - self.range.prefix_len()).min(20);
        let used: BTreeSet<u128> = taken
            .iter()
            .filter(|one| {
                self.range.contains(&one.network()) || one.contains(&self.range.network())
            })
            .flat_map(|one| self.indices(*one))
            .collect();
        let idx = (0..1_u128 << bits).find(|idx| !used.contains(idx))?;
        self.at(idx)
    }

    /// Which of the nodes' ranges a range meets.
    fn indices(self, range: IpNet) -> impl Iterator<Item = u128> {
        let shift = self.shift();
        let base = number(self.range.network()) >> shift;
        let first = (number(range.network()) >> shift).saturating_sub(base);
        let last = (number(range.broadcast()) >> shift).saturating_sub(base);
        first..=last.min(first + (1 << 20))
    }

    fn at(self, idx: u128) -> Option<IpNet> {
        let address = number(self.range.network()) + (idx << self.shift());
        let address = match self.range.addr() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(address).ok()?)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(address)),
        };
        IpNet::new(address, self.node_prefix).ok()
    }

    fn shift(self) -> u32 {
        u32::from(self.range.max_prefix_len() - self.node_prefix)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// A node's ranges.
fn own(node: &Value) -> Vec<IpNet> {
    let mut all: Vec<&str> =
        list_at(node, "spec.podCIDRs").iter().filter_map(Value::as_str).collect();
    all.push(str_at(node, "spec.podCIDR"));
    all.into_iter().filter_map(|one| one.parse().ok()).collect()
}

async fn reconcile(context: Context) -> Result<Again> {
    let cluster = &context.cluster;
    if context.cluster_cidrs.is_empty() {
        return Ok(None);
    }
    let nodes = cluster.list(NODE, "", "").await?;
    let mut taken: Vec<IpNet> = nodes.iter().flat_map(own).collect();
    for node in nodes.iter().filter(|node| own(node).is_empty() && !is_being_deleted(node)) {
        let free = context.cluster_cidrs.iter().map(|one| one.free(&taken));
        let Some(given) = free.collect::<Option<Vec<IpNet>>>() else {
            let message = format!("Node {} status is now: CIDRNotAvailable", name(node));
            let what = Happened {
                from: NAME,
                normal: false,
                reason: "CIDRNotAvailable",
                message: &message,
            };
            cluster.event(node, &what).await;
            continue;
        };
        let texts: Vec<String> = given.iter().map(ToString::to_string).collect();
        let patch = json!({
            "metadata": {"resourceVersion": node["metadata"]["resourceVersion"]},
            "spec": {"podCIDR": texts.first(), "podCIDRs": texts},
        });
        cluster.merge(NODE, node, &patch).await?;
        taken.extend(given);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> ClusterCidr {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn free(range: &str, taken: &[&str]) -> Option<String> {
        cidr(range).free(&nets(taken)).map(|one| one.to_string())
    }

    #[test]
    fn the_first_range_that_meets_nobodys_is_given() {
        let given = |taken: &[&str]| free("10.244.0.0/16", taken).unwrap();
        assert_eq!(given(&[]), "10.244.0.0/24");
        assert_eq!(given(&["10.244.0.0/24", "10.244.2.0/24", "fd00::/64"]), "10.244.1.0/24");
        // A node may have brought a range of another size, or of somewhere else.
        assert_eq!(given(&["10.244.0.0/23", "10.244.2.128/25", "10.0.0.0/24"]), "10.244.3.0/24");
        assert_eq!(free("fd00:10:244::/48", &["fd00:10:244::/64"]).unwrap(), "fd00:10:244:1::/64");
    }

    #[test]
    fn a_range_is_given_until_none_is_left() {
        assert_eq!(free("10.0.0.0/23", &["10.0.0.0/24"]).unwrap(), "10.0.1.0/24");
        assert_eq!(free("10.0.0.0/23", &["10.0.0.0/24", "10.0.1.0/24"]), None);
        assert_eq!(free("10.0.0.0/24", &["10.0.0.0/8"]), None);
    }

    #[test]
    fn a_range_without_room_for_a_node_is_refused() {
        let refused = |text: &str| text.parse::<ClusterCidr>().unwrap_err().to_string();
        assert_eq!(refused("pods"), "\"pods\" is no range: write 10.244.0.0/16");
        assert!(refused("10.0.0.0/25").contains("no room for a node's /24"));
    }
}
