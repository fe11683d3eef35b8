//! Random histories of a small cluster, where Services get in each other's way.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use model::cluster::{Change, Cluster};
use model::endpoint::{Conditions, Endpoint, EndpointPort, EndpointSlice, Hints};
use model::name::{Family, NamespacedName, Protocol};
use model::node::Node;
use model::service::{Service, ServicePort, ServiceType, TrafficPolicy};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proxy::config::{DetectLocal, NodeConfig};

pub(crate) const NODE: &str = "node-a";

/// Few addresses, so that they are fought for; the last one is the node's own.
pub(crate) const ADDRESSES: [&str; 6] =
    ["10.96.0.1", "10.96.0.2", "192.0.2.1", "192.0.2.2", "fd00:10:96::1", "172.18.0.1"];

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn config() -> NodeConfig {
    NodeConfig {
        detect_local: DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]),
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        ..NodeConfig::new(NODE)
    }
}

/// A history: from an empty cluster on.
pub(crate) fn history() -> impl Strategy<Value = Vec<Change>> {
    vec(change(), 1..24)
}

/// The cluster after a history.
pub(crate) fn cluster(history: &[Change]) -> Cluster {
    let mut cluster = Cluster::new(NODE);
    cluster.apply_all(history.iter().cloned());
    cluster
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => service().prop_map(|service| Change::Service(Arc::new(service))),
        2 => service_name().prop_map(Change::ServiceGone),
        8 => slice().prop_map(|slice| Change::Slice(Arc::new(slice))),
        2 => slice_name().prop_map(Change::SliceGone),
        1 => node().prop_map(|node| Change::Node(Arc::new(node))),
        1 => Just(Change::NodeGone),
    ]
}

fn service_name() -> impl Strategy<Value = NamespacedName> {
    (0..4_u8).prop_map(|idx| NamespacedName::new("shop", format!("s{idx}")))
}

fn slice_name() -> impl Strategy<Value = NamespacedName> {
    (0..6_u8).prop_map(|idx| NamespacedName::new("shop", format!("slice-{idx}")))
}

fn addresses() -> impl Strategy<Value = Vec<IpAddr>> {
    subsequence(ADDRESSES.to_vec(), 0..3).prop_map(|list| list.into_iter().map(ip).collect())
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local])
}

fn service() -> impl Strategy<Value = Service> {
    let what = (service_name(), 0..3_i64, service_type(), cluster_ips(), ports());
    let external = (addresses(), addresses(), source_ranges(), policy(), policy());
    let rest = (any::<bool>(), prop_oneof![Just(0_u16), Just(32_000)], bool_of(1), bool_of(9));
    (what, external, rest).prop_map(|(what, external, rest)| {
        let (name, created, service_type, cluster_ips, ports) = what;
        let (external_ips, load_balancer_vips, ranges, external_policy, internal_policy) = external;
        let (has_affinity, health_check_node_port, foreign_proxy, capture) = rest;
        Service {
            name,
            created,
            service_type,
            headless: cluster_ips.is_empty(),
            cluster_ips,
            ports,
            external_ips,
            load_balancer_vips,
            load_balancer_source_ranges: ranges,
            external_traffic_policy: external_policy,
            internal_traffic_policy: internal_policy,
            session_affinity: has_affinity.then_some(Duration::from_secs(60)),
            health_check_node_port,
            foreign_proxy,
            capture,
            ends_connections: false,
        }
    })
}

/// True in so many of ten.
fn bool_of(tenths: u32) -> impl Strategy<Value = bool> {
    prop_oneof![tenths => Just(true), 10 - tenths => Just(false)]
}

fn service_type() -> impl Strategy<Value = ServiceType> {
    select(vec![ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer])
}

fn cluster_ips() -> impl Strategy<Value = Vec<IpAddr>> {
    select(vec![
        vec![],
        vec![ip("10.96.0.1")],
        vec![ip("10.96.0.2")],
        vec![ip("10.96.0.3"), ip("fd00:10:96::1")],
        vec![ip("fd00:10:96::2")],
    ])
}

fn source_ranges() -> impl Strategy<Value = Vec<ipnet::IpNet>> {
    let ranges = ["172.18.0.0/31", "10.244.0.0/16", "0.0.0.0/0", "2001:db8::/32"];
    subsequence(ranges.to_vec(), 0..2)
        .prop_map(|list| list.into_iter().map(|range| range.parse().unwrap()).collect())
}

fn ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let port = |name: &str, protocol, port, node_port| ServicePort {
        name: name.into(),
        protocol,
        port,
        node_port,
    };
    let all = vec![
        port("", Protocol::Tcp, 80, 30_000),
        port("dns", Protocol::Udp, 53, 30_000),
        port("web", Protocol::Tcp, 80, 0),
        port("other", Protocol::Tcp, 81, 30_001),
    ];
    subsequence(all, 0..3)
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let ports = vec![("", Protocol::Tcp), ("dns", Protocol::Udp), ("web", Protocol::Tcp)];
    let families = select(vec![Family::V4, Family::V4, Family::V6]);
    let weight = prop_oneof![3 => Just(None), 1 => (0..3_u16).prop_map(Some)];
    (
        slice_name(),
        service_name(),
        families,
        subsequence(ports, 1..3),
        vec(endpoint(), 0..4),
        weight,
    )
        .prop_map(|(name, service, family, ports, endpoints, weight)| EndpointSlice {
            name,
            service,
            family,
            ports: ports
                .into_iter()
                .map(|(name, protocol)| EndpointPort { name: name.into(), protocol, port: 8080 })
                .collect(),
            endpoints: endpoints
                .into_iter()
                .map(|(last, endpoint)| Endpoint {
                    address: match family {
                        Family::V4 => ip(&format!("10.244.1.{last}")),
                        Family::V6 => ip(&format!("fd00:10:244:1::{last}")),
                    },
                    ..endpoint
                })
                .collect(),
            mirrored: false,
            headless: false,
            last_change_trigger: None,
            weight,
        })
}

/// An endpoint, and the last part of its address.
fn endpoint() -> impl Strategy<Value = (u8, Endpoint)> {
    let zones = prop_oneof![Just(None), Just(Some("zone-a")), Just(Some("zone-b"))];
    let nodes = prop_oneof![Just(None), Just(Some(NODE)), Just(Some("node-b"))];
    let conditions = (bool_of(7), bool_of(7), bool_of(3));
    (1..6_u8, nodes.clone(), conditions, zones, nodes).prop_map(
        |(last, node, (ready, serving, terminating), zone, hinted_node)| {
            let hints = Hints {
                for_zones: zone.into_iter().map(Into::into).collect(),
                for_nodes: hinted_node.into_iter().map(Into::into).collect(),
            };
            let endpoint = Endpoint {
                address: ip("10.244.1.1"),
                conditions: Conditions { ready, serving, terminating },
                node_name: node.map(Into::into),
                zone: None,
                hints: (hints != Hints::default()).then(|| Box::new(hints)),
                hostname: None,
                pod: None,
            };
            (last, endpoint)
        },
    )
}

fn node() -> impl Strategy<Value = Node> {
    (prop_oneof![Just(None), Just(Some("zone-a"))], any::<bool>()).prop_map(
        |(zone, has_address)| Node {
            name: NODE.into(),
            zone: zone.map(Into::into),
            addresses: if has_address { vec![ip("172.18.0.1")] } else { vec![] },
            pod_cidrs: Vec::new(),
            deleting: false,
            to_be_deleted: false,
        },
    )
}
