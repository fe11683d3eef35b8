//! The IPVS mode. Most kernels have it as a module, and some not at all.

use std::path::Path;

use tests::cluster::Cluster;

#[test]
fn a_kernel_without_ipvs_is_told_of_with_the_module_that_it_lacks() {
    // Where there is IPVS, this is for another kernel to show.
    assert!(
        !Path::new("/proc/net/ip_vs").exists(),
        "this kernel has IPVS: `cargo xtask vm` tests it"
    );
    let cluster = Cluster::new();
    let node = cluster.node("node-a");
    let options = node.options_with(&["--proxy-mode=ipvs", "--ipvs-scheduler=mh"]);
    let output = node.proxy_output(&options);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    for word in ["no IPVS", "ip_vs ip_vs_mh", "--proxy-mode"] {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    let devices = node.node().command("ip").args(["link"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&devices.stdout).contains("kube-ipvs0"));
}

/// On a kernel that has IPVS.
mod vm {
    use proxy::status::{Status, file_of};
    use sandbox::traffic::Protocol;
    use sandbox::wait;
    use tests::cluster::{Cluster, Node, answered_by, eventually, names, soon};

    /// What is done to a node.
    type Damage = fn(&Node);

    const DAMAGES: [(&str, Damage); 5] = [
        ("addresses are taken away", |node| run(node, "ip link delete kube-ipvs0")),
        ("virtual services are deleted", |node| run(node, "ipvsadm -C")),
        ("a set is emptied", |node| run(node, "ipset flush KUBE-CLUSTER-IP")),
        ("rules are flushed", |node| run(node, "iptables -t nat -F")),
        ("a jump is deleted", |node| {
            run(node, "ip6tables -t mangle -D PREROUTING 1");
        }),
    ];

    #[test]
    fn what_others_delete_is_repaired_within_a_period_and_counted() {
        let cluster = Cluster::new();
        let mut node = cluster.node("node-a");
        let webs = node.webs(["web-1", "web-2"]);
        let client = node.pod("client");
        let service = cluster.service("web", &webs);
        node.start_proxy_with(&["--proxy-mode=ipvs", "--iptables-sync-period=200ms"]);
        let n_repairs = || Status::read(&file_of(node.bpffs())).unwrap().n_repairs;
        let is_whole = || {
            [service.v4(), service.v6()].into_iter().all(|target| {
                let tally = cluster.send(&client, Protocol::Tcp, target, 20);
                tally.failed == 0 && answered_by(&tally) == names(&webs)
            })
        };
        eventually("Services are routed", is_whole);
        assert_eq!(n_repairs(), 0, "nothing else is taken for damage");
        for (what, damage) in DAMAGES {
            let before = n_repairs();
            damage(&node);
            let is_repaired = wait::until(soon(), || n_repairs() > before);
            assert!(is_repaired, "{what}: nothing is repaired\n{}", node.log());
            let is_routed = wait::until(soon(), is_whole);
            assert!(is_routed, "{what}: it is not whole again\n{}", node.log());
        }
        // Somebody else's virtual service, at somebody else's address.
        run(&node, "ipvsadm -A -t 203.0.113.10:80 -s rr");
        node.stop_proxy();
        let cleaned = node.fairlead().cleanup(node.node(), node.bpffs()).unwrap();
        assert!(cleaned.status.success(), "{cleaned:?}");
        let left = said(&node, "ipvsadm -Sn");
        assert_eq!(left.trim(), "-A -t 203.0.113.10:80 -s rr");
        assert!(!said(&node, "ip link").contains("kube-ipvs0"));
        assert_eq!(said(&node, "ipset list -name"), "");
        for program in ["iptables-save", "ip6tables-save"] {
            assert!(!said(&node, program).contains("KUBE-"), "{program}");
        }
    }

    fn run(node: &Node, command: &str) {
        said(node, command);
    }

    fn said(node: &Node, command: &str) -> String {
        let mut words = command.split_whitespace();
        let program = words.next().unwrap();
        let output = node.node().command(program).args(words).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}
