//! The kernel or its programs refuse for a while: what is programmed stays, the change is tried again,
//! `/healthz` says so after twice the sync period, and no change is lost afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proxy::status::{Status, file_of};
use sandbox::Pod;
use sandbox::traffic::Protocol;
use tests::cluster::{Cluster, Node, Service, Web, answered_by, endpoints, eventually, names};

use crate::audit::{bpftool, maps};
use crate::pages::get;

/// A short one, so that twice as long is soon over.
const PERIOD: &str = "--iptables-sync-period=500ms";

/// What nft does while it is broken, as a shell would.
const NFT_FAULTS: [(&str, &str); 4] = [
    // Root without the capability is refused by the kernel itself.
    ("EPERM", "exec setpriv --bounding-set=-net_admin /usr/sbin/nft \"$@\""),
    (
        "ENOBUFS",
        "echo 'netlink: Error: cache initialization failed: No buffer space available' >&2; exit 1",
    ),
    ("too large", "echo 'Error: Could not process rule: Message too long' >&2; exit 1"),
    ("missing", "exec /nonexistent/nft"),
];

/// The same of iptables-restore.
const RESTORE_FAULTS: [(&str, &str); 4] = [
    ("EPERM", "exec setpriv --bounding-set=-net_admin /usr/sbin/iptables-legacy-restore \"$@\""),
    ("crash", "echo out of order >&2; kill -9 $$"),
    ("too large", "echo 'iptables-restore: line 4 failed: Memory allocation problem.' >&2; exit 1"),
    ("missing", "exec /nonexistent/iptables-restore"),
];

struct Scene {
    cluster: Cluster,
    node: Node,
    webs: Vec<Web>,
    client: Pod,
    service: Service,
}

impl Scene {
    fn new() -> Self {
        let cluster = Cluster::new();
        let node = cluster.node("node-a");
        let webs = node.webs(["web-1", "web-2"]);
        let client = node.pod("client");
        let service = cluster.service("web", &webs);
        Self { cluster, node, webs, client, service }
    }

    fn healthz(&self) -> String {
        get(&self.node, "http://127.0.0.1:10256/healthz").0
    }

    fn last_failed(&self) -> usize {
        Status::read(&file_of(self.node.bpffs())).unwrap().last_failed
    }

    /// The change that was told cannot be made, and what is there goes on.
    fn is_held_up(&self, what: &str, webs: &[Web]) {
        eventually(what, || self.last_failed() > 0);
        self.goes_on(what, webs);
        eventually(what, || self.healthz() == "503");
        assert_eq!(get(&self.node, "http://127.0.0.1:10256/livez").0, "503", "{what}");
        self.goes_on(what, webs);
    }

    fn is_well(&self, what: &str) {
        eventually(what, || self.last_failed() == 0 && self.healthz() == "200");
    }

    fn goes_on(&self, what: &str, webs: &[Web]) {
        let tally = self.cluster.send(&self.client, Protocol::Tcp, self.service.v4(), 30);
        assert_eq!(tally.failures, BTreeMap::new(), "{what}");
        assert_eq!(answered_by(&tally), names(webs), "{what}");
    }
}

#[test]
fn while_nft_is_refused_what_is_there_goes_on_and_no_change_is_lost() {
    while_refused(Scene::new(), "nftables", "nft", &NFT_FAULTS);
}

#[test]
fn while_iptables_is_refused_what_is_there_goes_on_and_no_change_is_lost() {
    let scene = Scene::new();
    // By this a node is known to use the legacy variant.
    let hint = ["-t", "mangle", "-N", "KUBE-IPTABLES-HINT"];
    let hinted = scene.node.node().command("iptables-legacy").args(hint).output().unwrap();
    assert!(hinted.status.success(), "{hinted:?}");
    while_refused(scene, "iptables", "iptables-legacy-restore", &RESTORE_FAULTS);
}

fn while_refused(mut scene: Scene, mode: &str, program: &str, faults: &[(&str, &str)]) {
    let bin = scene.cluster.dir().join("bin");
    fs::create_dir(&bin).unwrap();
    let broken = bin.join("broken");
    let script = format!(
        "#!/bin/sh\n[ -e {0} ] && . {0}\nexec /usr/sbin/{program} \"$@\"\n",
        broken.display()
    );
    fs::write(bin.join(program), script).unwrap();
    fs::set_permissions(bin.join(program), PermissionsExt::from_mode(0o755)).unwrap();
    scene.node.set_path(&bin);
    scene.node.start_proxy_with(&[&format!("--proxy-mode={mode}"), PERIOD]);
    scene.is_well("at first");
    let (first, _) = scene.webs.split_at(1);
    for (what, does) in faults {
        fs::write(&broken, format!("{does}\n")).unwrap();
        scene.cluster.set_endpoints(&scene.service, &endpoints(first));
        scene.is_held_up(what, &scene.webs);
        fs::remove_file(&broken).unwrap();
        scene.is_well(what);
        scene.goes_on(what, first);
        scene.cluster.set_endpoints(&scene.service, &endpoints(&scene.webs));
        eventually(what, || {
            let tally = scene.cluster.send(&scene.client, Protocol::Tcp, scene.service.v4(), 30);
            answered_by(&tally) == names(&scene.webs)
        });
    }
}

#[test]
fn while_the_map_of_frontends_is_full_what_is_there_goes_on_and_no_change_is_lost() {
    let mut scene = Scene::new();
    scene.node.start_proxy_with(&["--max-frontends=64", PERIOD]);
    scene.is_well("at first");
    let map = maps(&scene.node).join("FRONTENDS");
    let keys = fill(&scene, &map);
    let more = scene.cluster.service("more", &scene.webs);
    scene.is_held_up("E2BIG", &scene.webs);
    for key in keys {
        bpftool(
            &scene.node,
            &[&["map", "delete", "pinned", &text(&map), "key"], key.as_slice()].concat(),
        );
    }
    scene.is_well("E2BIG");
    let tally = scene.cluster.send(&scene.client, Protocol::Tcp, more.v4(), 30);
    assert_eq!(answered_by(&tally), names(&scene.webs));
}

#[test]
fn while_the_map_of_frontends_is_frozen_what_is_there_goes_on_and_a_new_one_has_every_change() {
    let mut scene = Scene::new();
    scene.node.start_proxy_with(&[PERIOD]);
    scene.is_well("at first");
    bpftool(&scene.node, &["map", "freeze", "pinned", &text(&maps(&scene.node).join("FRONTENDS"))]);
    let more = scene.cluster.service("more", &scene.webs);
    scene.is_held_up("EPERM", &scene.webs);
    // Nothing thaws a map, but another size takes another one.
    scene.node.stop_proxy();
    scene.goes_on("EPERM", &scene.webs);
    scene.node.start_proxy_with(&["--max-frontends=4096", PERIOD]);
    scene.is_well("EPERM");
    scene.goes_on("EPERM", &scene.webs);
    let tally = scene.cluster.send(&scene.client, Protocol::Tcp, more.v4(), 30);
    assert_eq!(answered_by(&tally), names(&scene.webs));
}

/// Fills a hash map with keys that no packet has; says which it took.
fn fill(scene: &Scene, map: &Path) -> Vec<Vec<&'static str>> {
    let shown = bpftool(&scene.node, &["-j", "map", "show", "pinned", &text(map)]);
    let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
    let size = |of: &str| usize::try_from(shown.get(of).unwrap().as_u64().unwrap()).unwrap();
    let (key_size, value_size) = (size("bytes_key"), size("bytes_value"));
    let n = 4 * size("max_entries");
    let digit = |set: bool| if set { "255" } else { "254" };
    let mut taken = Vec::new();
    for number in 0..n {
        let key: Vec<&'static str> =
            (0..key_size).map(|bit| digit(bit < 20 && number >> bit & 1 == 1)).collect();
        let value = vec!["0"; value_size];
        let path = text(map);
        let begin = ["map", "update", "pinned", &path, "key"];
        let args = [&begin[..], &key, &["value"], &value].concat();
        let output = scene.node.node().command("bpftool").args(args).output().unwrap();
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(words.contains("too long"), "E2BIG: {words}");
            return taken;
        }
        taken.push(key);
    }
    assert!(taken.len() < n, "{n} keys fit into {}", map.display());
    taken
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
