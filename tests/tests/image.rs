//! The image, run by containerd and runc as the `DaemonSet`'s manifest says, on a node of namespaces.
//! `cargo xtask dist --check` makes the image, installs what runs it, and plays this.
#![expect(clippy::unwrap_used, reason = "a test fails loudly")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::HostPathVolumeSource;
use proxy::status::Status;
use sandbox::traffic::{Load, Protocol, Until};
use sandbox::{Pod, Process, wait};
use tests::cluster::{Cluster, Node, Service, Web, answered_by, eventually, names};
use tests::daemonset;

/// What the manifest calls it.
const IMAGE: &str = "docker.io/library/fairlead:latest";

/// What it runs.
const ENTRY_POINT: &str = "/usr/bin/fairlead";

/// What containers have that are told of no capability.
const USUAL: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The modes, each of which the node can.
const MODES: [&str; 3] = ["ebpf", "nftables", "iptables"];

/// Slow is not lost: as long as a busy machine may take.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn the_image_routes_in_each_mode_and_its_one_argument_changes_the_mode() {
    let cluster = Cluster::new();
    let node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    let runtime = Containerd::start(&cluster, &node);
    let scene = Scene { cluster: &cluster, node: &node, client: &client, runtime: &runtime };
    for mode in MODES {
        scene.nobody_routes(&service);
        runtime.run(mode, cluster.folder().path());
        scene.is_routed(mode, &service, &webs);
        runtime.end(mode);
        let tally = cluster.send(&client, Protocol::Tcp, service.v4(), 20);
        assert_eq!(tally.failures, BTreeMap::new(), "{mode}: what is programmed stays");
        scene.cleanup();
    }
    scene.nobody_routes(&service);
    scene.modes_change(&service, &webs);
    scene.cleanup();
}

#[test]
fn the_image_has_the_programs_of_every_mode() {
    let cluster = Cluster::new();
    let node = cluster.node("node-a");
    let runtime = Containerd::start(&cluster, &node);
    for (program, word) in [
        ("nft", "--version"),
        ("iptables-nft-restore", "--version"),
        ("ip6tables-legacy-save", "--version"),
        // Of its version it asks the kernel, too.
        ("ipset", "help"),
    ] {
        let name = format!("program-{program}");
        runtime.ctr(&["run", "--rm", "--snapshotter=native", IMAGE, &name, program, word]);
    }
}

/// What the steps of the test happen to.
struct Scene<'s> {
    cluster: &'s Cluster,
    node: &'s Node,
    client: &'s Pod,
    runtime: &'s Containerd<'s>,
}

impl Scene<'_> {
    fn nobody_routes(&self, service: &Service) {
        let tally = self.cluster.send(self.client, Protocol::Tcp, service.v4(), 3);
        assert_eq!(tally.answered, 0, "nobody routes");
    }

    /// Waits until a container does, and shows it.
    fn is_routed(&self, mode: &str, service: &Service, webs: &[Web]) {
        let log = || self.runtime.log(mode);
        let in_sync =
            || self.runtime.status().is_some_and(|status| status.in_sync && status.mode == mode);
        assert!(wait::until(PATIENCE, in_sync), "{mode} is not in sync:\n{}", log());
        assert_eq!(self.runtime.page("10249/proxyMode"), mode);
        let is_healthy = || self.runtime.page("10256/livez").contains("\"healthy\":true");
        assert!(wait::until(PATIENCE, is_healthy), "{mode} is not healthy:\n{}", log());
        for target in [service.v4(), service.v6()] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let tally = self.cluster.send(self.client, protocol, target, 50);
                assert_eq!(tally.failures, BTreeMap::new(), "{mode}, {target}\n{}", log());
                assert_eq!(answered_by(&tally), names(webs), "{mode}, {target}");
            }
        }
    }

    /// As a roll-out does: another container in the place of the one before, its one argument changed.
    fn modes_change(&self, service: &Service, webs: &[Web]) {
        let first = MODES[0];
        self.runtime.run(first, self.cluster.folder().path());
        self.is_routed(first, service, webs);
        let load = Load {
            target: service.v4(),
            protocol: Protocol::Tcp,
            rate: 50,
            until: Until::Told,
            timeout: PATIENCE,
        };
        let load = self.node.fairlead().client(self.client, &load).unwrap();
        let mut before = first;
        for mode in MODES.into_iter().cycle().skip(1).take(MODES.len()) {
            self.runtime.end(before);
            self.runtime.run(mode, self.cluster.folder().path());
            self.is_routed(mode, service, webs);
            before = mode;
        }
        let tally = load.finish().unwrap();
        assert_eq!(tally.failures, BTreeMap::new(), "of {} requests", tally.requests);
        self.runtime.end(before);
    }

    fn cleanup(&self) {
        let bpffs = self.node.bpffs().join("fairlead");
        let cleaned = self.node.fairlead().cleanup(self.node.node(), &bpffs).unwrap();
        assert!(cleaned.status.success(), "{cleaned:?}");
    }
}

/// A containerd of the node's own, as its host would have one.
struct Containerd<'n> {
    node: &'n Node,
    dir: PathBuf,
    _daemon: Process,
}

impl<'n> Containerd<'n> {
    fn start(cluster: &Cluster, node: &'n Node) -> Self {
        let archive =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/dist/fairlead-linux-amd64.tar");
        assert!(archive.is_file(), "`cargo xtask dist` makes {}", archive.display());
        let dir = cluster.dir().join("containerd");
        fs::create_dir(&dir).unwrap();
        let at = dir.display();
        let config = format!(
            "version = 2\nroot = \"{at}/root\"\nstate = \"{at}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{at}/sock\"\n"
        );
        fs::write(dir.join("config.toml"), config).unwrap();
        let daemon = node
            .node()
            .command("containerd")
            .arg("-c")
            .arg(dir.join("config.toml"))
            .stderr(fs::File::create(dir.join("containerd.log")).unwrap())
            .spawn()
            .unwrap();
        let runtime = Self { node, dir, _daemon: daemon };
        eventually("containerd answers", || runtime.try_ctr(&["version"]).is_ok());
        let archive = archive.display().to_string();
        runtime.ctr(&["image", "import", "--snapshotter=native", &archive]);
        runtime
    }

    /// Runs the `DaemonSet`'s container.
    fn run(&self, mode: &str, objects: &Path) {
        let name = &name(mode);
        let (pod, container) = (daemonset::pod(), daemonset::container());
        assert_eq!((pod.host_network, pod.host_pid), (Some(true), Some(true)));
        let security = container.security_context.unwrap();
        let capabilities = security.capabilities.unwrap();
        assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]));
        let added = capabilities.add.unwrap();
        let mut args: Vec<String> =
            ["run", "--detach", "--snapshotter=native", "--net-host"].map(str::to_owned).into();
        // The host's: that of whoever opens it.
        args.push("--with-ns=pid:/proc/self/ns/pid".to_owned());
        args.push(format!("--log-uri=file://{}", self.dir.join(name).display()));
        args.extend(
            security.read_only_root_filesystem.filter(|it| *it).map(|_| "--read-only".to_owned()),
        );
        let dropped = USUAL.iter().filter(|usual| !added.contains(&(**usual).to_owned()));
        args.extend(dropped.map(|name| format!("--cap-drop=CAP_{name}")));
        args.extend(added.iter().map(|name| format!("--cap-add=CAP_{name}")));
        let volumes = pod.volumes.unwrap();
        for mount in container.volume_mounts.unwrap() {
            let volume = volumes.iter().find(|volume| volume.name == mount.name).unwrap();
            let from = self.host_path(volume.host_path.as_ref().unwrap());
            let access = if mount.read_only == Some(true) { "ro" } else { "rw" };
            args.push(bind(&from, &mount.mount_path, access));
        }
        // The one thing that a cluster has and this node has not: an API server.
        args.push(bind(objects, "/tmp/objects", "ro"));
        // Arguments take the place of the image's entry point here, and follow it in a pod.
        assert_eq!(container.command, None, "the image's own");
        args.extend([IMAGE.to_owned(), name.clone(), ENTRY_POINT.to_owned()]);
        args.extend(daemonset::args(mode, "node-a"));
        args.push("--objects=/tmp/objects".to_owned());
        self.ctr(&args.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Where a path of its host is on the node, whose kernel it shares with others.
    fn host_path(&self, volume: &HostPathVolumeSource) -> PathBuf {
        match volume.path.as_str() {
            "/sys/fs/bpf" => return self.node.bpffs().to_owned(),
            "/sys/fs/cgroup" => return self.node.node().cgroup().to_owned(),
            _ => {}
        }
        let path = self.dir.join("host").join(volume.path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match volume.type_.as_deref() {
            Some("FileOrCreate") => fs::write(&path, "").unwrap(),
            _ => fs::create_dir_all(&path).unwrap(),
        }
        path
    }

    fn status(&self) -> Option<Status> {
        Status::read(&self.dir.join("host/run/fairlead/sys-fs-bpf-fairlead.json")).ok()
    }

    fn page(&self, page: &str) -> String {
        let url = format!("http://127.0.0.1:{page}");
        let output =
            self.node.node().command("curl").args(["-s", "-m", "10", &url]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn log(&self, mode: &str) -> String {
        fs::read_to_string(self.dir.join(name(mode))).unwrap_or_default()
    }

    /// Kills a container, and removes it.
    fn end(&self, mode: &str) {
        let name = &name(mode);
        self.ctr(&["task", "kill", "--signal=SIGKILL", name]);
        eventually("the container ends", || self.try_ctr(&["task", "rm", name]).is_ok());
        self.ctr(&["container", "rm", name]);
    }

    fn ctr(&self, args: &[&str]) {
        self.try_ctr(args).unwrap();
    }

    fn try_ctr(&self, args: &[&str]) -> Result<(), String> {
        let socket = self.dir.join("sock");
        let ctr = self.node.node().command("ctr").arg("-a").arg(socket).args(["-n", "k8s.io"]);
        let output = ctr.args(args).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(format!("ctr {args:?}: {words}")) }
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        // A test that failed leaves its container running.
        for mode in MODES {
            _ = self.try_ctr(&["task", "rm", "--force", &name(mode)]);
        }
    }
}

/// What the container of a mode is called.
fn name(mode: &str) -> String {
    format!("fairlead-{mode}")
}

fn bind(from: &Path, to: &str, access: &str) -> String {
    format!("--mount=type=bind,src={},dst={to},options=rbind:{access}", from.display())
}
