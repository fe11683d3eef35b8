//! Any packet, answered from a small cluster: nothing panics, and what comes back is a response to
//! that packet, within its limits, that others can read.
#![no_main]

use std::sync::{Arc, LazyLock};

use dns::config::{Options, PodMode};
use dns::message::{LARGEST_UDP, PLAIN_UDP, Rcode};
use dns::respond::{Ask, LARGEST_TCP, Transport, respond};
use dns::zone::{Origin, ZoneView};
use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;
use model::cluster::{Change, Cluster};
use model::endpoint::{Conditions, Endpoint, EndpointPort, EndpointSlice};
use model::name::{Family, NamespacedName, Protocol};
use model::service::{Service, ServicePort, ServiceType, TrafficPolicy};

static VIEW: LazyLock<ZoneView> = LazyLock::new(|| {
    let options = Options {
        pods: PodMode::Insecure,
        addresses: vec![[10, 0, 0, 1].into()],
        ..Options::default()
    };
    let mut cluster = Cluster::new("a");
    cluster.apply_all([
        service("web", ServiceType::ClusterIp, false),
        service("db", ServiceType::ClusterIp, true),
        service("alias", ServiceType::ExternalName("db.shop.svc.cluster.local".into()), false),
        service("away", ServiceType::ExternalName("www.example.com".into()), false),
        slice("web", 2),
        slice("db", 90),
    ]);
    ZoneView::build(Arc::new(options), &cluster.snapshot(), Origin::Watch, 1)
});

fn service(name: &str, service_type: ServiceType, headless: bool) -> Change {
    let has_address = service_type == ServiceType::ClusterIp && !headless;
    Change::Service(Arc::new(Service {
        name: NamespacedName::new("shop", name),
        created: 0,
        service_type,
        cluster_ips: has_address.then(|| [10, 96, 0, 10].into()).into_iter().collect(),
        headless,
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }],
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
    }))
}

fn slice(of: &str, n: u8) -> Change {
    let endpoint = |host: u8| Endpoint {
        address: [10, 0, 0, host].into(),
        conditions: Conditions::default(),
        node_name: None,
        zone: None,
        hints: None,
        hostname: (host % 2 == 0).then(|| format!("h-{}", host / 4).into()),
        pod: None,
    };
    Change::Slice(Arc::new(EndpointSlice {
        name: NamespacedName::new("shop", of),
        service: NamespacedName::new("shop", of),
        family: Family::V4,
        ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: (0..n).map(endpoint).collect(),
        mirrored: false,
        weight: None,
        headless: false,
        last_change_trigger: None,
    }))
}

fuzz_target!(|input: &[u8]| {
    let Some((&how, packet)) = input.split_first() else { return };
    let transport = if how & 1 == 0 { Transport::Udp } else { Transport::Tcp };
    let ask = Ask { transport, turn: usize::from(how >> 2), allowed: how & 2 == 0 };
    let mut out = vec![0; LARGEST_TCP];
    let Ok(reply) = respond(&VIEW, packet, ask, &mut out) else { return };
    let response = &out[..reply.len];
    assert_eq!(response[..2], packet[..2], "the same transaction");
    assert_eq!(response[2] & 0x80, 0x80, "a response");
    assert_eq!(packet[2] & 0x80, 0, "to a query");
    if transport == Transport::Udp {
        assert!(reply.len <= LARGEST_UDP);
    }
    assert!(reply.len >= 12);
    let message = Message::from_vec(response).expect("others can read it");
    if message.edns.is_none() && transport == Transport::Udp {
        assert!(reply.len <= PLAIN_UDP);
    }
    if !matches!(reply.rcode, Rcode::FormErr | Rcode::NotImp) {
        let question = 12..12 + message.queries[0].name().len() + 4;
        assert_eq!(response.get(question.clone()), packet.get(question), "the same question");
    }
});
