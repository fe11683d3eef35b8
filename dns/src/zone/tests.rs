//! A view changed is the view built.

use std::net::{IpAddr, Ipv6Addr};

use model::cluster::{Change, Cluster, Kind};
use model::endpoint::{Conditions, Endpoint, EndpointPort, EndpointSlice};
use model::name::{Family, Protocol};
use model::pod::Namespace;
use model::service::{Service, ServicePort, ServiceType, TrafficPolicy};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::config::PodMode;

/// One thing that happens to a small cluster.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    Service { name: &'static str, kind: u8, dual: bool },
    ServiceGone(&'static str),
    Slice { idx: u8, of: &'static str, v6: bool, hosts: Vec<(u8, bool, bool)>, port: Option<u16> },
    SliceGone(u8),
    Namespace(&'static str),
    Relist,
}

pub(super) fn service(name: &str, kind: u8, dual: bool) -> Service {
    let last = u8::try_from(name.len()).unwrap();
    let mut cluster_ips: Vec<IpAddr> = vec![[10, 96, 0, last].into()];
    if dual {
        cluster_ips.push(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)).into());
    }
    let service_type = match kind {
        2 => ServiceType::ExternalName("web.shop.svc.cluster.local".into()),
        _ => ServiceType::ClusterIp,
    };
    Service {
        name: NamespacedName::new("shop", name),
        created: 0,
        service_type,
        cluster_ips: if kind == 0 { cluster_ips } else { Vec::new() },
        headless: kind == 1,
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 0,
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

fn slice(
    idx: u8,
    of: &str,
    v6: bool,
    hosts: &[(u8, bool, bool)],
    port: Option<u16>,
) -> EndpointSlice {
    let address = |host: u8| -> IpAddr {
        match v6 {
            false => [10, 0, 0, host].into(),
            true => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)).into(),
        }
    };
    EndpointSlice {
        name: NamespacedName::new("shop", format!("slice-{idx}")),
        service: NamespacedName::new("shop", of),
        family: if v6 { Family::V6 } else { Family::V4 },
        ports: port
            .map(|port| EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port })
            .into_iter()
            .collect(),
        endpoints: hosts
            .iter()
            .map(|&(host, ready, named)| Endpoint {
                address: address(host),
                conditions: Conditions { ready, ..Conditions::default() },
                node_name: None,
                zone: None,
                hints: None,
                hostname: named.then(|| format!("host-{}", host % 3).into()),
                pod: Some(format!("pod-{host}").into()),
            })
            .collect(),
        mirrored: false,
        weight: None,
        headless: false,
        last_change_trigger: None,
    }
}

impl Object {
    fn changes(&self) -> Vec<Change> {
        match self {
            Self::Service { name, kind, dual } => {
                vec![Change::Service(service(name, *kind, *dual).into())]
            }
            Self::ServiceGone(name) => {
                vec![Change::ServiceGone(NamespacedName::new("shop", *name))]
            }
            Self::Slice { idx, of, v6, hosts, port } => {
                vec![Change::Slice(slice(*idx, of, *v6, hosts, *port).into())]
            }
            Self::SliceGone(idx) => {
                vec![Change::SliceGone(NamespacedName::new("shop", format!("slice-{idx}")))]
            }
            Self::Namespace(name) => vec![Change::Namespace(Namespace::new(*name))],
            Self::Relist => {
                vec![Change::ListBegins(Kind::EndpointSlice), Change::ListDone(Kind::EndpointSlice)]
            }
        }
    }
}

pub(crate) fn objects() -> impl Strategy<Value = Vec<Object>> {
    let name = || prop_oneof![Just("web"), Just("db"), Just("alias")];
    let hosts = vec((0..9_u8, any::<bool>(), any::<bool>()), 0..6);
    let port = prop_oneof![Just(None), Just(Some(8080)), Just(Some(9090))];
    let object = prop_oneof![
        4 => (name(), 0..3_u8, any::<bool>()).prop_map(|(name, kind, dual)| Object::Service { name, kind, dual }),
        1 => name().prop_map(Object::ServiceGone),
        6 => (0..4_u8, name(), any::<bool>(), hosts, port)
            .prop_map(|(idx, of, v6, hosts, port)| Object::Slice { idx, of, v6, hosts, port }),
        1 => (0..4_u8).prop_map(Object::SliceGone),
        1 => prop_oneof![Just("shop"), Just("quiet")].prop_map(Object::Namespace),
        1 => Just(Object::Relist),
    ];
    vec(object, 0..14)
}

pub(crate) fn apply(objects: &[Object]) -> Snapshot {
    let mut cluster = Cluster::new("node-a");
    cluster.apply_all(objects.iter().flat_map(Object::changes));
    cluster.snapshot()
}

proptest! {
    #[test]
    fn a_view_updated_step_by_step_is_the_view_built_at_once(
        objects in objects(),
        whole in vec(any::<bool>(), 14),
        pods in any::<bool>(),
        ignore_empty_service in any::<bool>(),
    ) {
        let pods = if pods { PodMode::Verified } else { PodMode::Disabled };
        let options = Arc::new(Options { pods, endpoint_pod_names: ignore_empty_service, ignore_empty_service, ..Options::default() });
        let mut cluster = Cluster::new("node-a");
        let mut view = ZoneView::build(Arc::clone(&options), &cluster.snapshot(), Origin::Watch, 0);
        for (idx, object) in objects.iter().enumerate() {
            let mut dirty = cluster.apply_all(object.changes());
            if whole[idx] {
                dirty = Dirty::everything();
            }
            view = view.update(&cluster.snapshot(), &dirty, Origin::Watch, 0);
            let built = ZoneView::build(Arc::clone(&options), &cluster.snapshot(), Origin::Watch, 0);
            prop_assert_eq!(&view, &built);
            prop_assert_eq!(format!("{view:?}"), format!("{built:?}"));
        }
    }
}

#[test]
fn an_update_that_changes_nothing_keeps_serial_and_services() {
    let objects = [Object::Service { name: "web", kind: 0, dual: false }];
    let snapshot = apply(&objects);
    let before = ZoneView::build(Arc::default(), &snapshot, Origin::Watch, 100);
    let after = before.update(&snapshot, &Dirty::everything(), Origin::Watch, 200);
    assert_eq!((before.serial(), after.serial()), (100, 100));
    let key = service::key(&NamespacedName::new("shop", "web"));
    let of = |view: &ZoneView| std::ptr::from_ref(view.service(Key(&key)).unwrap());
    assert!(std::ptr::eq(of(&before), of(&after)));
}

#[test]
fn the_serial_never_goes_back() {
    let one = apply(&[Object::Service { name: "web", kind: 0, dual: false }]);
    let two = apply(&[Object::Service { name: "web", kind: 0, dual: true }]);
    let before = ZoneView::build(Arc::default(), &one, Origin::Watch, 100);
    let clock_set_back = before.update(&two, &Dirty::everything(), Origin::Watch, 50);
    assert_eq!(clock_set_back.serial(), 100);
}

#[test]
fn the_key_in_front_of_a_name_is_its_services_and_never_on_the_heap() {
    let key = service::key_in_front(b"\x03Web\x04SHOP\x03svc\0").unwrap();
    assert_eq!(key[..], service::key(&NamespacedName::new("shop", "web"))[..]);
    let longest = [&[63][..], &[b'a'; 63], &[63], &[b'b'; 63]].concat();
    assert!(!service::key_in_front(&longest).unwrap().spilled());
    for hostile in [&[][..], b"\0", b"\x03we", b"\x03web", &[255; 600]] {
        assert_eq!(service::key_in_front(hostile), None);
    }
}
