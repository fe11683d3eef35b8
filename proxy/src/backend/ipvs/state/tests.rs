//! Frontends in, changes out.

use std::net::SocketAddr;

use ipnet::IpNet;
use model::name::{NamespacedName, Protocol, ServicePortName};

use super::*;
use crate::backend::ipvs::desired::{MARKS, OF_TCP};
use crate::backend::ipvs::item::{Virtual, VirtualKey};
use crate::plan::settings::PodSource;
use crate::plan::{Endpoint, EndpointSet, FrontendKind, Masquerade, Route, Routes, Target};

fn settings() -> Arc<Settings> {
    let mut settings = Settings::default();
    settings.pods.v4 = Some(PodSource::Cidr("10.244.0.0/16".parse().unwrap()));
    settings.node_ports.v4.within = vec!["0.0.0.0/0".parse().unwrap()];
    Arc::new(settings)
}

fn to(endpoints: &[(&str, u16)], masquerade: Masquerade) -> Route {
    let endpoint = |(text, weight): &(&str, u16)| Endpoint {
        address: text.parse().unwrap(),
        weight: *weight,
        local: text.starts_with("10.244.1."),
    };
    let set = EndpointSet::new(endpoints.iter().map(endpoint).collect());
    Route::new(set.map_or(Target::Reject, Target::Endpoints), masquerade)
}

fn frontend(kind: FrontendKind, [pod, node, outside]: [Route; 3]) -> Arc<Frontend> {
    let name = NamespacedName::new("shop", "web");
    let service = ServicePortName { service: name, port: "".into(), protocol: Protocol::Tcp };
    let routes = Routes { pod, node, outside };
    let serving = Arc::default();
    let (source_ranges, affinity, ends_connections) = (None, None, false);
    let frontend =
        Frontend { service, kind, routes, source_ranges, affinity, ends_connections, serving };
    Arc::new(frontend)
}

fn key(at: At, port: u16) -> FrontendKey {
    FrontendKey { at, port, protocol: Protocol::Tcp }
}

fn at(text: &str) -> At {
    At::Address(text.parse().unwrap())
}

fn put(state: &mut State, key: FrontendKey, frontend: &Arc<Frontend>) {
    state.take(&Op::Put { key, frontend: Arc::clone(frontend) });
}

fn state() -> State {
    let mut state = State::default();
    state.options.scheduler = "rr".to_owned();
    state.take(&Op::Settings(settings()));
    state.set_local(["172.18.0.1".parse().unwrap(), "10.244.1.1".parse().unwrap()].into());
    state
}

/// Carries the changes out, and prints them.
fn written(state: &mut State) -> Vec<String> {
    let changes = state.changes(true);
    let mut lines = Vec::new();
    for change in changes {
        let sign = if change.after.is_some() { '+' } else { '-' };
        let what = match (&change.key, &change.after) {
            (Key::Entry(set, family, text), Some(Value::Mark(mark))) => {
                assert_eq!(mark & !MARKS, 0, "others' bits are left alone");
                let tcp = if mark & OF_TCP == 0 { "" } else { " of TCP" };
                format!("{} {text} mark{tcp}", set.name(*family))
            }
            (Key::Entry(set, family, text), _) => format!("{} {text}", set.name(*family)),
            (Key::Virtual(VirtualKey::Mark(..)), after) => format!("mark{}", shown(after.as_ref())),
            (Key::Virtual(at), after) => format!("{at}{}", shown(after.as_ref())),
            (Key::Address(address), _) => format!("address {address}"),
        };
        lines.push(format!("{sign} {what}"));
        state.hold(change.key, change.after);
    }
    lines.sort();
    lines
}

fn shown(value: Option<&Value>) -> String {
    let Some(Value::Virtual(Virtual { head, destinations })) = value else { return String::new() };
    let to: Vec<String> =
        destinations.iter().map(|(at, weight)| format!("{at}*{weight}")).collect();
    format!(" {} {} ▶ {}", head.scheduler, head.timeout, to.join(" "))
}

#[test]
fn a_cluster_ip_is_a_virtual_service_at_an_address_of_ours() {
    let mut state = state();
    let route = to(&[("10.244.1.2:80", 1), ("10.244.2.2:80", 1)], Masquerade::Always);
    let hairpin = Route { masquerade: Masquerade::Hairpin, ..route.clone() };
    let frontend = frontend(FrontendKind::ClusterIp, [hairpin, route.clone(), route]);
    put(&mut state, key(at("10.96.0.10"), 80), &frontend);
    let address: IpAddr = "10.96.0.10".parse().unwrap();
    state.take(&Op::Own { address, undefined: Undefined::Reject });
    let there = [
        "KUBE-CLUSTER-IP 10.96.0.10,tcp:80",
        "KUBE-IPVS-IPS 10.96.0.10",
        "KUBE-IPVS-LOOP-BACK 10.244.1.2,tcp:80,10.244.1.2",
        "KUBE-IPVS-LOOP-BACK 10.244.2.2,tcp:80,10.244.2.2",
        "address 10.96.0.10",
    ];
    let virt = "10.96.0.10:80/tcp";
    let mut expected: Vec<String> =
        vec![format!("+ {virt} rr 0 ▶ 10.244.1.2:80*1 10.244.2.2:80*1")];
    expected.extend(there.map(|it| format!("+ {it}")));
    expected.sort();
    assert_eq!(written(&mut state), expected);
    assert_eq!(written(&mut state), [""; 0]);

    state.take(&Op::Remove { key: key(at("10.96.0.10"), 80) });
    state.take(&Op::Disown { address });
    let mut expected: Vec<String> = vec![format!("- {virt}")];
    expected.extend(there.map(|it| format!("- {it}")));
    expected.sort();
    assert_eq!(written(&mut state), expected);
    assert!(state.held().is_empty() && state.desired.is_empty());
}

#[test]
fn an_address_that_the_node_has_anyway_is_left_to_whoever_listens_there() {
    let mut state = state();
    let route = to(&[("10.244.1.2:80", 1)], Masquerade::Always);
    let frontend = frontend(FrontendKind::LoadBalancer, [route.clone(), route.clone(), route]);
    put(&mut state, key(at("192.0.2.20"), 80), &frontend);
    let address: IpAddr = "192.0.2.20".parse().unwrap();
    state.take(&Op::Own { address, undefined: Undefined::Leave });
    let ours =
        |sign| ["KUBE-IPVS-IPS 192.0.2.20", "address 192.0.2.20"].map(|it| format!("{sign} {it}"));
    let first = written(&mut state);
    assert!(ours('+').iter().all(|line| first.contains(line)), "{first:?}");

    // It floats to this node, and away again. The virtual service stays.
    let before = state.local().clone();
    state.set_local(before.iter().copied().chain([address]).collect());
    assert_eq!(written(&mut state), ours('-'));
    state.set_local(before);
    assert_eq!(written(&mut state), ours('+'));
}

#[test]
fn pods_and_the_node_are_led_by_marks_where_others_get_local_endpoints_only() {
    let mut state = state();
    let all = [("10.244.1.2:80", 1), ("10.244.2.2:80", 1)];
    let routes = [
        to(&all, Masquerade::Hairpin),
        to(&all, Masquerade::Always),
        to(&all[..1], Masquerade::Hairpin),
    ];
    put(
        &mut state,
        key(at("192.0.2.20"), 80),
        &frontend(FrontendKind::LoadBalancer, routes.clone()),
    );
    expect_test::expect![[r#"
        + 192.0.2.20:80/tcp rr 0 ▶ 10.244.1.2:80*1
        + KUBE-IPVS-IPS 192.0.2.20
        + KUBE-IPVS-LOOP-BACK 10.244.1.2,tcp:80,10.244.1.2
        + KUBE-IPVS-LOOP-BACK 10.244.2.2,tcp:80,10.244.2.2
        + KUBE-LOAD-BALANCER 192.0.2.20,tcp:80
        + KUBE-LOAD-BALANCER-LOCAL 192.0.2.20,tcp:80
        + KUBE-ROUTE-NODE 192.0.2.20,tcp:80 mark of TCP
        + KUBE-ROUTE-POD 192.0.2.20,tcp:80 mark of TCP
        + address 192.0.2.20
        + mark rr 0 ▶ 10.244.1.2:80*1 10.244.2.2:80*1
        + mark rr 0 ▶ 10.244.1.2:80*1 10.244.2.2:80*1"#]]
    .assert_eq(&written(&mut state).join("\n"));

    // No local endpoint any more: whoever is outside is dropped, and nobody needs a mark.
    let [pod, node, _] = routes;
    let outside = Route::new(Target::Drop, Masquerade::Hairpin);
    let lost = frontend(FrontendKind::LoadBalancer, [pod, node, outside]);
    put(&mut state, key(at("192.0.2.20"), 80), &lost);
    expect_test::expect![[r#"
        + 192.0.2.20:80/tcp rr 0 ▶ 10.244.1.2:80*1 10.244.2.2:80*1
        + KUBE-DROP-OUTSIDE 192.0.2.20,tcp:80
        - KUBE-ROUTE-NODE 192.0.2.20,tcp:80
        - KUBE-ROUTE-POD 192.0.2.20,tcp:80
        - mark
        - mark"#]]
    .assert_eq(&written(&mut state).join("\n"));
}

#[test]
fn node_ports_are_at_the_nodes_addresses_and_follow_them() {
    let mut state = state();
    let route = to(&[("10.244.2.2:80", 1), ("10.244.2.3:80", 3)], Masquerade::Always);
    let frontend = frontend(FrontendKind::NodePort, [route.clone(), route.clone(), route]);
    put(&mut state, key(At::NodePort(Family::V4), 30080), &frontend);
    let at_each = |sign: &str, address: &str| {
        [
            format!("{sign} {address}:30080/tcp wrr 0 ▶ 10.244.2.2:80*1 10.244.2.3:80*3"),
            format!("{sign} KUBE-NODE-PORT {address},tcp:30080"),
        ]
    };
    let mut expected: Vec<String> =
        [at_each("+", "10.244.1.1"), at_each("+", "172.18.0.1")].concat();
    let loops = ["10.244.2.2", "10.244.2.3"];
    expected.extend(loops.map(|it| format!("+ KUBE-IPVS-LOOP-BACK {it},tcp:80,{it}")));
    expected.sort();
    assert_eq!(written(&mut state), expected);

    state.set_local(["172.18.0.1".parse().unwrap(), "172.18.0.9".parse().unwrap()].into());
    let mut expected = at_each("+", "172.18.0.9").to_vec();
    expected.push("- 10.244.1.1:30080/tcp".to_owned());
    expected.push("- KUBE-NODE-PORT 10.244.1.1,tcp:30080".to_owned());
    expected.sort();
    assert_eq!(written(&mut state), expected);

    // An address of a Service hides the node ports there.
    let address: IpAddr = "172.18.0.9".parse().unwrap();
    state.take(&Op::Own { address, undefined: Undefined::Leave });
    let expected = [
        "+ KUBE-IPVS-LEFT 172.18.0.9",
        "- 172.18.0.9:30080/tcp",
        "- KUBE-NODE-PORT 172.18.0.9,tcp:30080",
    ];
    assert_eq!(written(&mut state), expected);
}

#[test]
fn who_may_use_a_vip_is_in_a_set_and_clients_are_remembered() {
    let mut state = state();
    let route = to(&[("10.244.2.2:80", 1)], Masquerade::Always);
    let mut frontend =
        (*frontend(FrontendKind::LoadBalancer, [route.clone(), route.clone(), route])).clone();
    let ranges: Vec<IpNet> =
        vec!["203.0.113.0/24".parse().unwrap(), "198.51.100.7/32".parse().unwrap()];
    frontend.source_ranges = Some(ranges.into());
    frontend.affinity = Some(std::time::Duration::from_secs(600));
    put(&mut state, key(at("192.0.2.20"), 80), &Arc::new(frontend));
    expect_test::expect![[r#"
        + 192.0.2.20:80/tcp rr 600 ▶ 10.244.2.2:80*1
        + KUBE-IPVS-IPS 192.0.2.20
        + KUBE-IPVS-LOOP-BACK 10.244.2.2,tcp:80,10.244.2.2
        + KUBE-LOAD-BALANCER 192.0.2.20,tcp:80
        + KUBE-LOAD-BALANCER-FW 192.0.2.20,tcp:80
        + KUBE-LOAD-BALANCER-SOURCE-CIDR 192.0.2.20,tcp:80,198.51.100.7
        + KUBE-LOAD-BALANCER-SOURCE-CIDR 192.0.2.20,tcp:80,203.0.113.0/24
        + address 192.0.2.20"#]]
    .assert_eq(&written(&mut state).join("\n"));
}

#[test]
fn nothing_but_sets_is_written_before_this_mode_is_in_charge() {
    let mut state = state();
    let route = to(&[("10.244.2.2:80", 1)], Masquerade::Always);
    let routes = [route.clone(), route.clone(), route];
    put(&mut state, key(at("10.96.0.10"), 80), &frontend(FrontendKind::ClusterIp, routes));
    let early = state.changes(false);
    assert!(early.iter().all(|it| matches!(it.key, Key::Entry(..))), "{early:?}");
    assert_eq!(early.len(), 3);
    early.into_iter().for_each(|it| state.hold(it.key, it.after));
    let rest: Vec<Key> = state.changes(true).into_iter().map(|it| it.key).collect();
    let service: SocketAddr = "10.96.0.10:80".parse().unwrap();
    let expected = [
        Key::Virtual(VirtualKey::At(service, Protocol::Tcp)),
        Key::Address("10.96.0.10".parse().unwrap()),
    ];
    assert_eq!(rest, expected);
}

#[test]
fn what_was_found_and_nobody_asks_for_goes() {
    let mut state = state();
    let stale = Key::Address("10.96.0.99".parse().unwrap());
    state.found(HashMap::from([(stale, Value::There)]));
    assert_eq!(written(&mut state), ["- address 10.96.0.99"]);
}
