//! What a cluster costs in memory: the model and the names together, by the octet.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use dns::config::Options;
use dns::zone::{Origin, ZoneView};
use model::cluster::{Change, Cluster, Kind, Snapshot};
use model::endpoint::{Conditions, Endpoint, EndpointPort, EndpointSlice};
use model::name::{Family, NamespacedName, Protocol};
use model::parse::Names;
use model::service::{Service, ServicePort, ServiceType, TrafficPolicy};
use tests::memory::{self, Counting, MIB};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn service(names: &mut Names, namespace: &str, name: &str, ip: Option<IpAddr>) -> Change {
    Change::Service(Arc::new(Service {
        name: NamespacedName { namespace: names.share(namespace), name: names.share(name) },
        created: 1,
        service_type: ServiceType::ClusterIp,
        cluster_ips: ip.into_iter().collect(),
        headless: ip.is_none(),
        ports: vec![ServicePort {
            name: names.share("http"),
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
    }))
}

fn slice(
    names: &mut Names,
    (namespace, service): (&str, &str),
    idx: usize,
    endpoints: std::ops::Range<u32>,
    named: bool,
) -> Change {
    let endpoint = |names: &mut Names, number: u32| Endpoint {
        address: Ipv4Addr::from_bits(0x0a80_0000 + number).into(),
        conditions: Conditions::default(),
        node_name: Some(names.share(&format!("node-{}", number % 500))),
        zone: Some(names.share(&format!("zone-{}", number % 3))),
        hints: None,
        hostname: named.then(|| names.share(&format!("{service}-{number}"))),
        pod: Some(names.share(&format!("{service}-{number}"))),
    };
    let endpoints = endpoints.map(|number| endpoint(names, number)).collect();
    Change::Slice(Arc::new(EndpointSlice {
        name: NamespacedName {
            namespace: names.share(namespace),
            name: names.share(&format!("{service}-{idx}")),
        },
        service: NamespacedName { namespace: names.share(namespace), name: names.share(service) },
        family: Family::V4,
        ports: vec![EndpointPort {
            name: names.share("http"),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints,
        mirrored: false,
        weight: None,
        headless: named,
        last_change_trigger: None,
    }))
}

/// A cluster that is being listed, object by object, and the names made of it.
struct Listed {
    cluster: Cluster,
    view: ZoneView,
}

impl Listed {
    fn new() -> Self {
        let options = Arc::new(Options::default());
        let cluster = Cluster::new("node-0");
        let view = ZoneView::build(options, &Snapshot::default(), Origin::Watch, 1);
        Self { cluster, view }
    }

    /// Lists everything, again if it was listed before.
    fn list(&mut self, objects: impl FnOnce(&mut dyn FnMut(Change))) {
        let mut dirty = self.cluster.apply_all(Kind::ALL.map(Change::ListBegins));
        objects(&mut |change| dirty.merge(self.cluster.apply_all([change])));
        dirty.merge(self.cluster.apply_all(Kind::ALL.map(Change::ListDone)));
        self.view = self.view.update(&self.cluster.snapshot(), &dirty, Origin::Watch, 1);
    }
}

/// Lists twice. What is held after each, and at most while listing again.
fn measure(objects: impl Fn(&mut dyn FnMut(Change))) -> [usize; 3] {
    let before = memory::live();
    let held = || memory::live() - before;
    let mut listed = Listed::new();
    listed.list(&objects);
    let first = held();
    memory::forget_peak();
    listed.list(&objects);
    let peak = memory::peak() - before;
    assert!(listed.view.n_services() > 0);
    [first, held(), peak]
}

/// One test: they would count each other's memory.
#[test]
fn a_cluster_is_held_in_little_more_than_its_names_and_addresses() {
    // 10,000 Services of three endpoints.
    let services = |say: &mut dyn FnMut(Change)| {
        let mut names = Names::default();
        for number in 0..10_000_u32 {
            let namespace = format!("team-{}", number % 100);
            let name = format!("service-{number}");
            let ip = Ipv4Addr::from_bits(0x0a60_0000 + number).into();
            say(service(&mut names, &namespace, &name, Some(ip)));
            let endpoints = number * 3..number * 3 + 3;
            say(slice(&mut names, (&namespace, &name), 0, endpoints, false));
        }
    };
    let [first, again, peak] = measure(services);
    println!(
        "10,000 Services, 30,000 endpoints: {first} octets, {again} listed again, {peak} at most"
    );
    assert!(first <= 25 * MIB, "{first}");
    assert!(again <= 25 * MIB, "{again}");
    assert!(peak <= 25 * MIB * 13 / 10, "{peak}");

    // 100 headless Services of a thousand endpoints, as StatefulSets make them.
    let endpoints = |say: &mut dyn FnMut(Change)| {
        let mut names = Names::default();
        for number in 0..100_u32 {
            let name = format!("db-{number}");
            say(service(&mut names, "data", &name, None));
            for idx in 0..10_u32 {
                let first = (number * 10 + idx) * 100;
                let of = ("data", &*name);
                say(slice(&mut names, of, idx as usize, first..first + 100, true));
            }
        }
    };
    let [first, again, peak] = measure(endpoints);
    println!("100,000 headless endpoints: {first} octets, {again} listed again, {peak} at most");
    assert!(first <= 80 * MIB, "{first}");
    assert!(again <= 80 * MIB, "{again}");
    assert!(peak <= 80 * MIB * 13 / 10, "{peak}");
}
