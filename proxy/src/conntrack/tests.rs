//! Which flows are stale: the contract's own cases.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use model::name::{NamespacedName, ServicePortName};

use super::message::tests::flow;
use super::*;
use crate::plan::{
    Endpoint, EndpointSet, Frontend, FrontendKind, Masquerade, Route, Routes, Target,
};

fn key(at: At, port: u16, protocol: Protocol) -> FrontendKey {
    FrontendKey { at, port, protocol }
}

fn frontend(protocol: Protocol, serving: &[&str]) -> Arc<Frontend> {
    let serving: Arc<[SocketAddr]> = serving.iter().map(|ip| ip.parse().unwrap()).collect();
    let endpoint = |address: &SocketAddr| Endpoint { address: *address, weight: 1, local: true };
    let target = match EndpointSet::new(serving.iter().map(endpoint).collect()) {
        Some(set) => Target::Endpoints(set),
        None => Target::Reject,
    };
    Arc::new(Frontend {
        service: ServicePortName {
            service: NamespacedName::new("kube-system", "dns"),
            port: "".into(),
            protocol,
        },
        kind: FrontendKind::ClusterIp,
        routes: Routes::same(&Route::new(target, Masquerade::Hairpin)),
        source_ranges: None,
        affinity: Some(Duration::from_secs(1)),
        ends_connections: false,
        serving,
    })
}

#[test]
fn a_flow_is_stale_when_no_endpoint_that_serves_answers_it() {
    let vip = At::Address("10.96.0.10".parse().unwrap());
    let gone = At::Address("10.96.0.20".parse().unwrap());
    let mut plan = Plan::default();
    for (at, port, protocol, serving) in [
        (vip, 53, Protocol::Udp, &["10.244.1.2:53"][..]),
        (vip, 54, Protocol::Udp, &[]),
        (vip, 55, Protocol::Tcp, &[]),
        (At::NodePort(Family::V4), 30053, Protocol::Udp, &["10.244.1.2:53"]),
    ] {
        plan.frontends.insert(key(at, port, protocol), frontend(protocol, serving));
    }
    let known = BTreeSet::from([key(gone, 53, Protocol::Udp)]);
    for (to, answered_by, stale, why) in [
        ("10.96.0.10:53", "10.244.1.2:53", false, "its endpoint serves"),
        ("10.96.0.10:53", "10.244.1.3:53", true, "its endpoint has gone"),
        ("10.96.0.10:53", "10.244.1.2:5353", true, "the endpoint has another port now"),
        ("10.96.0.10:53", "10.96.0.10:53", true, "it was never translated"),
        ("10.96.0.10:54", "10.244.1.2:53", true, "there is no endpoint at all"),
        ("10.96.0.10:55", "10.244.1.2:53", false, "the Service's port is TCP"),
        ("10.96.0.10:5353", "10.244.1.3:53", false, "no port of the Service"),
        ("172.18.0.1:30053", "10.244.1.2:53", false, "a node port's endpoint serves"),
        ("172.18.0.1:30053", "10.244.1.9:53", true, "a node port, at any address"),
        ("10.96.0.20:53", "10.244.1.2:53", true, "its Service has gone"),
        ("10.244.1.9:53", "10.244.1.9:53", false, "nobody's"),
    ] {
        assert_eq!(is_stale(&flow(to, answered_by), &plan, &known), stale, "{to}: {why}");
    }
}
