//! A simulated cluster with a proxy on each node: what the netns tests tell their stories with.
//!
//! ```no_run
//! # use sandbox::traffic::Protocol;
//! let cluster = tests::cluster::Cluster::new();
//! let mut node = cluster.node("node-a");
//! let webs = node.webs(["web-1", "web-2"]);
//! let client = node.pod("client");
//! let service = cluster.service("web", &webs);
//! node.start_proxy();
//! let tally = cluster.send(&client, Protocol::Tcp, service.v4(), 100);
//! assert_eq!(tally.failed, 0);
//! ```
#![expect(clippy::unwrap_used, reason = "a test fails loudly")]

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{self, Output},
    sync::atomic::{AtomicU8, AtomicUsize, Ordering},
    time::Duration,
};

use crate::pace::Pace;
use sandbox::{
    Pod, Process, Sandbox,
    fairlead::{Client, Fairlead, Proxy, ProxyOptions},
    hello,
    manifest::{self, Endpoint, Folder},
    traffic::{Load, Protocol, Tally, Until},
    wait,
};

/// How long anything may take that ought to happen, on a machine of today.
pub const SOON: Duration = Duration::from_secs(20);
/// How long one request may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// New connections a second, as the promises have it.
pub const RATE: u32 = 200;
/// The port of every Service.
const PORT: u16 = 80;

/// Sandboxes that this process has made.
static N_CLUSTERS: AtomicUsize = AtomicUsize::new(0);

/// A cluster: nodes, and a folder of objects that all their proxies read.
#[derive(Debug)]
pub struct Cluster {
    sandbox: Sandbox,
    folder: Folder,
    fairlead: Fairlead,
    n_services: AtomicU8,
}

/// A node, with its proxy if it has been started.
#[derive(Debug)]
pub struct Node {
    node: sandbox::Node,
    fairlead: Fairlead,
    options: ProxyOptions,
    log: PathBuf,
    proxy: Option<Proxy>,
}

/// A pod that serves its name.
#[derive(Debug)]
pub struct Web {
    /// The pod.
    pub pod: Pod,
    /// What it runs.
    pub server: Process,
}

/// A Service of both families, TCP and UDP on one port.
#[derive(Debug)]
pub struct Service {
    manifest: manifest::Service,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Cluster {
    /// An empty cluster of its own.
    pub fn new() -> Self {
        let n = N_CLUSTERS.fetch_add(1, Ordering::Relaxed);
        let sandbox = Sandbox::create(&format!("test-{}-{n}", process::id()))
            .expect("the netns tests need root and cgroup v2");
        let folder = Folder::create(&sandbox.dir().join("objects")).unwrap();
        Self { sandbox, folder, fairlead: fairlead(), n_services: AtomicU8::new(0) }
    }

    /// Adds a node, without a proxy as yet.
    pub fn node(&self, name: &str) -> Node {
        let node = self.sandbox.node(name).unwrap();
        self.folder.write(name, &manifest::node_yaml(&node)).unwrap();
        let options = ProxyOptions {
            objects: self.folder.path().to_owned(),
            cgroup: node.cgroup().to_owned(),
            bpffs: node.bpffs().unwrap(),
            names: false,
            more: Vec::new(),
        };
        let log = self.dir().join(format!("proxy-{name}.log"));
        Node { node, fairlead: self.fairlead.clone(), options, log, proxy: None }
    }

    /// Writes a Service with these pods behind it.
    pub fn service(&self, name: &str, webs: &[Web]) -> Service {
        let n = 10 + self.n_services.fetch_add(1, Ordering::Relaxed);
        let v4 = Ipv4Addr::new(10, 96, 0, n);
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, n.into());
        let manifest = manifest::Service::new("default", name)
            .cluster_ip(v4)
            .cluster_ip(v6)
            .tcp("tcp", PORT, hello::PORT)
            .udp("udp", PORT, hello::PORT);
        self.folder.write_service(&manifest, &endpoints(webs)).unwrap();
        Service { manifest, v4, v6 }
    }

    /// Annotates a Service.
    pub fn annotate(&self, service: &Service, name: &str, value: &str) {
        let (manifest, file) = (&service.manifest, format!("{}-service", service.manifest.name()));
        let annotated = format!("metadata:\n  annotations: {{{name}: {value:?}}}\n");
        self.folder.write(&file, &manifest.yaml().replacen("metadata:\n", &annotated, 1)).unwrap();
    }

    /// Puts other endpoints behind a Service.
    pub fn set_endpoints(&self, service: &Service, endpoints: &[Endpoint]) {
        self.folder.write_endpoints(&service.manifest, endpoints).unwrap();
    }

    /// Sends `n` requests, one connection or socket each where the protocol has it so.
    pub fn send(&self, pod: &Pod, protocol: Protocol, target: SocketAddr, n: u32) -> Tally {
        const RATE: u32 = 500;
        let (until, timeout) = (Until::Sent(n), request_timeout());
        let load = Load { target, protocol, rate: RATE, until, timeout };
        self.fairlead.client(pod, &load).unwrap().finish().unwrap()
    }

    /// Goes on sending at [`RATE`], or the pace of this machine, until the client is finished.
    pub fn load(&self, pod: &Pod, protocol: Protocol, target: SocketAddr) -> Client {
        let (until, timeout) = (Until::Told, request_timeout());
        let rate = Pace::of_this_machine().rate(RATE);
        let load = Load { target, protocol, rate, until, timeout };
        self.fairlead.client(pod, &load).unwrap()
    }

    /// The folder of objects.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// A directory that goes with the cluster.
    pub fn dir(&self) -> &Path {
        self.sandbox.dir()
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    /// Adds a pod.
    pub fn pod(&self, name: &str) -> Pod {
        self.node.pod(name).unwrap()
    }

    /// Adds a pod that serves.
    pub fn web(&self, name: &str) -> Web {
        let pod = self.pod(name);
        let server = self.fairlead.hello(&pod).unwrap();
        Web { pod, server }
    }

    /// Adds pods that serve.
    pub fn webs<const N: usize>(&self, names: [&str; N]) -> Vec<Web> {
        names.map(|name| self.web(name)).into()
    }

    /// Lets its proxies find programs in this directory first.
    pub fn set_path(&mut self, first: &Path) {
        let script = first.join("fairlead");
        let (first, program) = (first.display(), self.fairlead.path().display().to_string());
        let text = format!("#!/bin/sh\nPATH={first}:$PATH exec {program} \"$@\"\n");
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        self.fairlead = Fairlead::at(script);
    }

    /// Lets its proxies be another program.
    pub fn set_program(&mut self, program: &Path) {
        self.fairlead = Fairlead::at(program.to_owned());
    }

    /// Starts a proxy, and waits until it is in sync.
    pub fn start_proxy(&mut self) {
        self.start_proxy_with(&[]);
    }

    /// The same with more arguments.
    pub fn start_proxy_with(&mut self, more: &[&str]) {
        self.start(&self.options_with(more));
    }

    /// Starts a proxy that answers the node's names as well, on 127.0.0.1:53 unless told otherwise,
    /// and waits until it is in sync.
    pub fn start_names_with(&mut self, more: &[&str]) {
        // Pages that nobody asks for are nowhere: nodes share the ports of no machine, but pods do.
        let pages = ["--health-address=", "--ready-address=", "--metrics-address="];
        let is_asked = |page: &&str| more.iter().any(|arg| arg.starts_with(page));
        let nowhere: Vec<&str> = pages.into_iter().filter(|page| !is_asked(page)).collect();
        let more = [&nowhere, more].concat();
        self.start(&ProxyOptions { names: true, ..self.options_with(&more) });
    }

    fn start(&mut self, options: &ProxyOptions) {
        self.spawn(options);
        self.wait_in_sync();
    }

    /// Starts a proxy, and does not wait until it is in sync.
    pub fn spawn_proxy(&mut self) {
        self.spawn(&self.options.clone());
    }

    fn spawn(&mut self, options: &ProxyOptions) {
        assert!(self.proxy.is_none(), "one proxy a node");
        self.proxy = Some(self.fairlead.proxy(&self.node, options, &self.log).unwrap());
    }

    /// Waits until the proxy that was started last is in sync.
    pub fn wait_in_sync(&mut self) {
        let proxy = self.proxy.as_mut().expect("a proxy runs");
        let in_sync = proxy
            .wait_in_sync(&self.fairlead, &self.node, &self.options.bpffs, soon())
            .expect("fairlead status can be run");
        assert!(in_sync, "the proxy is not in sync:\n{}", proxy.log());
    }

    /// Whether its proxy has ended by itself.
    pub fn proxy_has_ended(&mut self) -> bool {
        self.proxy.as_mut().is_none_or(|proxy| proxy.has_ended().unwrap())
    }

    /// Kills the proxy, as `kill -9` does.
    pub fn kill_proxy(&mut self) {
        self.proxy.take().expect("a proxy runs").kill().unwrap();
    }

    /// Asks the proxy to end.
    pub fn stop_proxy(&mut self) {
        let ended = self.proxy.take().expect("a proxy runs").terminate(soon()).unwrap();
        assert!(ended.success(), "the proxy ended with {ended}");
    }

    /// Runs a proxy that is expected to refuse to serve.
    pub fn proxy_output(&self, options: &ProxyOptions) -> Output {
        self.fairlead.proxy_output(&self.node, options).unwrap()
    }

    /// What its proxy is told, and more.
    pub fn options_with(&self, more: &[&str]) -> ProxyOptions {
        let more = more.iter().map(OsString::from).collect();
        ProxyOptions { more, ..self.options.clone() }
    }

    /// What its proxies have logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// The node in the sandbox.
    pub fn node(&self) -> &sandbox::Node {
        &self.node
    }

    /// Where its proxy pins.
    pub fn bpffs(&self) -> &Path {
        &self.options.bpffs
    }

    /// The binary.
    pub fn fairlead(&self) -> &Fairlead {
        &self.fairlead
    }
}

impl Service {
    /// Its IPv4 address and port.
    pub fn v4(&self) -> SocketAddr {
        (self.v4, PORT).into()
    }

    /// Its IPv6 address and port.
    pub fn v6(&self) -> SocketAddr {
        (self.v6, PORT).into()
    }

    /// Its IPv4 address as an IPv6 socket names it.
    pub fn mapped(&self) -> SocketAddr {
        (self.v4.to_ipv6_mapped(), PORT).into()
    }

    /// All three.
    pub fn ways(&self) -> [SocketAddr; 3] {
        [self.v4(), self.v6(), self.mapped()]
    }
}

/// Ready endpoints, a pod each.
pub fn endpoints(webs: &[Web]) -> Vec<Endpoint> {
    webs.iter().map(|web| Endpoint::of(&web.pod)).collect()
}

/// The names of pods.
pub fn names(webs: &[Web]) -> BTreeSet<&str> {
    webs.iter().map(|web| web.pod.name()).collect()
}

/// Who has answered.
pub fn answered_by(tally: &Tally) -> BTreeSet<&str> {
    tally.answers.keys().map(String::as_str).collect()
}

/// Waits for something that ought to happen.
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(wait::until(soon(), condition), "{what}: not within {:?}", soon());
}

/// [`SOON`], at the pace of this machine.
pub fn soon() -> Duration {
    Pace::of_this_machine().time(SOON)
}

fn request_timeout() -> Duration {
    Pace::of_this_machine().time(REQUEST_TIMEOUT)
}

/// The binary that the build has left beside this test.
pub fn fairlead() -> Fairlead {
    let test = env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("fairlead");
    assert!(path.exists(), "{} is not there: run `cargo xtask build`", path.display());
    Fairlead::at(path)
}

/// The eBPF object of a build that differs from the embedded one.
pub fn other_ebpf_object() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/prog-log.o");
    assert!(path.exists(), "{} is not there: run `cargo xtask build`", path.display());
    path.to_str().unwrap().to_owned()
}
