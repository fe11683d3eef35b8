//! `--proxy-mode=auto`: the mode is chosen by what the node can do, once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proxy::status::{Status, file_of};
use sandbox::traffic::Protocol;
use tests::cluster::{Cluster, Node, names};

/// A program that does what a line of the shell's says before, or instead.
fn put(dir: &Path, program: &str, script: &str) {
    fs::write(dir.join(program), format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(dir.join(program), PermissionsExt::from_mode(0o755)).unwrap();
}

/// A node whose proxy has no privilege for eBPF, and `nft` or not.
fn node_without_ebpf(cluster: &Cluster, name: &str, has_nft: bool) -> Node {
    let mut node = cluster.node(name);
    let bin = cluster.dir().join(format!("bin-{name}"));
    fs::create_dir(&bin).unwrap();
    if !has_nft {
        put(&bin, "nft", "echo 'out of order' >&2; exit 1");
    }
    let program = node.fairlead().path().display().to_string();
    let less =
        "setpriv --bounding-set=-bpf,-perfmon,-sys_admin --inh-caps=-bpf,-perfmon,-sys_admin";
    put(&bin, "unprivileged", &format!("exec {less} -- {program} \"$@\""));
    node.set_program(&bin.join("unprivileged"));
    node.set_path(&bin);
    node
}

fn mode(node: &Node) -> String {
    Status::read(&file_of(node.bpffs())).unwrap().mode
}

#[test]
fn a_mode_is_chosen_once_by_what_the_node_can_do() {
    let cluster = Cluster::new();
    let mut nodes = [
        (cluster.node("node-a"), "ebpf"),
        (node_without_ebpf(&cluster, "node-b", true), "nftables"),
        (node_without_ebpf(&cluster, "node-c", false), "iptables"),
    ];
    for (node, expected) in &mut nodes {
        let web = node.web(&format!("web-{expected}"));
        let client = node.pod(&format!("client-{expected}"));
        let service = cluster.service(expected, std::slice::from_ref(&web));
        node.start_proxy_with(&["--proxy-mode=auto"]);
        assert_eq!(mode(node), *expected, "{}", node.log());
        let tally = cluster.send(&client, Protocol::Tcp, service.v4(), 100);
        assert!(tally.failures.is_empty(), "{expected}: {tally:?}");
        assert_eq!(tests::cluster::answered_by(&tally), names(std::slice::from_ref(&web)));
        // Later it can do everything, and is as it was.
        node.stop_proxy();
        node.set_program(cluster_program().as_ref());
        node.start_proxy();
        assert_eq!(mode(node), *expected, "{}", node.log());
        node.stop_proxy();
        let cleaned = node.fairlead().cleanup(node.node(), node.bpffs()).unwrap();
        assert!(cleaned.status.success(), "{cleaned:?}");
        node.start_proxy();
        assert_eq!(mode(node), "ebpf", "after a cleanup it is chosen anew");
        node.stop_proxy();
    }
}

fn cluster_program() -> std::path::PathBuf {
    tests::cluster::fairlead().path().to_owned()
}
