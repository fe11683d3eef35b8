//! What must hold whatever the changes are and however they arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use model::cluster::{Change, Cluster, Dirty, Kind, Snapshot};
use model::endpoint::{Conditions, Endpoint, EndpointPort, EndpointSlice, Hints};
use model::name::{Family, NamespacedName, Protocol};
use model::pod::{Namespace, Pod, SocketLb};
use model::service::{Service, ServicePort, ServiceType, TrafficPolicy};
use proptest::prelude::*;

/// An object, so that changes of one object keep their order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Object {
    Service(u8),
    Slice(u8),
    Namespace(u8),
    Pod(u8),
}

/// What happens to an object: it gets these contents, or goes.
type Event = (Object, Option<Contents>);

#[derive(Clone, Debug)]
enum Contents {
    Service {
        ip: Option<u8>,
    },
    Slice {
        service: u8,
        headless: bool,
        mirrored: bool,
        weight: Option<u16>,
        endpoints: Vec<Endpoint>,
    },
    Namespace {
        socket_lb: Option<SocketLb>,
    },
    Pod {
        last: Option<u8>,
        socket_lb: Option<SocketLb>,
    },
}

fn socket_lb() -> impl Strategy<Value = Option<SocketLb>> {
    prop_oneof![Just(None), Just(Some(SocketLb::On)), Just(Some(SocketLb::Off))]
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let conditions = (any::<bool>(), any::<bool>(), any::<bool>())
        .prop_map(|(ready, serving, terminating)| Conditions { ready, serving, terminating });
    let hint = prop::option::of(0_u8..3);
    (0_u8..4, conditions, any::<bool>(), hint).prop_map(|(last, conditions, is_here, hint)| {
        Endpoint {
            address: IpAddr::V4(Ipv4Addr::new(10, 1, 0, last)),
            conditions,
            node_name: is_here.then(|| "here".into()),
            zone: None,
            hints: hint.map(|zone| {
                Box::new(Hints { for_zones: vec![format!("{zone}").into()], for_nodes: vec![] })
            }),
            hostname: None,
            pod: None,
        }
    })
}

fn event() -> impl Strategy<Value = Event> {
    let service = (0_u8..3, prop::option::of(prop::option::of(0_u8..3)))
        .prop_map(|(name, ip)| (Object::Service(name), ip.map(|ip| Contents::Service { ip })));
    let contents = (
        0_u8..3,
        any::<bool>(),
        any::<bool>(),
        prop::option::of(0_u16..3),
        prop::collection::vec(endpoint(), 0..3),
    )
        .prop_map(|(service, headless, mirrored, weight, endpoints)| Contents::Slice {
            service,
            headless,
            mirrored,
            weight,
            endpoints,
        });
    let slice = (0_u8..5, prop::option::weighted(0.8, contents))
        .prop_map(|(name, contents)| (Object::Slice(name), contents));
    let namespace = (0_u8..2, prop::option::of(socket_lb())).prop_map(|(name, said)| {
        (Object::Namespace(name), said.map(|socket_lb| Contents::Namespace { socket_lb }))
    });
    let contents = (prop::option::of(0_u8..3), socket_lb())
        .prop_map(|(last, socket_lb)| Contents::Pod { last, socket_lb });
    let pod = (0_u8..3, prop::option::of(contents))
        .prop_map(|(name, contents)| (Object::Pod(name), contents));
    prop_oneof![2 => service, 4 => slice, 1 => namespace, 1 => pod]
}

fn name(kind: &str, n: u8) -> NamespacedName {
    NamespacedName::new("shop", format!("{kind}-{n}"))
}

fn change((object, contents): &Event) -> Change {
    match (object, contents) {
        (Object::Service(n), Some(Contents::Service { ip })) => {
            Change::Service(Arc::new(service(*n, *ip)))
        }
        (
            Object::Slice(n),
            Some(Contents::Slice { service, headless, mirrored, weight, endpoints }),
        ) => Change::Slice(Arc::new(EndpointSlice {
            name: name("slice", *n),
            service: name("service", *service),
            family: Family::V4,
            ports: vec![EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: 80 }],
            endpoints: endpoints.clone(),
            mirrored: *mirrored,
            weight: *weight,
            headless: *headless,
            last_change_trigger: None,
        })),
        (Object::Namespace(n), Some(Contents::Namespace { socket_lb })) => {
            let socket_lb = *socket_lb;
            Change::Namespace(Namespace { name: format!("ns-{n}").into(), socket_lb })
        }
        (Object::Pod(n), Some(Contents::Pod { last, socket_lb })) => Change::Pod(Arc::new(Pod {
            name: name("pod", *n),
            uid: "".into(),
            node_name: Some("here".into()),
            host_network: false,
            addresses: last.map(|last| [10, 1, 0, last].into()).into_iter().collect(),
            socket_lb: *socket_lb,
            host_ports: None,
        })),
        (Object::Service(n), _) => Change::ServiceGone(name("service", *n)),
        (Object::Slice(n), _) => Change::SliceGone(name("slice", *n)),
        (Object::Pod(n), _) => Change::PodGone(name("pod", *n)),
        (Object::Namespace(n), _) => Change::NamespaceGone(format!("ns-{n}").into()),
    }
}

fn service(n: u8, ip: Option<u8>) -> Service {
    Service {
        name: name("service", n),
        created: 0,
        service_type: ServiceType::ClusterIp,
        cluster_ips: ip
            .map(|last| IpAddr::V4(Ipv4Addr::new(10, 96, 0, last)))
            .into_iter()
            .collect(),
        headless: ip.is_none(),
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 0,
        }],
        external_ips: vec![],
        load_balancer_vips: vec![],
        load_balancer_source_ranges: vec![],
        external_traffic_policy: TrafficPolicy::Cluster,
        internal_traffic_policy: TrafficPolicy::Cluster,
        session_affinity: None,
        health_check_node_port: 0,
        foreign_proxy: false,
        capture: true,
        ends_connections: false,
    }
}

fn after<'a>(events: impl IntoIterator<Item = &'a Event>) -> Snapshot {
    let mut cluster = Cluster::new("here");
    for event in events {
        cluster.apply(change(event));
    }
    cluster.snapshot()
}

/// What exists after these events.
fn remaining(events: &[Event]) -> Vec<Event> {
    let last: BTreeMap<Object, Option<Contents>> = events.iter().cloned().collect();
    last.into_iter().filter(|(_, contents)| contents.is_some()).collect()
}

/// Any interleaving in which each object's events keep their order.
fn interleaved(events: &[Event], order: &[prop::sample::Index]) -> Vec<Event> {
    let mut of_object: BTreeMap<Object, Vec<Event>> = BTreeMap::new();
    for event in events.iter().rev() {
        of_object.entry(event.0.clone()).or_default().push(event.clone());
    }
    let mut mixed = Vec::new();
    for pick in order {
        let mut open: Vec<_> = of_object.values_mut().filter(|left| !left.is_empty()).collect();
        if open.is_empty() {
            break;
        }
        let idx = pick.index(open.len());
        mixed.extend(open.get_mut(idx).and_then(|left| left.pop()));
    }
    mixed
}

fn relist(cluster: &mut Cluster, events: &[Event]) -> Dirty {
    let begin = Kind::ALL.into_iter().map(Change::ListBegins);
    let done = Kind::ALL.into_iter().map(Change::ListDone);
    cluster.apply_all(begin.chain(events.iter().map(change)).chain(done))
}

/// The Services that differ.
fn differing(before: &Snapshot, after: &Snapshot) -> BTreeSet<NamespacedName> {
    let names = before.services.keys().chain(after.services.keys());
    names.filter(|name| before.services.get(*name) != after.services.get(*name)).cloned().collect()
}

proptest! {
    #[test]
    fn any_order_that_keeps_each_objects_order_gives_the_same_snapshot(
        events in prop::collection::vec(event(), 0..40),
        order in prop::collection::vec(any::<prop::sample::Index>(), 40),
    ) {
        let mixed = interleaved(&events, &order);
        prop_assert_eq!(mixed.len(), events.len());
        prop_assert_eq!(after(&mixed), after(&events));
        prop_assert_eq!(after(&remaining(&events)), after(&events), "history leaves no trace");
    }

    #[test]
    fn a_batch_is_its_changes_one_by_one(events in prop::collection::vec(event(), 0..40)) {
        let mut cluster = Cluster::new("here");
        cluster.apply_all(events.iter().map(change));
        prop_assert_eq!(cluster.snapshot(), after(&events));
    }

    #[test]
    fn applying_twice_changes_nothing_the_second_time(
        events in prop::collection::vec(event(), 0..40),
    ) {
        let mut cluster = Cluster::new("here");
        for event in &events {
            cluster.apply(change(event));
            prop_assert!(cluster.apply(change(event)).is_empty(), "{:?}", event);
        }
        prop_assert_eq!(cluster.snapshot(), after(&events));
    }

    #[test]
    fn a_relist_is_as_good_as_a_fresh_start(
        before in prop::collection::vec(event(), 0..30),
        missed in prop::collection::vec(event(), 0..30),
    ) {
        let everything: Vec<_> = before.iter().chain(&missed).cloned().collect();
        let listed = remaining(&everything);
        let mut old = Cluster::new("here");
        old.apply_all(before.iter().map(change));
        relist(&mut old, &listed);
        let mut fresh = Cluster::new("here");
        relist(&mut fresh, &listed);
        prop_assert_eq!(old.snapshot(), fresh.snapshot());
        prop_assert!(relist(&mut old, &listed).is_empty(), "a second list says nothing new");
    }

    #[test]
    fn dirty_names_exactly_the_services_that_differ(
        events in prop::collection::vec(event(), 1..40),
    ) {
        let mut cluster = Cluster::new("here");
        for event in &events {
            let before = cluster.snapshot();
            let dirty = cluster.apply(change(event));
            prop_assert_eq!(dirty.services, differing(&before, &cluster.snapshot()));
        }
    }
}
