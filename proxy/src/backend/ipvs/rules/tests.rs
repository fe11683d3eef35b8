//! The rules of a node that knows its pods by their addresses.

use std::sync::Arc;

use super::*;

fn context(settings: &Settings) -> Context<'_> {
    Context { family: Family::V4, settings, masquerade_all: false }
}

fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.pods.v4 = Some(PodSource::Cidr("10.244.0.0/16".parse().unwrap()));
    settings.service_cidrs = vec!["10.96.0.0/16".parse().unwrap(), "fd00::/112".parse().unwrap()];
    settings
}

/// As iptables-save prints what a transaction on empty tables has made.
fn saved(transaction: &str) -> String {
    transaction.replace("-I ", "-A ")
}

#[test]
fn what_was_written_is_whole_until_a_rule_goes() {
    let settings = settings();
    let context = context(&settings);
    for charge in [Charge::No, Charge::Draining, Charge::Full] {
        let text = saved(&Found::default().replace(context, charge));
        let found = Found::parse(&text);
        assert!(found.is_whole(context, charge), "{text}");
        assert_eq!(found.charge(), charge);
        let is_one = |line: &&str| line.starts_with("-A KUBE-IPVS-FILTER -p icmp");
        let lacking: Vec<&str> = text.lines().filter(|line| !is_one(line)).collect();
        assert!(!Found::parse(&lacking.join("\n")).is_whole(context, charge));
    }
}

#[test]
fn a_node_that_hands_over_leaves_new_connections_alone() {
    let settings = settings();
    let full = Found::parse(&saved(&Found::default().replace(context(&settings), Charge::Full)));
    let text = full.replace(context(&settings), Charge::Draining);
    let of_kernels = text.lines().filter(|it| it.starts_with("-D ") || it.starts_with("-I "));
    let expected = [
        "-D OUTPUT -m conntrack --ctstate NEW -j KUBE-IPVS-SOURCES",
        "-D PREROUTING -m conntrack --ctstate NEW -j KUBE-IPVS-SOURCES",
        "-D OUTPUT -j KUBE-IPVS-SERVICES",
        "-D PREROUTING -j KUBE-IPVS-SERVICES",
        "-D FORWARD -m conntrack --ctstate NEW -j KUBE-IPVS-FILTER",
        "-D INPUT -m conntrack --ctstate NEW -j KUBE-IPVS-FILTER",
        "-D OUTPUT -m conntrack --ctstate NEW -j KUBE-IPVS-FILTER",
    ];
    assert_eq!(of_kernels.collect::<Vec<_>>(), expected);
}

#[test]
fn all_goes_and_nothing_else_does() {
    let settings = settings();
    let text = saved(&Found::default().replace(context(&settings), Charge::Full));
    let others = "*filter\n:KUBE-FORWARD - [0:0]\n-A FORWARD -j KUBE-FORWARD\nCOMMIT\n";
    let found = Found::parse(&format!("{text}{others}"));
    let removal = found.remove();
    assert!(!removal.contains("KUBE-FORWARD") && !removal.contains("-A "), "{removal}");
    assert_eq!(removal.matches("-X ").count(), 7);
    assert!(Found::parse(others).is_empty());
}

#[test]
fn the_rules_tell_sources_apart() {
    let mut settings = settings();
    settings.pods.v4 = Some(PodSource::InterfacePrefix(Arc::from("veth")));
    let text = Found::default().replace(context(&settings), Charge::Full);
    let of = |chain: &str| {
        let rule = |line: &str| line.strip_prefix(&format!("-A {chain} ")).map(str::to_owned);
        text.lines().filter_map(rule).collect::<Vec<_>>().join("\n")
    };
    expect_test::expect![[r#"
        -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -m set ! --match-set KUBE-LOAD-BALANCER-SOURCE-CIDR dst,dst,src -j DROP
        -i veth+ -m set --match-set KUBE-DROP-POD dst,dst -j DROP
        -i veth+ -j SET --map-set KUBE-ROUTE-POD dst,dst --map-mark
        -i veth+ -j RETURN
        -m addrtype --src-type LOCAL -m set --match-set KUBE-DROP-NODE dst,dst -j DROP
        -m addrtype --src-type LOCAL -j SET --map-set KUBE-ROUTE-NODE dst,dst --map-mark
        -m addrtype --src-type LOCAL -j RETURN
        -m set --match-set KUBE-DROP-OUTSIDE dst,dst -j DROP
        -j SET --map-set KUBE-ROUTE-OUTSIDE dst,dst --map-mark"#]]
    .assert_eq(&of(SOURCES));
    expect_test::expect![[r#"
        ! -i veth+ -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-IPVS-MARK-MASQ
        -i veth+ -m set --match-set KUBE-LOAD-BALANCER-LOCAL dst,dst -j RETURN
        -m set --match-set KUBE-LOAD-BALANCER-LOCAL dst,dst -m addrtype ! --src-type LOCAL -j RETURN
        -m set --match-set KUBE-LOAD-BALANCER dst,dst -j KUBE-IPVS-MARK-MASQ
        -i veth+ -m set --match-set KUBE-EXTERNAL-IP-LOCAL dst,dst -j RETURN
        -m set --match-set KUBE-EXTERNAL-IP-LOCAL dst,dst -m addrtype ! --src-type LOCAL -j RETURN
        -m set --match-set KUBE-EXTERNAL-IP dst,dst -j KUBE-IPVS-MARK-MASQ
        -i veth+ -m set --match-set KUBE-NODE-PORT-LOCAL dst,dst -j RETURN
        -m set --match-set KUBE-NODE-PORT-LOCAL dst,dst -m addrtype ! --src-type LOCAL -j RETURN
        -m set --match-set KUBE-NODE-PORT dst,dst -j KUBE-IPVS-MARK-MASQ"#]]
    .assert_eq(&of(SERVICES));
    expect_test::expect![[r#"
        -d 127.0.0.0/8 -m addrtype ! --src-type LOCAL -j DROP
        -p icmp -j RETURN
        -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN
        -m set --match-set KUBE-LOAD-BALANCER dst,dst -j RETURN
        -m set --match-set KUBE-EXTERNAL-IP dst,dst -j RETURN
        -m set --match-set KUBE-IPVS-IPS dst -j REJECT --reject-with icmp-port-unreachable
        -m set --match-set KUBE-IPVS-LEFT dst -j RETURN
        -d 10.96.0.0/16 -j DROP"#]]
    .assert_eq(&of(FILTER));
}

#[test]
fn what_is_masqueraded_takes_no_port_of_the_packet_programs() {
    let settings = settings();
    let text = Found::default().replace(context(&settings), Charge::Full);
    let rules = text.lines().filter(|line| line.ends_with("--random-fully"));
    expect_test::expect![[r#"
        -A KUBE-IPVS-POSTROUTING -p tcp -m set --match-set KUBE-IPVS-LOOP-BACK dst,dst,src -j MASQUERADE --to-ports 1024-49151 --random-fully
        -A KUBE-IPVS-POSTROUTING -p udp -m set --match-set KUBE-IPVS-LOOP-BACK dst,dst,src -j MASQUERADE --to-ports 1024-49151 --random-fully
        -A KUBE-IPVS-POSTROUTING -p sctp -m set --match-set KUBE-IPVS-LOOP-BACK dst,dst,src -j MASQUERADE --to-ports 1024-49151 --random-fully
        -A KUBE-IPVS-POSTROUTING -p tcp -m connmark --mark 0x4000/0x4000 -j MASQUERADE --to-ports 1024-49151 --random-fully
        -A KUBE-IPVS-POSTROUTING -p udp -m connmark --mark 0x4000/0x4000 -j MASQUERADE --to-ports 1024-49151 --random-fully
        -A KUBE-IPVS-POSTROUTING -p sctp -m connmark --mark 0x4000/0x4000 -j MASQUERADE --to-ports 1024-49151 --random-fully"#]]
    .assert_eq(&rules.collect::<Vec<_>>().join("\n"));
}
