//! A node that lacks something, or a flag that names the wrong thing: one error that says what to
//! do, and nothing half attached.

use std::{fs, path::Path, process::Output};

use sandbox::{Pod, fairlead::ProxyOptions, traffic::Protocol};
use tests::cluster::{Cluster, Node, Service, Web};

/// A node with a Service that a proxy could route.
struct Stage {
    cluster: Cluster,
    node: Node,
    _webs: Vec<Web>,
    client: Pod,
    service: Service,
}

impl Stage {
    fn new() -> Self {
        let cluster = Cluster::new();
        let node = cluster.node("node-a");
        let webs = node.webs(["web-1", "web-2"]);
        let client = node.pod("client");
        let service = cluster.service("web", &webs);
        Self { cluster, node, _webs: webs, client, service }
    }

    fn options(&self) -> ProxyOptions {
        self.node.options_with(&[])
    }

    /// It ended with an error that has all `words`, and routes nothing.
    fn is_refused(&self, output: &Output, words: &[&str]) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{said}");
        let errors: Vec<_> = said.lines().filter(|line| line.starts_with("fairlead: ")).collect();
        assert_eq!(errors.len(), 1, "one error:\n{said}");
        let error = errors.first().unwrap();
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
        assert!(!said.contains("panicked"), "{said}");
        assert!(!self.is_routed(), "half attached after: {error}");
        assert_eq!(pins(self.node.bpffs()), Vec::<String>::new(), "pinned after: {error}");
    }

    fn is_routed(&self) -> bool {
        self.cluster.send(&self.client, Protocol::Tcp, self.service.v4(), 3).answered > 0
    }
}

/// Files under a directory on a bpffs, directories aside.
fn pins(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(pins(&entry.path()));
        } else {
            found.push(entry.path().display().to_string());
        }
    }
    found
}

#[test]
fn a_second_proxy_on_the_same_node_is_refused_and_the_first_serves_on() {
    let mut stage = Stage::new();
    stage.node.start_proxy();
    let second = stage.node.proxy_output(&stage.options());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success(), "{said}");
    let bpffs = stage.node.bpffs().to_str().unwrap();
    for word in ["another fairlead process", bpffs, "stop it first"] {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    assert!(stage.is_routed());
    let status = stage.node.fairlead().is_in_sync(stage.node.node(), stage.node.bpffs());
    assert!(status.unwrap(), "the first one is in sync");
}

#[test]
fn a_second_proxy_that_pins_elsewhere_is_refused_and_the_first_serves_on() {
    let mut stage = Stage::new();
    stage.node.start_proxy();
    let elsewhere = stage.node.bpffs().with_file_name("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let options = ProxyOptions { bpffs: elsewhere.clone(), ..stage.options() };
    let second = stage.node.proxy_output(&options);
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success(), "{said}");
    assert!(said.contains("another fairlead process is attached to cgroup"), "{said}");
    assert!(stage.is_routed());
    assert_eq!(pins(&elsewhere), Vec::<String>::new());
}

#[test]
fn a_user_without_privileges_is_told_which_are_missing() {
    let stage = Stage::new();
    // Where nobody may read it, which a build directory need not be.
    let binary = stage.cluster.dir().join("fairlead");
    fs::copy(stage.node.fairlead().path(), &binary).unwrap();
    let options = stage.options();
    let output = stage
        .node
        .node()
        .command("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(&binary)
        .args(["proxy", "--hostname-override", "node-a"])
        .arg("--objects")
        .arg(&options.objects)
        .arg("--cgroup")
        .arg(&options.cgroup)
        .arg("--bpffs")
        .arg(&options.bpffs)
        .output()
        .unwrap();
    stage.is_refused(&output, &["missing privilege", "CAP_BPF", "run as root"]);
}

#[test]
fn a_cgroup_that_is_none_is_refused() {
    let stage = Stage::new();
    for cgroup in [stage.cluster.dir().to_owned(), stage.cluster.dir().join("missing")] {
        let options = ProxyOptions { cgroup: cgroup.clone(), ..stage.options() };
        let output = stage.node.proxy_output(&options);
        stage.is_refused(&output, &["cgroup", cgroup.to_str().unwrap()]);
    }
}

#[test]
fn a_bpffs_that_is_none_is_refused() {
    let stage = Stage::new();
    for bpffs in [stage.cluster.dir().to_owned(), stage.cluster.dir().join("missing")] {
        let options = ProxyOptions { bpffs: bpffs.clone(), ..stage.options() };
        let output = stage.node.proxy_output(&options);
        stage.is_refused(&output, &[bpffs.to_str().unwrap(), "mount -t bpf"]);
    }
}

#[test]
fn a_cgroup_that_is_not_above_the_pods_is_refused() {
    let stage = Stage::new();
    let options = ProxyOptions { cgroup: stage.client.cgroup().to_owned(), ..stage.options() };
    let output = stage.node.proxy_output(&options);
    stage.is_refused(&output, &["--cgroup", "no pod of this node is below it", "such as"]);
}

#[test]
fn objects_that_are_no_folder_are_refused() {
    let stage = Stage::new();
    let missing = stage.cluster.dir().join("missing");
    let options = ProxyOptions { objects: missing.clone(), ..stage.options() };
    let output = stage.node.proxy_output(&options);
    stage.is_refused(&output, &[missing.to_str().unwrap()]);
}

#[test]
fn an_ebpf_object_that_is_none_is_refused_and_the_dataplane_goes_on() {
    let mut stage = Stage::new();
    let object = stage.cluster.dir().join("object.o");
    fs::write(&object, "no eBPF").unwrap();
    let object = object.to_str().unwrap();
    let output = stage.node.proxy_output(&stage.node.options_with(&["--ebpf-object", object]));
    stage.is_refused(&output, &["eBPF object"]);

    stage.node.start_proxy();
    stage.node.stop_proxy();
    let output = stage.node.proxy_output(&stage.node.options_with(&["--ebpf-object", object]));
    assert!(!output.status.success());
    assert!(stage.is_routed(), "what the proxy before it programmed goes on");
}
