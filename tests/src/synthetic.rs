//! Clusters of any size, made up.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use model::cluster::{Change, Kind};
use model::endpoint::{Conditions, Endpoint, EndpointPort, EndpointSlice};
use model::name::{Family, NamespacedName, Protocol};
use model::node::Node;
use model::service::{Service, ServicePort, ServiceType, TrafficPolicy};

/// A full list: `n_services` Services, each with one port and one slice of `n_endpoints`.
pub fn cluster(n_services: u32, n_endpoints: u32) -> Vec<Change> {
    let services = (0..n_services).map(|idx| Change::Service(Arc::new(service(idx))));
    let slices = (0..n_services).map(|idx| Change::Slice(Arc::new(slice(idx, n_endpoints, 0))));
    let mut list: Vec<Change> = Kind::ALL.map(Change::ListBegins).into();
    list.push(Change::Node(Arc::new(node())));
    list.extend(services.chain(slices));
    list.extend(Kind::ALL.map(Change::ListDone));
    list
}

/// The Service of that number: one in four has a node port.
pub fn service(idx: u32) -> Service {
    let node_port = if idx.is_multiple_of(4) { u16::try_from(30_000 + idx / 4).ok() } else { None };
    Service {
        name: name("service", idx),
        created: idx.into(),
        service_type: ServiceType::ClusterIp,
        cluster_ips: vec![ip(Ipv4Addr::new(10, 96, 0, 0), idx)],
        headless: false,
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: node_port.unwrap_or(0),
        }],
        external_ips: Vec::new(),
        load_balancer_vips: Vec::new(),
        load_balancer_source_ranges: Vec::new(),
        external_traffic_policy: TrafficPolicy::Cluster,
        internal_traffic_policy: TrafficPolicy::Cluster,
        session_affinity: None,
        health_check_node_port: 0,
        foreign_proxy: false,
        capture: true,
        ends_connections: false,
    }
}

/// The slice of the Service of that number. Another `turn`, another last endpoint.
pub fn slice(idx: u32, n_endpoints: u32, turn: u32) -> EndpointSlice {
    let endpoint = |n: u32| Endpoint {
        address: ip(Ipv4Addr::new(10, 128, 0, 0), idx * n_endpoints + n),
        conditions: Conditions::default(),
        node_name: Some(format!("node-{}", n % 100).into()),
        zone: None,
        hints: None,
        hostname: None,
        pod: None,
    };
    let mut endpoints: Vec<Endpoint> = (0..n_endpoints).map(endpoint).collect();
    if turn > 0 {
        endpoints.pop();
        let address = ip(Ipv4Addr::new(10, 200, 0, 0), turn);
        endpoints.push(Endpoint { address, ..endpoint(0) });
    }
    EndpointSlice {
        name: name("slice", idx),
        service: name("service", idx),
        family: Family::V4,
        ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints,
        mirrored: false,
        headless: false,
        last_change_trigger: None,
        weight: None,
    }
}

fn node() -> Node {
    Node {
        name: "node-0".into(),
        zone: Some("zone-a".into()),
        addresses: vec![Ipv4Addr::new(172, 18, 0, 1).into()],
        pod_cidrs: Vec::new(),
        deleting: false,
        to_be_deleted: false,
    }
}

fn name(kind: &str, idx: u32) -> NamespacedName {
    NamespacedName::new(format!("ns-{}", idx % 100), format!("{kind}-{idx}"))
}

fn ip(base: Ipv4Addr, idx: u32) -> IpAddr {
    Ipv4Addr::from_bits(base.to_bits() + idx + 1).into()
}
