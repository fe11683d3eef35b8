//! The stage of the cases, out of namespaces, with the proxy on node-a.
//!
//! ```text
//!                    fabric 172.18.0.0/16
//!    ┌────────┬────────┬───────┴──┬─────────┬────────┐
//!  node-a   node-b   client   stranger    world    wire
//!  .1       .2       .3       .4          .5       .6
//!  a1 a2 a3 b1 b2 b3           everything     a2 or the client, where a
//!  (and one behind each        else ends       case has them come in by eth0
//!  interface that a case names)   here
//! ```
//!
//! Whoever is not node-a sends everything but what is on its own node through node-a, so that the
//! cases' packets all pass it. Nothing keeps loopback addresses from the wire but the proxy: nodes
//! route them (`route_localnet`), and clients send them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use load::pinned::Pinned;
use model::name::Family;
use proxy::status::{Status, file_of};
use sandbox::fairlead::{Fairlead, Proxy, ProxyOptions};
use sandbox::manifest::Folder;
use sandbox::netns::Netns;
use sandbox::{Launch, Node, Pod, Sandbox, wait};
use tests::cluster::{self, soon};
use tests::stage;

use crate::crew::Crew;
use crate::layout::Layout;
use crate::mode::Mode;

/// Stages that this process has set.
static N_STAGES: AtomicUsize = AtomicUsize::new(0);

/// A stage, set.
pub(crate) struct Stage {
    // First: the actors end before their network.
    pub(crate) crew: Crew,
    proxy: Option<Proxy>,
    fairlead: Fairlead,
    folder: Folder,
    node: Node,
    options: ProxyOptions,
    log: PathBuf,
    n_steps: usize,
    host: BTreeSet<IpAddr>,
    layout: Layout,
    wire: Node,
    sides: BTreeMap<String, Pod>,
    _pods: Vec<Pod>,
    /// Ends everything, so last.
    _sandbox: Sandbox,
}

impl Stage {
    /// Sets the stage, with somebody behind each of these interfaces of node-a.
    pub(crate) fn new(mode: &Mode, interfaces: &BTreeSet<String>) -> Self {
        let n = N_STAGES.fetch_add(1, Ordering::Relaxed);
        let name = format!("cases-{}-{n}", std::process::id());
        let sandbox = Sandbox::create(&name).expect("the cases need root and cgroup v2");
        let nodes: Vec<Node> = ["node-a", "node-b", "client", "stranger", "world", "wire"]
            .iter()
            .map(|name| sandbox.node(name).unwrap())
            .collect();
        let [node, far, client, stranger, world, wire] = &*nodes else { panic!("six nodes") };
        let mut pods: Vec<Pod> = ["a1", "a2", "a3"].map(|name| node.pod(name).unwrap()).into();
        pods.extend(["b1", "b2", "b3"].map(|name| far.pod(name).unwrap()));
        mode.layout.arrange(node, far, &pods);
        if mode.is_legacy() {
            // As the kubelet does.
            run(node.command("iptables-legacy"), "-t mangle -N KUBE-IPTABLES-HINT");
        }
        let actor = actor_path();
        let mut crew = Crew::default();
        for node in &nodes {
            set_sysctls(node.netns());
            crew.join(node.name(), node.command(&actor));
        }
        for pod in &pods {
            set_sysctls(pod.netns());
            crew.join(pod.name(), pod.command(&actor));
        }
        route(node.command("ip"), "add default via 172.18.0.5");
        route(node.command("ip"), "add default via fd00:172:18::5");
        for outsider in [far, client, stranger, wire] {
            let ip = || outsider.command("ip");
            route(ip(), "add default via 172.18.0.1");
            route(ip(), "add default via fd00:172:18::1");
            let via = ["via 172.18.0.1 dev eth0", "via fd00:172:18::1 dev eth0"];
            send_loopback(ip, via);
        }
        for outsider in [client, stranger] {
            route(outsider.command("ip"), "add 172.18.0.2/32 via 172.18.0.1");
            route(outsider.command("ip"), "add fd00:172:18::2/128 via fd00:172:18::1");
        }
        take_everything(world);
        for pod in &pods {
            let via = if pod.node().name() == "node-a" { "10.244.1.1" } else { "10.244.2.1" };
            let via = format!("via {via} dev eth0");
            send_loopback(|| pod.command("ip"), [&via, "via fe80::1 dev eth0"]);
        }
        let mut sides = BTreeMap::new();
        for interface in interfaces.iter().filter(|name| *name != "eth0") {
            let name = format!("side-{interface}");
            let pod = node.pod(&name).unwrap();
            set_sysctls(pod.netns());
            crew.join(&name, pod.command(&actor));
            rename_link(node, &format!("veth{}", 3 + sides.len()), interface);
            sides.insert(interface.clone(), pod);
        }
        crew.wait_ready();
        let folder = Folder::create(&sandbox.dir().join("objects")).unwrap();
        let options = ProxyOptions {
            objects: folder.path().to_owned(),
            cgroup: node.cgroup().to_owned(),
            bpffs: node.bpffs().unwrap(),
            names: false,
            more: mode.args.iter().map(OsString::from).collect(),
        };
        let log = sandbox.dir().join("proxy.log");
        Self {
            crew,
            proxy: None,
            fairlead: cluster::fairlead(),
            folder,
            node: node.clone(),
            options,
            log,
            n_steps: 0,
            host: BTreeSet::new(),
            layout: mode.layout,
            wire: wire.clone(),
            sides,
            _pods: pods,
            _sandbox: sandbox,
        }
    }

    /// Gives the folder other objects, and waits until the proxy has them in the kernel.
    pub(crate) fn set_objects(&mut self, yaml: &str) {
        self.n_steps += 1;
        let marker = self.marker();
        self.folder.write("case", &format!("{yaml}\n---\n{marker}")).unwrap();
        if self.proxy.is_some() {
            self.wait_in_sync();
        }
    }

    /// Starts the proxy, instead of the one before if there is one. What that one left in the
    /// kernel is taken over.
    pub(crate) fn start_proxy(&mut self, flags: &[String]) {
        if let Some(proxy) = self.proxy.take() {
            let log = proxy.log();
            let ended = proxy.terminate(soon()).unwrap();
            assert!(ended.success(), "the proxy ended with {ended}:\n{log}");
        }
        let mut options = self.options.clone();
        options.more.extend(flags.iter().map(OsString::from));
        self.proxy = Some(self.fairlead.proxy(&self.node, &options, &self.log).unwrap());
        self.wait_in_sync();
    }

    /// Gives the node these addresses besides its own.
    pub(crate) fn set_host(&mut self, addresses: BTreeSet<IpAddr>) {
        let gone: Vec<IpAddr> = self.host.difference(&addresses).copied().collect();
        let come: Vec<IpAddr> = addresses.difference(&self.host).copied().collect();
        self.unbind(&gone);
        self.add(&come);
        self.host = addresses;
    }

    /// The addresses that the node has besides its own.
    pub(crate) const fn host(&self) -> &BTreeSet<IpAddr> {
        &self.host
    }

    /// The addresses that a masqueraded packet may have: the node's, loopback aside.
    pub(crate) fn is_masqueraded(&self, address: IpAddr) -> bool {
        stage::host().chain(GATEWAYS).any(|other| other == address) || self.host.contains(&address)
    }

    /// Whether netfilter masquerades what one of node-a's pods sends there.
    pub(crate) fn masquerades(&self, from: IpAddr, to: IpAddr) -> bool {
        // What is for the node itself is not forwarded.
        self.layout.masquerades(from, to) && self.owner(to) != "node-a"
    }

    /// Who has an address, as a packet finds it that passes node-a.
    pub(crate) fn owner(&self, address: IpAddr) -> &str {
        let stands = |name: &&&str| stage::address(name, Family::of(&address)) == Some(address);
        match ACTORS.iter().find(stands) {
            Some(&"node") => "node-a",
            Some(&"far") => "node-b",
            Some(name) => name,
            None if address.is_loopback() || self.host.contains(&address) => "node-a",
            None => "world",
        }
    }

    /// Gives the node these addresses for as long as something is sent from them. Says which it
    /// did not have.
    pub(crate) fn bind(&self, addresses: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        let has = |address: &IpAddr| self.is_masqueraded(*address);
        let lacks: Vec<IpAddr> = addresses.iter().copied().filter(|ip| !has(ip)).collect();
        self.add(&lacks);
        lacks
    }

    fn add(&self, addresses: &[IpAddr]) {
        for address in addresses {
            let nodad = if address.is_ipv6() { " nodad" } else { "" };
            self.ip(*address, &format!("address add {address} dev lo{nodad}"));
        }
        self.wait_heard(addresses, true);
    }

    /// Takes them away again.
    pub(crate) fn unbind(&self, addresses: &[IpAddr]) {
        for address in addresses {
            self.ip(*address, &format!("address del {address} dev lo"));
        }
        self.wait_heard(addresses, false);
    }

    /// Waits until a proxy that follows the node's addresses has heard that it has these, or has not.
    fn wait_heard(&self, addresses: &[IpAddr], has: bool) {
        let tables = Pinned::under(&self.options.bpffs).tables().unwrap();
        let Some(tables) = tables.filter(|_| self.proxy.is_some()) else { return };
        let heard = wait::until(soon(), || {
            addresses.iter().all(|address| tables.is_local(&(*address).into()) == has)
        });
        assert!(heard, "the proxy does not hear of {addresses:?}:\n{}", self.proxy_log());
    }

    /// Lets a source stand behind an interface of node-a.
    pub(crate) fn stand_behind(&self, interface: &str, source: IpAddr) -> Standing {
        let range = format!("{source}/{}", if source.is_ipv4() { 32 } else { 128 });
        let via = match interface {
            "eth0" if source.is_ipv4() => "via 172.18.0.6 dev eth0".to_owned(),
            "eth0" => "via fd00:172:18::6 dev eth0".to_owned(),
            _ => format!("dev {interface}"),
        };
        run(self.side(interface), &format!("address add {range} dev lo"));
        let before = self.ip(source, &format!("route show {range}"));
        self.ip(source, &format!("route replace {range} {via}"));
        let actor =
            if interface == "eth0" { "wire".to_owned() } else { format!("side-{interface}") };
        let before = before.lines().next().map(|route| route.trim().to_owned());
        Standing { actor, interface: interface.to_owned(), source, range, before }
    }

    /// Lets it stand where it did before.
    pub(crate) fn leave(&self, standing: &Standing) {
        let Standing { interface, source, range, before, .. } = standing;
        match before {
            Some(route) => self.ip(*source, &format!("route replace {route}")),
            None => self.ip(*source, &format!("route del {range}")),
        };
        run(self.side(interface), &format!("address del {range} dev lo"));
    }

    /// What the proxy has said, for whom a case fails.
    pub(crate) fn proxy_log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `ip` behind an interface.
    fn side(&self, interface: &str) -> Launch {
        self.sides.get(interface).map_or_else(|| self.wire.command("ip"), |pod| pod.command("ip"))
    }

    fn ip(&self, address: IpAddr, command: &str) -> String {
        run(self.node.command("ip"), &format!("{} {command}", family(address)))
    }

    /// A Service that is told of as a problem once the proxy knows it.
    fn marker(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: case, name: step-{}}}\nspec:\n  \
             clusterIP: 10.96.254.254\n  clusterIPs: [10.96.254.254]\n  externalIPs: [127.0.0.1]\n  \
             ports: [{{port: 9}}]\n",
            self.n_steps
        )
    }

    fn wait_in_sync(&mut self) {
        let proxy = self.proxy.as_mut().expect("a proxy runs");
        let file = file_of(&self.options.bpffs);
        let about = format!("Service case/step-{}:", self.n_steps);
        let in_sync = wait::until(soon(), || {
            proxy.has_ended().unwrap_or(true)
                || Status::read(&file).is_ok_and(|status| {
                    status.pid == proxy.id()
                        && status.last_failed == 0
                        && status.problems.iter().any(|problem| problem.starts_with(&about))
                })
        });
        let ended = proxy.has_ended().unwrap_or(true);
        assert!(in_sync && !ended, "the proxy is not in sync:\n{}", proxy.log());
    }
}

/// Those of the cast who have an address of their own.
const ACTORS: [&str; 10] =
    ["a1", "a2", "a3", "b1", "b2", "b3", "node", "far", "client", "stranger"];

/// A source behind an interface.
pub(crate) struct Standing {
    /// Who sends for it.
    pub(crate) actor: String,
    interface: String,
    source: IpAddr,
    range: String,
    before: Option<String>,
}

/// The node's ends of its pods' links, and of a tunnel to other nodes.
const GATEWAYS: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1)),
    IpAddr::V4(Ipv4Addr::new(10, 244, 1, 0)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 1)),
];

/// Answers are not rationed, nobody is told of shorter ways, and no way back is asked for.
fn set_sysctls(netns: &Netns) {
    let settings = [
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv4/icmp_msgs_per_sec", "1000000"),
        ("ipv6/icmp/ratelimit", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/eth0/send_redirects", "0"),
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/eth0/accept_redirects", "0"),
        ("ipv6/conf/all/accept_redirects", "0"),
        ("ipv6/conf/eth0/accept_redirects", "0"),
        ("ipv4/conf/all/route_localnet", "1"),
    ];
    let set = || {
        for (name, value) in settings {
            std::fs::write(format!("/proc/sys/net/{name}"), value)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    };
    netns.run(set).unwrap();
}

/// Lets a namespace send packets for loopback addresses out, and none to itself.
fn send_loopback(ip: impl Fn() -> Launch, [via_v4, via_v6]: [&str; 2]) {
    for (family, range, via) in [("-4", "127.0.0.0/8", via_v4), ("-6", "::1", via_v6)] {
        run(ip(), &format!("{family} route add default {via} table 101"));
        run(ip(), &format!("{family} rule add pref 10 lookup local"));
        run(ip(), &format!("{family} rule del pref 0"));
        run(ip(), &format!("{family} rule add pref 5 to {range} lookup 101"));
    }
}

/// Lets a node take every packet that comes to it, whomever it is for, though it asks for none
/// but its own.
fn take_everything(node: &Node) {
    let own_only = || std::fs::write("/proc/sys/net/ipv4/conf/eth0/arp_ignore", "1");
    node.netns().run(own_only).unwrap().unwrap();
    for family in ["-4", "-6"] {
        run(node.command("ip"), &format!("{family} route add local default dev lo table 100"));
        run(node.command("ip"), &format!("{family} rule add iif eth0 lookup 100"));
    }
}

/// A link loses its IPv6 addresses while it is down.
fn rename_link(node: &Node, from: &str, to: &str) {
    run(node.command("ip"), &format!("link set {from} down"));
    run(node.command("ip"), &format!("link set {from} name {to}"));
    run(node.command("ip"), &format!("link set {to} up"));
    run(node.command("ip"), &format!("address add fe80::1/64 dev {to} nodad"));
}

fn route(ip: Launch, command: &str) {
    run(ip, &format!("route {command}"));
}

/// Runs a program of the node's or a pod's network.
pub(crate) fn run(ip: Launch, command: &str) -> String {
    let output = ip.args(command.split_whitespace()).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {words}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn family(address: IpAddr) -> &'static str {
    match Family::of(&address) {
        Family::V4 => "-4",
        Family::V6 => "-6",
    }
}

/// The actor that the build has left beside this test.
fn actor_path() -> PathBuf {
    env!("CARGO_BIN_EXE_stage-actor").into()
}
