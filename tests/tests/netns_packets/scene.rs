//! Two nodes, a client and a stranger on one link, and a Service before an echo on each node.
//!
//! ```text
//!   client  stranger                node-a (proxy)          node-b
//!      └───────┴────── fabric ────────┴───────────────────────┘
//!                                     near: node port 30080   far: node port 30090
//! ```

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use sandbox::manifest::{Endpoint, Service};
use sandbox::netns::Netns;
use sandbox::{Node, Pod, wait};
use tests::cluster::{self, Cluster};

/// The port of both Services.
pub(crate) const PORT: u16 = 80;
/// The echo's port.
pub(crate) const TARGET: u16 = 8080;
/// Node ports of the Service whose endpoint is on the node with the proxy, TCP and UDP.
pub(crate) const NEAR: u16 = 30_080;
/// Of the one whose endpoint is on the other node.
pub(crate) const FAR: u16 = 30_090;
/// How long a packet may take that is expected.
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// Errors are told as often as asked for, and nobody tells or takes another way.
const QUIET: [(&str, &str); 7] = [
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv6/icmp/ratelimit", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/eth0/send_redirects", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv6/conf/all/accept_redirects", "0"),
    ("ipv6/conf/eth0/accept_redirects", "0"),
];

/// The stage.
pub(crate) struct Scene {
    // First: the echos end before their networks.
    _echos: Vec<Echo>,
    pub(crate) proxied: cluster::Node,
    pub(crate) far: Node,
    pub(crate) client: Node,
    pub(crate) stranger: Node,
    pub(crate) near_pod: Pod,
    pub(crate) far_pod: Pod,
    /// Ends everything, so last.
    pub(crate) cluster: Cluster,
}

impl Scene {
    /// Sets the stage, with more flags for the proxy.
    pub(crate) fn new(more: &[&str]) -> Self {
        let cluster = Cluster::new();
        let mut proxied = cluster.node("node-a");
        let [far, client, stranger] =
            ["node-b", "client", "stranger"].map(|name| cluster.node(name).node().clone());
        for node in [proxied.node(), &far, &client, &stranger] {
            node.netns().set_sysctls(&QUIET).unwrap();
        }
        let (near_pod, far_pod) = (proxied.pod("near"), far.pod("far").unwrap());
        let echos = vec![Echo::start(near_pod.netns()), Echo::start(far_pod.netns())];
        service(&cluster, "near", 10, NEAR, &near_pod);
        service(&cluster, "far", 11, FAR, &far_pod);
        let own = proxied.node().addresses();
        for outsider in [&client, &stranger] {
            ip(outsider, &format!("route add 10.96.0.0/16 via {}", own.v4));
            ip(outsider, &format!("route add fd00:10:96::/112 via {}", own.v6));
            // Its pods are on the link as well; their packets come back by the node only.
            for (cidr, via) in proxied.node().pod_cidrs().iter().zip(own.both()) {
                ip(outsider, &format!("route replace {cidr} via {via}"));
            }
        }
        let own = ["--socket-lb=off", "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48"];
        proxied.start_proxy_with(&[&own, more].concat());
        let _echos = echos;
        Self { _echos, proxied, far, client, stranger, near_pod, far_pod, cluster }
    }

    /// An address of the proxy's node.
    pub(crate) fn node(&self, v6: bool) -> IpAddr {
        of(self.proxied.node().addresses().both(), v6)
    }

    /// Lets the stranger find the node's link address, which nobody tells to whom forges his own.
    pub(crate) fn acquaint(&self, v6: bool) {
        let socket = udp(self.stranger.netns(), v6);
        let [_, node_port] = self.frontends(false, v6);
        let is_heard = || datagram_round_trip(&socket, node_port, b"hello");
        assert!(wait::until(SOON, is_heard), "the stranger reaches {node_port}");
    }

    /// The cluster IP and the node port of the near Service, or of the far one.
    pub(crate) fn frontends(&self, is_far: bool, v6: bool) -> [SocketAddr; 2] {
        let (n, node_port) = if is_far { (11, FAR) } else { (10, NEAR) };
        let node = self.node(v6);
        [SocketAddr::new(vip(n, v6), PORT), SocketAddr::new(node, node_port)]
    }
}

/// The address of a family.
pub(crate) fn of(both: [IpAddr; 2], v6: bool) -> IpAddr {
    both.into_iter().find(|address| address.is_ipv6() == v6).unwrap()
}

fn vip(n: u8, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, n.into()).into()
    } else {
        Ipv4Addr::new(10, 96, 0, n).into()
    }
}

/// Writes a Service with a node port for TCP and UDP.
fn service(cluster: &Cluster, name: &str, n: u8, node_port: u16, pod: &Pod) {
    let service = Service::new("default", name)
        .cluster_ip(vip(n, false))
        .cluster_ip(vip(n, true))
        .tcp("tcp", PORT, TARGET)
        .udp("udp", PORT, TARGET);
    cluster.folder().write_service(&service, &[Endpoint::of(pod)]).unwrap();
    let yaml = service
        .yaml()
        .replace("type: ClusterIP", "type: NodePort")
        .replace("protocol: TCP\n", &format!("protocol: TCP\n    nodePort: {node_port}\n"))
        .replace("protocol: UDP\n", &format!("protocol: UDP\n    nodePort: {node_port}\n"));
    cluster.folder().write(&format!("{name}-service"), &yaml).unwrap();
}

/// Runs `ip` on a node.
pub(crate) fn ip(node: &Node, args: &str) {
    let output = node.command("ip").args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {output:?}");
}

/// A UDP socket in a namespace, at any port.
pub(crate) fn udp(netns: &Netns, v6: bool) -> UdpSocket {
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = netns.run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

/// A TCP connection from a namespace.
pub(crate) fn tcp(netns: &Netns, to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = netns.run(|| TcpStream::connect_timeout(&to, SOON / 4)).unwrap()?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One byte there and back.
pub(crate) fn round_trip(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut byte = [7];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)
}

/// A datagram there and back; UDP is sent again when it is lost.
pub(crate) fn datagram_round_trip(socket: &UdpSocket, to: SocketAddr, bytes: &[u8]) -> bool {
    socket.send_to(bytes, to).unwrap();
    let mut room = vec![0; bytes.len() + 1];
    matches!(socket.recv_from(&mut room), Ok((n, from)) if from == to && room.get(..n) == Some(bytes))
}

/// Sends everything back, over TCP and UDP.
struct Echo {
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    fn start(netns: &Netns) -> Self {
        /// How often it looks whether it is to end.
        const LOOK: Duration = Duration::from_millis(50);
        let at = (Ipv6Addr::UNSPECIFIED, TARGET);
        let (udp, tcp) =
            netns.run(|| (UdpSocket::bind(at).unwrap(), TcpListener::bind(at).unwrap())).unwrap();
        let ending = Arc::new(AtomicBool::new(false));
        udp.set_read_timeout(Some(LOOK)).unwrap();
        let ends = Arc::clone(&ending);
        let datagrams = std::thread::spawn(move || {
            let mut room = vec![0; 1 << 16];
            while !ends.load(Ordering::Relaxed) {
                if let Ok((n, from)) = udp.recv_from(&mut room) {
                    // Whoever it is for may be unreachable, in an attack.
                    _ = udp.send_to(&room[..n], from);
                }
            }
        });
        let ends = Arc::clone(&ending);
        let streams = std::thread::spawn(move || {
            for stream in tcp.incoming() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                std::thread::spawn(move || {
                    let mut room = vec![0; 1 << 16];
                    while let Ok(n @ 1..) = stream.read(&mut room) {
                        if stream.write_all(&room[..n]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        drop(streams);
        Self { ending, threads: vec![datagrams] }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It has panicked, and said so.
            _ = thread.join();
        }
    }
}
