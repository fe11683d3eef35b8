//! The iptables mode beside what the cases show: UDP flows, restarts, and what others do. Each in
//! the variant that the node has: on nftables, or where the kubelet says so, the legacy one.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proxy::status::{Status, file_of};
use sandbox::traffic::Protocol;
use tests::cluster::{Cluster, Node, SOON, answered_by, endpoints, eventually, names};

const MODE: &str = "--proxy-mode=iptables";
const VARIANTS: [&str; 2] = ["nft", "legacy"];

/// Runs a program of iptables on a node.
fn iptables(node: &Node, program: &str, args: &str) -> String {
    let output = node.node().command(program).args(args.split(' ').filter(|it| !it.is_empty()));
    let output = output.output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args}: {words}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The rules of both families, without counters; in one chain they may stand in another order.
fn rules(node: &Node, variant: &str) -> BTreeSet<String> {
    let saved = ["iptables", "ip6tables"].map(|family| {
        iptables(node, &format!("{family}-{variant}-save"), "")
            .lines()
            .filter(|line| line.starts_with("-A "))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    saved.concat().into_iter().collect()
}

/// A node that uses a variant, as the kubelet has it.
fn node_with(cluster: &Cluster, variant: &str) -> Node {
    let node = cluster.node(&format!("node-{variant}"));
    iptables(&node, &format!("iptables-{variant}"), "-t mangle -N KUBE-IPTABLES-HINT");
    node
}

fn status(node: &Node) -> Status {
    Status::read(&file_of(node.bpffs())).unwrap()
}

/// Writes a program in the place of another one; `before` is a line of the shell's.
fn put_before(bin: &Path, program: &str, before: &str) {
    let script = format!("#!/bin/sh\n{before}\nexec /usr/sbin/{program} \"$@\"\n");
    std::fs::write(bin.join(program), script).unwrap();
    std::fs::set_permissions(bin.join(program), PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn a_udp_flow_to_an_endpoint_that_has_gone_is_removed() {
    let cluster = Cluster::new();
    let mut node = node_with(&cluster, "legacy");
    let webs = node.webs(["web-1", "web-2"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    node.start_proxy_with(&[MODE]);
    let load = cluster.load(&client, Protocol::UdpUnconnected, service.v4());
    assert!(load.after(50, SOON), "{:?}", load.tally());
    // One socket is one flow: conntrack keeps it where it is.
    let first: Vec<String> = load.tally().answers.into_keys().collect();
    let staying: Vec<_> =
        endpoints(&webs).into_iter().filter(|endpoint| endpoint.pod() != first[0]).collect();
    assert_eq!(staying.len(), 1, "{first:?}");
    cluster.set_endpoints(&service, &staying);
    eventually("another endpoint answers", || load.tally().answers.len() == 2);
    assert_eq!(load.finish().unwrap().failures, BTreeMap::new());
    eventually("the status says so", || status(&node).n_flows_removed >= 1);
}

#[test]
fn a_killed_proxy_leaves_everything_in_place_and_the_next_one_takes_it_over() {
    for variant in VARIANTS {
        let cluster = Cluster::new();
        let mut node = node_with(&cluster, variant);
        let webs = node.webs(["web-1", "web-2"]);
        let client = node.pod("client");
        let service = cluster.service("web", &webs);
        node.start_proxy_with(&[MODE]);
        let before = rules(&node, variant);
        assert!(before.iter().any(|rule| rule.starts_with("-A KUBE-SVC-")), "{before:?}");
        let loads = [Protocol::Tcp, Protocol::UdpUnconnected]
            .map(|protocol| cluster.load(&client, protocol, service.v4()));
        for _ in 0..3 {
            node.kill_proxy();
            assert!(loads.iter().all(|load| load.after(50, SOON)));
            node.start_proxy_with(&[MODE]);
            assert!(loads.iter().all(|load| load.after(50, SOON)));
        }
        for load in loads {
            assert_eq!(load.finish().unwrap().failures, BTreeMap::new());
        }
        assert_eq!(rules(&node, variant), before);
        let log = node.log();
        assert!(log.contains("adopted=4"), "{log}");
        assert!(log.contains("written=0"), "{variant}: what is there is not written again: {log}");
    }
}

#[test]
fn what_others_delete_is_repaired_and_what_is_theirs_is_left_alone() {
    for variant in VARIANTS {
        let cluster = Cluster::new();
        let mut node = node_with(&cluster, variant);
        let program = format!("iptables-{variant}");
        let webs = node.webs(["web-1", "web-2"]);
        let client = node.pod("client");
        let service = cluster.service("web", &webs);
        iptables(&node, &program, "-t nat -N THEIRS");
        iptables(&node, &program, "-t nat -A PREROUTING -d 192.0.2.99/32 -j THEIRS");
        let theirs = rules(&node, variant);
        node.start_proxy_with(&[MODE, "--iptables-sync-period=200ms"]);
        for (n, damage) in ["-t nat -F KUBE-SERVICES", "-t nat -F PREROUTING", "-F", "-t nat -F"]
            .into_iter()
            .enumerate()
        {
            iptables(&node, &program, damage);
            eventually("it is repaired", || status(&node).n_repairs > n as u64);
            let tally = cluster.send(&client, Protocol::Tcp, service.v4(), 50);
            assert_eq!(tally.failures, BTreeMap::new(), "{variant}: after {damage}");
            assert_eq!(answered_by(&tally), names(&webs), "{variant}: after {damage}");
        }
        iptables(&node, &program, "-t nat -A PREROUTING -d 192.0.2.99/32 -j THEIRS");
        node.stop_proxy();
        let cleaned = node.fairlead().cleanup(node.node(), node.bpffs()).unwrap();
        assert!(cleaned.status.success(), "{cleaned:?}");
        assert_eq!(rules(&node, variant), theirs, "{variant}");
        let chains = iptables(&node, &format!("{program}-save"), "");
        let left: Vec<&str> = chains.lines().filter(|line| line.starts_with(":KUBE-")).collect();
        assert_eq!(left, [":KUBE-IPTABLES-HINT - [0:0]"], "the kubelet's is");
    }
}

/// `cargo nextest run -P kernel-long`
mod long {
    use super::*;

    #[test]
    fn a_lock_that_somebody_holds_for_twenty_seconds_delays_a_change_and_loses_none() {
        let cluster = Cluster::new();
        let mut node = node_with(&cluster, "legacy");
        let webs = node.webs(["web-1", "web-2"]);
        let client = node.pod("client");
        let service = cluster.service("web", &webs);
        let bin = cluster.dir().join("bin");
        std::fs::create_dir(&bin).unwrap();
        let lock = bin.join("xtables.lock");
        let own_lock = format!("export XTABLES_LOCKFILE={}", lock.display());
        put_before(&bin, "iptables-legacy-restore", &own_lock);
        put_before(&bin, "ip6tables-legacy-restore", &own_lock);
        node.set_path(&bin);
        node.start_proxy_with(&[MODE]);
        let held = std::fs::File::create(&lock).unwrap();
        held.lock().unwrap();
        cluster.set_endpoints(&service, &endpoints(&webs)[..1]);
        let load = cluster.load(&client, Protocol::Tcp, service.v4());
        // Twenty seconds of connections.
        assert!(load.after(20 * u64::from(tests::cluster::RATE), 6 * SOON), "{:?}", load.tally());
        let seen = status(&node);
        assert!(seen.last_failed > 0, "{seen:?}");
        assert_eq!(answered_by(&load.tally()), names(&webs), "what was there goes on");
        drop(held);
        eventually("the change is made", || status(&node).last_failed == 0);
        assert_eq!(load.finish().unwrap().failures, BTreeMap::new());
        let tally = cluster.send(&client, Protocol::Tcp, service.v4(), 50);
        assert_eq!(answered_by(&tally), names(&webs[..1]));
        assert!(node.log().contains("lock"), "{}", node.log());
    }
}
