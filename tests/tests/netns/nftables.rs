//! The nftables mode beside what the cases show: UDP flows, restarts, and what others do.

use std::collections::BTreeMap;

use proxy::status::{Status, file_of};
use sandbox::traffic::Protocol;
use tests::cluster::{Cluster, Node, SOON, answered_by, endpoints, eventually, names};

const MODE: &str = "--proxy-mode=nftables";

/// Runs `nft` on a node.
fn nft(node: &Node, command: &str) -> String {
    let output = node.node().command("nft").args(command.split(' ')).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {command}: {words}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn status(node: &Node) -> Status {
    Status::read(&file_of(node.bpffs())).unwrap()
}

#[test]
fn a_udp_flow_to_an_endpoint_that_has_gone_is_removed() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    node.start_proxy_with(&[MODE]);
    for target in [service.v4(), service.v6()] {
        cluster.set_endpoints(&service, &endpoints(&webs));
        let load = cluster.load(&client, Protocol::UdpUnconnected, target);
        assert!(load.after(50, SOON), "{target}: {:?}", load.tally());
        // One socket is one flow: conntrack keeps it where it is.
        let first: Vec<String> = load.tally().answers.into_keys().collect();
        let staying: Vec<_> =
            endpoints(&webs).into_iter().filter(|endpoint| endpoint.pod() != first[0]).collect();
        assert_eq!(staying.len(), 1, "{target}: {first:?}");
        cluster.set_endpoints(&service, &staying);
        eventually("another endpoint answers", || load.tally().answers.len() == 2);
        let tally = load.finish().unwrap();
        assert_eq!(tally.failures, BTreeMap::new(), "{target}");
    }
    eventually("the status says so", || status(&node).n_flows_removed >= 2);
}

#[test]
fn a_killed_proxy_leaves_everything_in_place_and_the_next_one_takes_it_over() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    node.start_proxy_with(&[MODE]);
    let before = nft(&node, "list map ip fairlead frontends-pod");
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
    assert_eq!(nft(&node, "list map ip fairlead frontends-pod"), before);
    let log = node.log();
    assert!(log.contains("adopted=4"), "{log}");
}

#[test]
fn what_others_delete_is_repaired_and_what_is_theirs_is_left_alone() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    nft(&node, "add table ip theirs");
    nft(&node, "add chain ip theirs prerouting { type nat hook prerouting priority -90; }");
    node.start_proxy_with(&[MODE, "--iptables-sync-period=200ms"]);
    for (n, damage) in [
        "flush map ip fairlead frontends-pod",
        "flush chain ip fairlead decide",
        "delete table ip fairlead",
        "flush ruleset",
    ]
    .into_iter()
    .enumerate()
    {
        nft(&node, damage);
        eventually("it is repaired", || status(&node).n_repairs > n as u64);
        let tally = cluster.send(&client, Protocol::Tcp, service.v4(), 50);
        assert_eq!(tally.failures, BTreeMap::new(), "after {damage}");
        assert_eq!(answered_by(&tally), names(&webs), "after {damage}");
    }
    nft(&node, "add table ip theirs");
    node.stop_proxy();
    let cleaned = node.fairlead().cleanup(node.node(), node.bpffs()).unwrap();
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(nft(&node, "list tables").trim(), "table ip theirs");
}

#[test]
fn without_nft_the_proxy_goes_on_trying_and_loses_no_change() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    // A program of the same name that fails while a file is there.
    let bin = cluster.dir().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let broken = bin.join("broken");
    let script = format!(
        "#!/bin/sh\n[ -e {0} ] && {{ cat {0} >&2; kill -9 $$; }}\nexec /usr/sbin/nft \"$@\"\n",
        broken.display()
    );
    std::fs::write(bin.join("nft"), script).unwrap();
    std::fs::set_permissions(bin.join("nft"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    node.set_path(&bin);
    node.start_proxy_with(&[MODE]);
    std::fs::write(&broken, "out of order\n").unwrap();
    let staying = &endpoints(&webs)[..1];
    cluster.set_endpoints(&service, staying);
    eventually("the failure is told", || status(&node).last_failed > 0);
    let tally = cluster.send(&client, Protocol::Tcp, service.v4(), 50);
    assert_eq!(tally.failures, BTreeMap::new(), "what was there goes on");
    std::fs::remove_file(&broken).unwrap();
    eventually("the change is made", || status(&node).last_failed == 0);
    let tally = cluster.send(&client, Protocol::Tcp, service.v4(), 50);
    assert_eq!(answered_by(&tally), names(&webs[..1]));
}
