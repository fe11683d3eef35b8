//! Packet programs as filters of the clsact qdisc, as on kernels before 6.6.

use std::fs;

use proxy::status::{Status, file_of};
use sandbox::traffic::Protocol;
use tests::cluster::{Cluster, Node, answered_by, eventually, names};

const BY_FILTERS: [&str; 2] = ["--socket-lb=off", "--clsact"];

/// The devices' pins: filters, and links.
fn pins(node: &Node) -> [usize; 2] {
    let entries = fs::read_dir(node.bpffs().join("devices")).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let (filters, links): (Vec<_>, Vec<_>) = names.partition(|name| name.ends_with("-clsact"));
    [filters.len(), links.len()]
}

#[test]
fn filters_lead_packets_follow_devices_and_go_with_a_cleanup() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let service = cluster.service("web", &webs);
    node.start_proxy_with(&BY_FILTERS);
    // It came after the proxy, and so did its device.
    let client = node.pod("client");
    for target in [service.v4(), service.v6()] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            eventually("a new pod reaches the Service", || {
                let tally = cluster.send(&client, protocol, target, 50);
                tally.failed == 0 && answered_by(&tally) == names(&webs)
            });
        }
    }
    let [filters, links] = pins(&node);
    // The uplink and three pods, both ways.
    assert_eq!((filters, links), (8, 0));

    node.stop_proxy();
    assert_eq!(cluster.send(&client, Protocol::Tcp, service.v4(), 20).failed, 0, "they stay");
    let output = node.fairlead().cleanup(node.node(), node.bpffs()).unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(cluster.send(&client, Protocol::Tcp, service.v4(), 5).answered, 0, "they go");
}

#[test]
fn filters_are_adopted_over_kills_and_give_way_to_links_without_a_gap() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    node.start_proxy_with(&BY_FILTERS);
    eventually("the Service is reached", || {
        cluster.send(&client, Protocol::Tcp, service.v4(), 20).failed == 0
    });
    let loads = [service.v4(), service.v6()].map(|to| cluster.load(&client, Protocol::Tcp, to));
    for _ in 0..2 {
        node.kill_proxy();
        node.start_proxy_with(&BY_FILTERS);
    }
    let before = pins(&node);
    // To what a newer kernel has, and back.
    node.kill_proxy();
    node.start_proxy_with(&["--socket-lb=off"]);
    let newest = if load::probe::has_tcx() { [0, before[0]] } else { before };
    eventually("links stand in the place of filters", || pins(&node) == newest);
    node.kill_proxy();
    node.start_proxy_with(&BY_FILTERS);
    eventually("filters stand in the place of links", || pins(&node) == before);
    for load in loads {
        let tally = load.finish().unwrap();
        assert_eq!(tally.failed, 0, "{tally:?}");
        assert!(tally.answered > 100, "{tally:?}");
    }
}

/// Run by `cargo xtask test --all`.
mod long {
    use super::*;

    #[test]
    fn filters_that_somebody_else_removes_stand_again_within_a_period() {
        let cluster = Cluster::new();
        let mut node = cluster.node("node-a");
        let webs = node.webs(["web-1"]);
        let client = node.pod("client");
        let service = cluster.service("web", &webs);
        node.start_proxy_with(&[&BY_FILTERS[..], &["--iptables-sync-period=200ms"]].concat());
        let is_led = || cluster.send(&client, Protocol::Tcp, service.v4(), 20).failed == 0;
        eventually("the Service is reached", is_led);
        let n_repairs = || Status::read(&file_of(node.bpffs())).unwrap().n_repairs;
        assert_eq!(n_repairs(), 0, "nothing else is taken for damage");
        let device = device_of(&node);
        let damages = [
            ("the filter is removed", format!("filter del dev {device} ingress")),
            ("the qdisc is removed", format!("qdisc del dev {device} clsact")),
        ];
        for (what, damage) in damages {
            let before = n_repairs();
            let output = node.node().command("tc").args(damage.split(' ')).output().unwrap();
            assert!(output.status.success(), "tc {damage}: {output:?}");
            eventually(what, || n_repairs() > before);
            eventually(what, is_led);
        }
    }
}

/// The node's end of the link to the pod that came last.
fn device_of(node: &Node) -> String {
    let output = node.node().command("ip").args(["-br", "link", "show", "type", "veth"]).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let names = text.lines().filter_map(|line| line.split(['@', ' ']).next());
    names.filter(|name| name.starts_with("veth")).max().unwrap().to_owned()
}
