//! What the tables are for some Services, and what changes them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use expect_test::{Expect, expect};
use model::name::{Family, NamespacedName, Protocol, ServicePortName};

use super::*;
use crate::plan::settings::PodSource;
use crate::plan::{At, Endpoint, EndpointSet, FrontendKind, Masquerade, Route, Routes, Target};

fn set(endpoints: &[(&str, bool)]) -> EndpointSet {
    let endpoint = |(address, local): &(&str, bool)| Endpoint {
        address: address.parse().unwrap(),
        weight: 1,
        local: *local,
    };
    EndpointSet::new(endpoints.iter().map(endpoint).collect()).unwrap()
}

fn to(set: &EndpointSet, masquerade: Masquerade) -> Route {
    Route::new(Target::Endpoints(set.clone()), masquerade)
}

fn frontend(name: &str, kind: FrontendKind, routes: Routes) -> Arc<Frontend> {
    let service = ServicePortName {
        service: NamespacedName::new("shop", name),
        port: "http".into(),
        protocol: Protocol::Tcp,
    };
    let serving: Arc<[SocketAddr]> = Arc::new([]);
    let (source_ranges, affinity, ends_connections) = (None, None, false);
    let frontend =
        Frontend { service, kind, routes, source_ranges, affinity, ends_connections, serving };
    Arc::new(frontend)
}

fn at(address: &str, port: u16) -> FrontendKey {
    let at = At::Address(address.parse().unwrap());
    FrontendKey { at, port, protocol: Protocol::Tcp }
}

fn cluster_ip(endpoints: &[(&str, bool)]) -> Arc<Frontend> {
    let set = set(endpoints);
    let (pod, other) = (to(&set, Masquerade::Hairpin), to(&set, Masquerade::Always));
    let routes = Routes { pod, node: other.clone(), outside: other };
    frontend("web", FrontendKind::ClusterIp, routes)
}

/// Tables that are in charge, of a node that knows its pods, with nothing in them.
fn tables() -> Tables {
    let mut tables = Tables::new(Family::V4);
    let mut settings = Settings::default();
    settings.pods.v4 = Some(PodSource::Cidr("10.244.1.0/24".parse().unwrap()));
    settings.node_ports.v4.within = vec!["0.0.0.0/0".parse().unwrap()];
    settings.service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    tables.set_settings(&Arc::new(settings));
    tables.set_charge(Charge::Full);
    tables
}

/// The next transaction, which is carried out.
fn next(tables: &mut Tables) -> String {
    let text = render(tables);
    tables.commit();
    text
}

fn render(tables: &mut Tables) -> String {
    let changes = tables.prepare();
    let mut text = Vec::new();
    tables.write(&mut text).unwrap();
    assert_eq!(changes, !text.is_empty());
    String::from_utf8(text).unwrap()
}

fn check(text: &str, expected: &Expect) {
    expected.assert_eq(text);
}

#[test]
fn an_endpoint_that_changes_is_one_chain() {
    let mut tables = tables();
    let key = at("10.96.0.10", 80);
    tables.set_frontend(&key, Some(&cluster_ip(&[("10.244.2.2:80", false)])));
    let first = next(&mut tables);
    assert!(
        first.contains("-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment"),
        "{first}"
    );
    assert_eq!(next(&mut tables), "", "nothing is left to do");

    let three = [("10.244.1.2:80", true), ("10.244.2.2:80", false), ("10.244.2.3:80", false)];
    tables.set_frontend(&key, Some(&cluster_ip(&three)));
    check(
        &next(&mut tables),
        &expect![[r#"
        *nat
        :KUBE-SEP-3OAJHNNF24CHQOVX - [0:0]
        :KUBE-SVC-67NZLRHBNDSAWJRO - [0:0]
        -A KUBE-SEP-3OAJHNNF24CHQOVX -s 10.244.1.2/32 -j KUBE-MARK-MASQ
        -A KUBE-SEP-3OAJHNNF24CHQOVX -p tcp -j DNAT --to-destination 10.244.1.2:80
        -A KUBE-SVC-67NZLRHBNDSAWJRO ! -s 10.244.1.0/24 -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
        -A KUBE-SVC-67NZLRHBNDSAWJRO -m statistic --mode random --probability 0.33333333349 -j KUBE-SEP-3OAJHNNF24CHQOVX
        -A KUBE-SVC-67NZLRHBNDSAWJRO -p tcp -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.244.2.2:80
        -A KUBE-SVC-67NZLRHBNDSAWJRO -p tcp -j DNAT --to-destination 10.244.2.3:80
        COMMIT
    "#]],
    );
    tables.set_frontend(&key, None);
    check(
        &next(&mut tables),
        &expect![[r#"
        *nat
        :KUBE-SEP-3OAJHNNF24CHQOVX - [0:0]
        :KUBE-SVC-67NZLRHBNDSAWJRO - [0:0]
        -D KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-67NZLRHBNDSAWJRO
        -X KUBE-SEP-3OAJHNNF24CHQOVX
        -X KUBE-SVC-67NZLRHBNDSAWJRO
        COMMIT
    "#]],
    );
}

#[test]
fn refusals_come_before_the_translation_goes_and_go_after_it_is_there() {
    let mut tables = tables();
    let key = at("10.96.0.10", 80);
    next(&mut tables);
    tables.set_frontend(&key, Some(&cluster_ip(&[("10.244.2.2:80", false)])));
    tables.set_address("10.96.0.10".parse().unwrap(), Some(Undefined::Reject));
    next(&mut tables);
    let refused = Routes::same(&Route::new(Target::Reject, Masquerade::Hairpin));
    tables.set_frontend(&key, Some(&frontend("web", FrontendKind::ClusterIp, refused)));
    check(
        &next(&mut tables),
        &expect![[r#"
        *filter
        -I KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http has no endpoints" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
        COMMIT
        *nat
        :KUBE-SVC-67NZLRHBNDSAWJRO - [0:0]
        -D KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-67NZLRHBNDSAWJRO
        -X KUBE-SVC-67NZLRHBNDSAWJRO
        COMMIT
    "#]],
    );
    tables.set_frontend(&key, Some(&cluster_ip(&[("10.244.2.2:80", false)])));
    check(
        &next(&mut tables),
        &expect![[r#"
        *nat
        :KUBE-SVC-67NZLRHBNDSAWJRO - [0:0]
        -A KUBE-SVC-67NZLRHBNDSAWJRO ! -s 10.244.1.0/24 -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
        -A KUBE-SVC-67NZLRHBNDSAWJRO -p tcp -j DNAT --to-destination 10.244.2.2:80
        -I KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-67NZLRHBNDSAWJRO
        COMMIT
        *filter
        -D KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http has no endpoints" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
        COMMIT
    "#]],
    );
}

#[test]
fn sources_are_told_apart_where_the_policy_says_so() {
    let mut tables = tables();
    next(&mut tables);
    let (all, here) = (
        set(&[("10.244.1.2:80", true), ("10.244.2.2:80", false)]),
        set(&[("10.244.1.2:80", true)]),
    );
    let routes = Routes {
        pod: to(&all, Masquerade::Hairpin),
        node: to(&all, Masquerade::Always),
        outside: to(&here, Masquerade::Hairpin),
    };
    let mut one = frontend("web", FrontendKind::LoadBalancer, routes);
    let change = Arc::make_mut(&mut one);
    change.serving = all.iter().map(|endpoint| endpoint.address).collect();
    change.source_ranges = Some(Arc::new(["192.0.2.0/24".parse().unwrap()]));
    change.affinity = Some(Duration::from_secs(10_800));
    tables.set_frontend(&at("198.51.100.7", 80), Some(&one));
    check(
        &next(&mut tables),
        &expect![[r#"
        *filter
        -I KUBE-PROXY-FIREWALL -d 198.51.100.7/32 -p tcp -m comment --comment "shop/web:http loadbalancer IP" -m tcp --dport 80 -j DROP
        COMMIT
        *nat
        :KUBE-EXT-67NZLRHBNDSAWJRO - [0:0]
        :KUBE-FW-67NZLRHBNDSAWJRO - [0:0]
        :KUBE-SEP-2XVI52IJ5JYHZBL2 - [0:0]
        :KUBE-SEP-3OAJHNNF24CHQOVX - [0:0]
        :KUBE-SVC-67NZLRHBNDSAWJRO - [0:0]
        :KUBE-SVL-67NZLRHBNDSAWJRO - [0:0]
        -A KUBE-EXT-67NZLRHBNDSAWJRO -s 10.244.1.0/24 -j KUBE-SVC-67NZLRHBNDSAWJRO
        -A KUBE-EXT-67NZLRHBNDSAWJRO -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ
        -A KUBE-EXT-67NZLRHBNDSAWJRO -m addrtype --src-type LOCAL -j KUBE-SVC-67NZLRHBNDSAWJRO
        -A KUBE-EXT-67NZLRHBNDSAWJRO -j KUBE-SVL-67NZLRHBNDSAWJRO
        -A KUBE-FW-67NZLRHBNDSAWJRO -s 192.0.2.0/24 -j KUBE-EXT-67NZLRHBNDSAWJRO
        -A KUBE-FW-67NZLRHBNDSAWJRO -j ACCEPT
        -A KUBE-SEP-2XVI52IJ5JYHZBL2 -s 10.244.2.2/32 -j KUBE-MARK-MASQ
        -A KUBE-SEP-2XVI52IJ5JYHZBL2 -p tcp -m recent --set --name KUBE-SEP-2XVI52IJ5JYHZBL2 --mask 255.255.255.255 --rsource -j DNAT --to-destination 10.244.2.2:80
        -A KUBE-SEP-3OAJHNNF24CHQOVX -s 10.244.1.2/32 -j KUBE-MARK-MASQ
        -A KUBE-SEP-3OAJHNNF24CHQOVX -p tcp -m recent --set --name KUBE-SEP-3OAJHNNF24CHQOVX --mask 255.255.255.255 --rsource -j DNAT --to-destination 10.244.1.2:80
        -A KUBE-SVC-67NZLRHBNDSAWJRO -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-3OAJHNNF24CHQOVX --mask 255.255.255.255 --rsource -j KUBE-SEP-3OAJHNNF24CHQOVX
        -A KUBE-SVC-67NZLRHBNDSAWJRO -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-2XVI52IJ5JYHZBL2 --mask 255.255.255.255 --rsource -j KUBE-SEP-2XVI52IJ5JYHZBL2
        -A KUBE-SVC-67NZLRHBNDSAWJRO -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-3OAJHNNF24CHQOVX
        -A KUBE-SVC-67NZLRHBNDSAWJRO -j KUBE-SEP-2XVI52IJ5JYHZBL2
        -A KUBE-SVL-67NZLRHBNDSAWJRO -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-3OAJHNNF24CHQOVX --mask 255.255.255.255 --rsource -j KUBE-SEP-3OAJHNNF24CHQOVX
        -A KUBE-SVL-67NZLRHBNDSAWJRO -j KUBE-SEP-3OAJHNNF24CHQOVX
        -I KUBE-SERVICES -d 198.51.100.7/32 -p tcp -m comment --comment "shop/web:http loadbalancer IP" -m tcp --dport 80 -j KUBE-FW-67NZLRHBNDSAWJRO
        COMMIT
    "#]],
    );
}

#[test]
fn what_is_read_back_is_what_was_written() {
    let mut tables = tables();
    let addresses = ["10.96.0.10", "10.96.1.10", "10.97.0.10"];
    for address in addresses {
        let endpoints = [("10.244.1.2:80", true), ("10.244.2.2:80", false)];
        tables.set_frontend(&at(address, 80), Some(&cluster_ip(&endpoints)));
        tables.set_address(address.parse().unwrap(), Some(Undefined::Reject));
    }
    let text = next(&mut tables);
    // What `iptables-save` prints has no insertions.
    let found = read::parse(&text.replace("\n-I ", "\n-A "));
    assert_eq!(&digests(&found.held), tables.held());
    assert_eq!(found.shape, tables.shape());
    let frontends: BTreeSet<FrontendKey> =
        found.held.keys().filter_map(|key| read::frontend(key, Family::V4)).collect();
    assert_eq!(frontends, addresses.map(|address| at(address, 80)).into());
    let owned: BTreeSet<IpAddr> =
        found.held.iter().flat_map(|(key, value)| read::addresses(key, value)).collect();
    assert_eq!(owned, addresses.map(|address| address.parse().unwrap()).into());
    // Who finds all that there has nothing to do.
    tables.found(found.held);
    assert_eq!(render(&mut tables), "");
}

#[test]
fn what_failed_is_as_it_was_and_what_is_missing_is_written_again() {
    let mut tables = tables();
    let key = at("10.96.0.10", 80);
    tables.set_frontend(&key, Some(&cluster_ip(&[("10.244.2.2:80", false)])));
    let held = read::parse(&next(&mut tables).replace("\n-I ", "\n-A ")).held;
    tables.set_frontend(&key, None);
    tables.set_address("10.96.0.10".parse().unwrap(), Some(Undefined::Leave));
    assert!(!render(&mut tables).is_empty());
    tables.revert();
    tables.found(held.clone());
    assert_eq!(render(&mut tables), "", "what was asked for before is there");

    // Somebody empties a list.
    let is_rule = |key: &Key| matches!(key, Key::Rule(_, chain, _) if &**chain == "KUBE-SERVICES");
    let mut left = held.clone();
    left.retain(|key, _| !is_rule(key));
    left.insert(Key::Chain(Table::Nat, "KUBE-SERVICES".into()), Value::default());
    tables.found(left);
    let text = next(&mut tables);
    assert_eq!(text.matches("-A KUBE-SERVICES ").count(), 2, "{text}");
    assert_eq!(tables.held(), &digests(&held));
}

fn digests(held: &HashMap<Key, Value>) -> HashMap<Key, Digest> {
    held.iter().map(|(key, value)| (key.clone(), Digest::of(value))).collect()
}

#[test]
fn what_others_refer_to_stays() {
    let mut tables = tables();
    next(&mut tables);
    tables.remove_all(&BTreeSet::from([(Table::Nat, "KUBE-MARK-MASQ".into())]));
    let text = next(&mut tables);
    assert!(!text.contains("KUBE-MARK-MASQ"), "{text}");
    assert!(text.contains("-D PREROUTING ") && text.contains("-X KUBE-POSTROUTING\n"), "{text}");
    assert_eq!(tables.held().len(), 1);
}
