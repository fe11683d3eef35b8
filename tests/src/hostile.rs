//! Any bytes as the objects of a cluster: whatever they are, nothing panics, and the plan of them
//! is one that can be printed, traced and reached.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use model::cluster::{Cluster, Dirty};
use model::name::Protocol;
use model::parse::Names;
use proxy::backend::Backend;
use proxy::backend::fake::Fake;
use proxy::config::{DetectLocal, NodeConfig};
use proxy::delta::delta;
use proxy::plan::print::PlanView;
use proxy::plan::trace::{Packet, View, trace};
use proxy::plan::{At, FrontendKey, Plan, Planner};
use serde_json::Value;

use crate::objects::Objects;
use crate::stage;

/// At most so many frontends of a plan are traced, so that one input takes no minutes.
const TRACED: usize = 64;

/// Takes bytes as YAML or JSON documents and goes all the way with them.
pub fn play(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut objects = Objects::default();
    let mut names = Names::default();
    for document in text.split("\n---") {
        let value = serde_json::from_str(document).or_else(|_| serde_saphyr::from_str(document));
        if let Ok(value) = value {
            play_value(&mut objects, value, &mut names);
        }
    }
    play_objects(objects);
}

/// Takes one object; what is no object of a kind we read is left out.
pub fn play_value(objects: &mut Objects, value: Value, names: &mut Names) {
    if objects.take(value, names).is_err() {
        // Not an object: that is an answer, too.
    }
}

/// Plans, prints, programs and traces.
pub fn play_objects(objects: Objects) {
    let mut cluster = Cluster::new(stage::NODE);
    cluster.apply_all(objects.into_list());
    let snapshot = cluster.snapshot();
    let config = NodeConfig {
        detect_local: DetectLocal::NodeCidr,
        service_cidrs: vec![IpAddr::from(Ipv4Addr::new(10, 96, 0, 0)).into()],
        ..NodeConfig::new(stage::NODE)
    };
    let mut planner = Planner::new(config.clone());
    planner.replan(&snapshot, &Dirty::everything());
    let plan = planner.plan();
    assert!(!plan.to_string().is_empty());
    let json = serde_json::to_string(&PlanView::from(plan)).unwrap_or_default();
    assert!(!json.is_empty(), "the plan has no JSON");

    let mut fake = Fake::default();
    let actual = fake.prepare().unwrap_or_default();
    fake.apply(&delta(&actual, plan));
    assert_eq!(fake.tables().frontends.len(), plan.frontends.len());

    let host: BTreeSet<IpAddr> =
        snapshot.node.iter().flat_map(|node| node.addresses.iter().copied()).collect();
    let view = View { plan, snapshot: &snapshot, config: &config, host: &host };
    for packet in packets(plan, &host) {
        let decision = trace(&view, &packet);
        assert!(!decision.why.is_empty(), "no reason for what becomes of {packet:?}");
    }
}

/// Packets to what is served, and next to it.
fn packets(plan: &Plan, host: &BTreeSet<IpAddr>) -> Vec<Packet> {
    let sources = [IpAddr::from(Ipv4Addr::new(10, 244, 1, 2)), Ipv4Addr::LOCALHOST.into()];
    let address = |key: &FrontendKey| match key.at {
        At::Address(address) => Some(address),
        At::NodePort(_) => host.first().copied(),
    };
    let served = plan.frontends.keys().filter_map(|key| Some((address(key)?, key.port)));
    let beside = plan.addresses.keys().map(|address| (*address, 1));
    served
        .chain(beside)
        .take(TRACED)
        .flat_map(|(address, port)| sources.map(|source| (address, port, source)))
        .flat_map(|(address, port, source)| {
            [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| Packet {
                source,
                interface: None,
                destination: SocketAddr::new(address, port),
                protocol,
            })
        })
        .collect()
}
