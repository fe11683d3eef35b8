//! Where the packets go: three nodes with a pod each, and a client outside of them.
//!
//! ```text
//!   outside ─── bridge ─┬─ ours      `fairlead proxy`
//!                       ├─ nftables  two rules and a masquerade
//!                       └─ bare      forwards what is sent to its pod
//! ```

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use sandbox::fairlead::{Fairlead, Proxy, ProxyOptions};
use sandbox::manifest::{Endpoint, Folder, Service, node_yaml};
use sandbox::{Node, Pod, Sandbox};
use tests::binary;
use tests::cycles::Client;

/// What the pods' servers listen at.
pub(crate) const PORT: u16 = 8080;
const NODE_PORT: u16 = 30_080;
/// The same of what is put onto the wires by hand: nobody listens there, and no socket's connection has had
/// a port for that.
pub(crate) const BY_HAND: u16 = 8081;
const NODE_PORT_BY_HAND: u16 = 30_081;

/// A node with its pod, and what to ask to be served by it.
pub(crate) struct Arm {
    // First: it ends before its network.
    pub(crate) server: Client,
    pub(crate) node: Node,
    pub(crate) pod: Pod,
    pub(crate) target: SocketAddr,
    /// The same at [`BY_HAND`].
    pub(crate) by_hand: SocketAddr,
}

/// All of it.
pub(crate) struct Stage {
    pub(crate) ours: Arm,
    pub(crate) theirs: Arm,
    pub(crate) bare: Arm,
    pub(crate) outside: Node,
    _proxy: Proxy,
    /// Ends everything, so last.
    _cluster: Sandbox,
}

impl Stage {
    pub(crate) fn set() -> Self {
        let cluster = Sandbox::create("bench-nodeport").unwrap();
        let [ours, theirs, bare] =
            ["ours", "nftables", "bare"].map(|name| Arm::new(&cluster, name));
        let outside = cluster.node("outside").unwrap();
        // As many connections as a round wants may have ended lately.
        outside.netns().set_sysctls(&[("ipv4/tcp_tw_reuse", "1")]).unwrap();
        let proxy = ours.lead_by_packets(&cluster);
        theirs.lead_by_rules(&cluster);
        let [target, by_hand] =
            [PORT, BY_HAND].map(|port| SocketAddr::new(bare.pod.addresses().v4.into(), port));
        let bare = Arm { target, by_hand, ..bare };
        Self { ours, theirs, bare, outside, _proxy: proxy, _cluster: cluster }
    }

    pub(crate) fn arms(&self) -> [&Arm; 3] {
        [&self.ours, &self.theirs, &self.bare]
    }
}

impl Arm {
    fn new(cluster: &Sandbox, name: &str) -> Self {
        let node = cluster.node(name).unwrap();
        let pod = node.pod(&format!("{name}-server")).unwrap();
        let me = std::env::current_exe().unwrap();
        let server = Client::start(pod.command(me).arg("serve")).expect("the server comes up");
        let [target, by_hand] = [NODE_PORT, NODE_PORT_BY_HAND]
            .map(|port| SocketAddr::new(node.addresses().v4.into(), port));
        Self { server, node, pod, target, by_hand }
    }

    fn lead_by_packets(&self, cluster: &Sandbox) -> Proxy {
        let vip: IpAddr = "10.96.0.10".parse().unwrap();
        let service = Service::new("bench", "target")
            .cluster_ip(vip)
            .tcp("tcp", 80, PORT)
            .node_port(NODE_PORT)
            .tcp("by-hand", 81, BY_HAND)
            .node_port(NODE_PORT_BY_HAND)
            .udp("udp", 80, PORT)
            .node_port(NODE_PORT);
        let objects = Folder::create(&cluster.dir().join("objects")).unwrap();
        objects.write("node", &node_yaml(&self.node)).unwrap();
        objects.write_service(&service, &[Endpoint::of(&self.pod)]).unwrap();
        let options = ProxyOptions {
            objects: objects.path().to_owned(),
            cgroup: self.node.cgroup().to_owned(),
            bpffs: self.node.bpffs().unwrap(),
            names: false,
            more: Vec::new(),
        };
        let fairlead = Fairlead::at(binary::fairlead());
        let log = cluster.dir().join("proxy.log");
        let mut proxy = fairlead.proxy(&self.node, &options, &log).unwrap();
        let within = Duration::from_secs(60);
        let in_sync = proxy.wait_in_sync(&fairlead, &self.node, &options.bpffs, within);
        assert!(in_sync.unwrap(), "the proxy is not in sync; its log:\n{}", proxy.log());
        proxy
    }

    /// What somebody would write for this one Service.
    fn lead_by_rules(&self, cluster: &Sandbox) {
        let (own, to) = (self.node.addresses().v4, self.pod.addresses().v4);
        let rules = format!(
            "table ip bench {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    ip daddr {own} tcp dport {NODE_PORT} dnat to {to}:{PORT}
    ip daddr {own} tcp dport {NODE_PORT_BY_HAND} dnat to {to}:{BY_HAND}
    ip daddr {own} udp dport {NODE_PORT} dnat to {to}:{PORT}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ip daddr {to} tcp dport {{ {PORT}, {BY_HAND} }} masquerade
    ip daddr {to} udp dport {PORT} masquerade
  }}
}}
"
        );
        let file = cluster.dir().join("bench.nft");
        fs::write(&file, rules).unwrap();
        let output = self.node.command("nft").arg("-f").arg(&file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        // Frames that are put onto a wire by hand bear no device's word for their checksums, as real ones do.
        let trusted = [("netfilter/nf_conntrack_checksum", "0")];
        self.node.netns().set_sysctls(&trusted).unwrap();
    }
}
