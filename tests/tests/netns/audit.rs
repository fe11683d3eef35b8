//! What somebody else does to the maps, pins and links of the eBPF mode.

use std::fs;
use std::path::PathBuf;

use proxy::status::{Status, file_of};
use sandbox::traffic::Protocol;
use serde_json::Value;
use tests::cluster::{Cluster, Node, answered_by, eventually, names};

/// What is done to a node.
type Damage = fn(&Node);

const DAMAGES: [(&str, Damage); 10] = [
    ("frontends are deleted", |node| delete_all(node, "FRONTENDS")),
    ("addresses are deleted", |node| delete_all(node, "ADDRESSES")),
    ("ranges are deleted", |node| delete_all(node, "PREFIXES")),
    ("slots are overwritten", |node| overwrite(node, "SLOTS", 8)),
    ("endpoints are overwritten", |node| overwrite(node, "ENDPOINTS", 16)),
    ("what holds for the node is overwritten", |node| overwrite(node, "NODE", 1)),
    ("the programs at sockets are detached", |node| {
        for link in entries(&node.bpffs().join("links")) {
            bpftool(node, &["link", "detach", "pinned", &link.display().to_string()]);
        }
    }),
    ("the links to devices are removed", |node| remove_all(&node.bpffs().join("devices"))),
    ("the names of maps are removed", |node| remove_all(&maps(node))),
    ("all of it is removed", |node| fs::remove_dir_all(node.bpffs()).unwrap()),
];

#[test]
fn what_others_do_to_maps_pins_and_links_is_repaired_within_a_period_and_counted() {
    // Packets read the same maps, which need not be destroyed twice.
    for (sockets, damages) in [("all", &DAMAGES[..]), ("off", &DAMAGES[7..])] {
        let cluster = Cluster::new();
        let mut node = cluster.node("node-a");
        let webs = node.webs(["web-1", "web-2"]);
        let client = node.pod("client");
        let service = cluster.service("web", &webs);
        let socket_lb = format!("--socket-lb={sockets}");
        node.start_proxy_with(&[&socket_lb, "--iptables-sync-period=200ms"]);
        let n_repairs = || Status::read(&file_of(node.bpffs())).unwrap().n_repairs;
        let is_whole = || {
            [service.v4(), service.v6()].into_iter().all(|target| {
                let tally = cluster.send(&client, Protocol::Tcp, target, 50);
                tally.failed == 0 && answered_by(&tally) == names(&webs)
            })
        };
        assert!(is_whole());
        assert_eq!(n_repairs(), 0, "nothing else is taken for damage");
        for (what, damage) in damages {
            let before = n_repairs();
            damage(&node);
            eventually(what, || n_repairs() > before);
            // Damage that takes a while may be met by more than one look.
            eventually(what, is_whole);
        }
        // The next process still has a lock to wait for, and something to take over.
        let output = node.proxy_output(&node.options_with(&[]));
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(words.contains("another fairlead process serves this node"), "{words}");
        node.kill_proxy();
        node.start_proxy_with(&[&socket_lb]);
        assert!(node.log().contains("adopted=4"), "{}", node.log());
        assert_eq!(cluster.send(&client, Protocol::Tcp, service.v4(), 20).failed, 0);
    }
}

pub(crate) fn bpftool(node: &Node, args: &[&str]) -> Vec<u8> {
    let output = node.node().command("bpftool").args(args).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "bpftool {args:?}: {words}");
    output.stdout
}

/// Where the maps are pinned: the one directory that bears a schema's number.
pub(crate) fn maps(node: &Node) -> PathBuf {
    let is_schema = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok())
    };
    entries(node.bpffs()).into_iter().find(is_schema).unwrap()
}

fn delete_all(node: &Node, map: &str) {
    let path = maps(node).join(map).display().to_string();
    let dump: Value =
        serde_json::from_slice(&bpftool(node, &["-j", "map", "dump", "pinned", &path])).unwrap();
    let entries = dump.as_array().unwrap();
    assert!(!entries.is_empty(), "{map} holds something");
    for entry in entries {
        let key: Vec<&str> = entry
            .get("key")
            .unwrap()
            .as_array()
            .unwrap()
            .iter()
            .map(|byte| byte.as_str().unwrap())
            .collect();
        bpftool(node, &[&["map", "delete", "pinned", &path, "key"], key.as_slice()].concat());
    }
}

/// Writes zeros over the first entries of an array.
fn overwrite(node: &Node, map: &str, n: u8) {
    let path = maps(node).join(map).display().to_string();
    let shown: Value =
        serde_json::from_slice(&bpftool(node, &["-j", "map", "show", "pinned", &path])).unwrap();
    let size = usize::try_from(shown.get("bytes_value").unwrap().as_u64().unwrap()).unwrap();
    for index in 0..n {
        let index = index.to_string();
        let begin = ["map", "update", "pinned", &path, "key", &index, "0", "0", "0", "value"];
        bpftool(node, &[&begin, vec!["0"; size].as_slice()].concat());
    }
}

fn remove_all(dir: &std::path::Path) {
    let files = entries(dir);
    assert!(!files.is_empty(), "{} holds something", dir.display());
    for file in files {
        fs::remove_file(file).unwrap();
    }
}

fn entries(dir: &std::path::Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}
