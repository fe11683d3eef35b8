//! The planner on clusters built by hand. What a Service means is held by `tests/cases/service`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use expect_test::expect;
use model::cluster::{Change, Cluster, Dirty};
use model::endpoint::{Conditions, Endpoint, EndpointPort, EndpointSlice};
use model::name::{Family, NamespacedName, Protocol};
use model::service::{Service, ServicePort, ServiceType, TrafficPolicy};

use crate::backend::Unsupported;
use crate::config::{DetectLocal, NodeConfig};
use crate::delta::{Actual, Op, delta};
use crate::plan::{At, Frontend, FrontendKey, FrontendKind, Planner, Target, plan};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn service(name: &str, cluster_ip: &str) -> Service {
    Service {
        name: NamespacedName::new("shop", name),
        created: 0,
        service_type: ServiceType::ClusterIp,
        cluster_ips: vec![ip(cluster_ip)],
        headless: false,
        ports: vec![ServicePort {
            name: "".into(),
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

fn slice(service: &str, addresses: &[&str]) -> EndpointSlice {
    EndpointSlice {
        name: NamespacedName::new("shop", format!("{service}-1")),
        service: NamespacedName::new("shop", service),
        family: Family::V4,
        ports: vec![EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: addresses
            .iter()
            .map(|address| Endpoint {
                address: ip(address),
                conditions: Conditions::default(),
                node_name: None,
                zone: None,
                hints: None,
                hostname: None,
                pod: None,
            })
            .collect(),
        mirrored: false,
        headless: false,
        last_change_trigger: None,
        weight: None,
    }
}

fn key(address: &str) -> FrontendKey {
    FrontendKey { at: At::Address(ip(address)), port: 80, protocol: Protocol::Tcp }
}

#[test]
fn a_cluster_ip_leads_to_the_endpoints_of_its_port() {
    let mut cluster = Cluster::new("node-a");
    cluster.apply(Change::Service(Arc::new(service("web", "10.96.0.10"))));
    cluster.apply(Change::Slice(Arc::new(slice("web", &["10.0.0.2", "10.0.0.1"]))));

    let plan = plan(&cluster.snapshot(), &NodeConfig::new("node-a"));

    let frontend = plan.frontends.get(&key("10.96.0.10")).unwrap();
    assert_eq!(frontend.kind, FrontendKind::ClusterIp);
    let Target::Endpoints(set) = &frontend.routes.pod.target else { panic!("{frontend:?}") };
    let addresses: Vec<SocketAddr> = set.iter().map(|endpoint| endpoint.address).collect();
    assert_eq!(addresses, ["10.0.0.1:8080".parse().unwrap(), "10.0.0.2:8080".parse().unwrap()]);
}

#[test]
fn the_loser_of_an_address_takes_it_over_when_the_winner_goes() {
    let mut cluster = Cluster::new("node-a");
    let mut planner = Planner::new(NodeConfig::new("node-a"));
    let mut late = service("late", "10.96.0.1");
    let mut early = service("early", "10.96.0.2");
    late.external_ips = vec![ip("203.0.113.1")];
    late.created = 2;
    early.external_ips = vec![ip("203.0.113.1")];
    early.created = 1;
    let winner = |planner: &Planner| {
        planner
            .plan()
            .frontends
            .get(&key("203.0.113.1"))
            .map(|frontend| frontend.service.to_string())
    };

    cluster.apply(Change::Service(Arc::new(late)));
    planner.replan(&cluster.snapshot(), &Dirty::everything());
    assert_eq!(winner(&planner).as_deref(), Some("shop/late"));

    let dirty = cluster.apply(Change::Service(Arc::new(early.clone())));
    planner.replan(&cluster.snapshot(), &dirty);
    assert_eq!(winner(&planner).as_deref(), Some("shop/early"));
    let problems: Vec<String> = planner.plan().problems().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        ["Service shop/late: spec.externalIPs: 203.0.113.1:80/tcp is already served for Service \
             shop/early (external-ip); remove it from one of the two"]
    );

    let dirty = cluster.apply(Change::ServiceGone(early.name));
    let change = planner.replan(&cluster.snapshot(), &dirty);
    assert_eq!(winner(&planner).as_deref(), Some("shop/late"));
    assert_eq!(planner.plan().problems().count(), 0);
    assert!(change.problems && !change.is_empty());
}

#[test]
fn what_the_backend_cannot_do_is_left_out_as_a_problem_and_its_claim_stays() {
    let mut cluster = Cluster::new("node-a");
    let mut first = service("first", "10.96.0.1");
    let mut second = service("second", "10.96.0.2");
    first.external_ips = vec![ip("203.0.113.1")];
    first.session_affinity = Some(Duration::from_secs(60));
    second.external_ips = vec![ip("203.0.113.1")];
    cluster.apply(Change::Service(Arc::new(first.clone())));
    cluster.apply(Change::Service(Arc::new(second)));
    let supports = |frontend: &Frontend| match frontend.affinity {
        None => Ok(()),
        Some(_) => Err(Unsupported {
            field: "spec.sessionAffinity".to_owned(),
            reason: "this backend has none; set it to None".to_owned(),
        }),
    };
    let mut planner = Planner::new(NodeConfig::new("node-a")).supporting(Arc::new(supports));
    planner.replan(&cluster.snapshot(), &Dirty::everything());

    let served: Vec<String> = planner.plan().frontends.keys().map(ToString::to_string).collect();
    assert_eq!(served, ["10.96.0.2:80/tcp"]);
    let problems: Vec<String> = planner.plan().problems().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "Service shop/first: spec.sessionAffinity: 10.96.0.1:80/tcp: this backend has none; \
             set it to None",
            "Service shop/first: spec.sessionAffinity: 203.0.113.1:80/tcp: this backend has none; \
             set it to None",
            "Service shop/second: spec.externalIPs: 203.0.113.1:80/tcp is already served for \
             Service shop/first (external-ip); remove it from one of the two",
        ]
    );
    let text = planner.plan().to_string();
    assert!(text.contains("  203.0.113.1:80/tcp external-ip: left out\n"), "{text}");

    // As soon as it can be done it is, and by the one who had the claim.
    first.session_affinity = None;
    let dirty = cluster.apply(Change::Service(Arc::new(first)));
    let change = planner.replan(&cluster.snapshot(), &dirty);
    let winner = &planner.plan().frontends[&key("203.0.113.1")];
    assert_eq!(winner.service.to_string(), "shop/first");
    assert!(change.frontends.contains_key(&key("203.0.113.1")));
    assert_eq!(planner.plan().problems().count(), 1);
}

#[test]
fn the_loser_is_told_anew_when_the_winner_claims_by_another_field() {
    let mut cluster = Cluster::new("node-a");
    let mut planner = Planner::new(NodeConfig::new("node-a"));
    let mut loser = service("b", "10.96.0.1");
    loser.external_ips = vec![ip("203.0.113.1")];
    let mut winner = service("a", "10.96.0.2");
    winner.load_balancer_vips = vec![ip("203.0.113.1")];
    cluster.apply(Change::Service(Arc::new(loser)));
    cluster.apply(Change::Service(Arc::new(winner.clone())));
    planner.replan(&cluster.snapshot(), &Dirty::everything());

    winner.external_ips = std::mem::take(&mut winner.load_balancer_vips);
    let dirty = cluster.apply(Change::Service(Arc::new(winner)));
    let change = planner.replan(&cluster.snapshot(), &dirty);

    let told = planner.plan().problems().next().unwrap().to_string();
    assert!(told.contains("served for Service shop/a (external-ip)"), "{told}");
    assert!(change.problems);
}

#[test]
fn the_api_server_and_dns_are_programmed_first() {
    let mut cluster = Cluster::new("node-a");
    for (namespace, name, cluster_ip) in [
        ("a", "web", "10.96.0.1"),
        ("default", "kubernetes", "10.96.0.9"),
        ("default", "other", "10.96.0.2"),
        ("kube-system", "kube-dns", "10.96.0.8"),
        ("kube-system", "other", "10.96.0.3"),
    ] {
        let service =
            Service { name: NamespacedName::new(namespace, name), ..service(name, cluster_ip) };
        cluster.apply(Change::Service(Arc::new(service)));
    }
    let plan = plan(&cluster.snapshot(), &NodeConfig::new("node-a"));

    let ops = delta(&Actual::default(), &plan);

    let put: Vec<String> = ops
        .iter()
        .filter_map(|op| match op {
            Op::Put { frontend, .. } => Some(frontend.service.to_string()),
            _ => None,
        })
        .collect();
    let expected = [
        "default/kubernetes",
        "kube-system/kube-dns",
        "a/web",
        "default/other",
        "kube-system/other",
    ];
    assert_eq!(put, expected);
}

#[test]
fn a_plan_prints_every_route_with_who_takes_it() {
    let mut cluster = Cluster::new("node-a");
    let mut web = service("web", "10.96.0.10");
    web.ports[0].node_port = 30080;
    web.external_ips = vec![ip("203.0.113.1")];
    web.external_traffic_policy = TrafficPolicy::Local;
    let mut late = service("zoo", "10.96.0.20");
    late.external_ips = vec![ip("203.0.113.1")];
    let heavy = EndpointSlice {
        name: NamespacedName::new("shop", "web-2"),
        weight: Some(3),
        ..slice("web", &["10.0.0.2"])
    };
    cluster.apply(Change::Service(Arc::new(web)));
    cluster.apply(Change::Service(Arc::new(late)));
    cluster.apply(Change::Slice(Arc::new(slice("web", &["10.0.0.1"]))));
    cluster.apply(Change::Slice(Arc::new(heavy)));
    let config = NodeConfig {
        detect_local: DetectLocal::ClusterCidr(vec!["10.0.0.0/16".parse().unwrap()]),
        ..NodeConfig::new("node-a")
    };

    let text = plan(&cluster.snapshot(), &config).to_string();

    expect![[r#"
        Node
          IPv4: address none; pods from 10.0.0.0/16; node ports in 0.0.0.0/0, of loopback in 127.0.0.0/8
          IPv6: address none; pods not told; node ports in ::/0, of loopback in ::1/128

        Service shop/web
          10.96.0.10:80/tcp cluster-ip
            from pod: 10.0.0.1:8080*1 10.0.0.2:8080*3
            from node, outside: 10.0.0.1:8080*1 10.0.0.2:8080*3 masquerade
          203.0.113.1:80/tcp external-ip
            from pod: 10.0.0.1:8080*1 10.0.0.2:8080*3
            from node: 10.0.0.1:8080*1 10.0.0.2:8080*3 masquerade
            from outside: DROP
          *:30080/tcp node-port
            from pod: 10.0.0.1:8080*1 10.0.0.2:8080*3
            from node: 10.0.0.1:8080*1 10.0.0.2:8080*3 masquerade
            from outside: DROP
          10.96.0.10, other ports: REJECT
          203.0.113.1, other ports: left alone
          externalTrafficPolicy is Local, and 1 ports have no endpoint here

        Service shop/zoo
          10.96.0.20:80/tcp cluster-ip
            from anywhere: REJECT
          203.0.113.1:80/tcp external-ip: lost to Service shop/web
          10.96.0.20, other ports: REJECT
          203.0.113.1, other ports: left alone

        left out
          Service shop/zoo: spec.externalIPs: 203.0.113.1:80/tcp is already served for Service shop/web (external-ip); remove it from one of the two
    "#]].assert_eq(&text);
}

#[test]
fn a_node_that_answers_names_asks_the_cluster_dns_of_other_nodes_while_there_are_any() {
    let serving = |nodes: &[&str]| {
        let mut cluster = Cluster::new("node-a");
        let mut dns = service("kube-dns", "10.96.0.10");
        dns.name = NamespacedName::new("kube-system", "kube-dns");
        cluster.apply(Change::Service(Arc::new(dns)));
        let addresses: Vec<String> = (1..=nodes.len()).map(|n| format!("172.18.0.{n}")).collect();
        let texts: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let mut slice = slice("kube-dns", &texts);
        slice.name = NamespacedName::new("kube-system", "kube-dns-1");
        slice.service = NamespacedName::new("kube-system", "kube-dns");
        for (endpoint, node) in slice.endpoints.iter_mut().zip(nodes) {
            endpoint.node_name = Some((*node).into());
        }
        cluster.apply(Change::Slice(Arc::new(slice)));
        let config = NodeConfig { answers_names: true, ..NodeConfig::new("node-a") };
        plan(&cluster.snapshot(), &config).to_string()
    };
    let both = serving(&["node-a", "node-b"]);
    assert!(both.contains("172.18.0.2:") && !both.contains("172.18.0.1:"), "{both}");
    let alone = serving(&["node-a"]);
    assert!(alone.contains("172.18.0.1:"), "better than nobody: {alone}");
}
