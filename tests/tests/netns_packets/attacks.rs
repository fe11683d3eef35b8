//! What others send to harm: established connections go on, and nothing gets through.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use abi::flow::{SNAT_FIRST, SNAT_MASK};
use packet::checksum::{mended, port_difference, word_difference};
use sandbox::netns::Netns;
use sandbox::{Launch, wait};
use socket2::{Domain, Protocol, Socket, Type};
use tests::packet::frame::frame;

use crate::scene::{SOON, Scene, TARGET, datagram_round_trip, ip, of, round_trip, tcp, udp};
use crate::wire::Wire;

/// More than `NEW_FLOWS` has room for.
const FLOOD: u32 = 80_000;
/// How often established connections are looked after meanwhile.
const LOOK: u32 = 4_000;

/// How `fairlead status` calls what comes from loopback and from elsewhere.
const MARTIAN: &str = " drop_martian";
/// A port that only attackers send from.
const MARK: u16 = 6_666;
/// A port that whoever sends last sends from.
const LAST: u16 = 7_777;

/// Connections of the client's that must not notice.
struct Kept {
    streams: Vec<TcpStream>,
    sockets: Vec<(UdpSocket, SocketAddr)>,
}

impl Kept {
    /// By each frontend of both Services.
    fn new(scene: &Scene, v6: bool) -> Self {
        let frontends = || [false, true].into_iter().flat_map(|far| scene.frontends(far, v6));
        let netns = scene.client.netns();
        let mut kept = Self {
            streams: frontends().map(|to| tcp(netns, to).unwrap()).collect(),
            sockets: frontends().map(|to| (udp(netns, v6), to)).collect(),
        };
        // A flow is kept once its client has shown that it hears the answers.
        kept.go_on();
        kept.go_on();
        kept
    }

    fn go_on(&mut self) {
        for stream in &mut self.streams {
            round_trip(stream).unwrap_or_else(|error| panic!("{stream:?}: {error}"));
        }
        for (socket, to) in &self.sockets {
            // A datagram finds the server's queue full of forged ones where that is slow.
            let served = (0..5).any(|_| datagram_round_trip(socket, *to, b"still"));
            assert!(served, "the flow to {to}");
        }
    }
}

/// Sends a packet again and again, each time from somebody else.
fn flood(scene: &Scene, kept: &mut Kept, text: &str, times: u32) {
    let wire = Wire::new(scene.stranger.netns());
    let template = frame(text)[14..].to_vec();
    for n in 0..FLOOD {
        let packet = forged(&template, n);
        for _ in 0..times {
            wire.send(&packet);
        }
        if n % LOOK == 0 {
            kept.go_on();
        }
    }
    kept.go_on();
}

/// The packet from another address and port; every checksum stays right.
fn forged(template: &[u8], n: u32) -> Vec<u8> {
    let mut packet = template.to_vec();
    let v6 = packet[0] >> 4 == 6;
    let (address, l4) = if v6 { (20, 40) } else { (12, 20) };
    let protocol = packet[if v6 { 6 } else { 9 }];
    let check = l4 + if protocol == 6 { 16 } else { 6 };
    let word =
        |packet: &[u8], at: usize| u32::from_ne_bytes(packet[at..at + 4].try_into().unwrap());
    let half = |packet: &[u8], at: usize| u16::from_ne_bytes([packet[at], packet[at + 1]]);
    let old = (word(&packet, address), half(&packet, l4), half(&packet, check));
    let from = 0xc612_0000 + (n >> 6);
    let port = u16::try_from(1024 + (n & 63)).unwrap();
    packet[address..address + 4].copy_from_slice(&from.to_be_bytes());
    packet[l4..l4 + 2].copy_from_slice(&port.to_be_bytes());
    let addresses = mended(old.2, word_difference(old.0, from.to_be()));
    let new = mended(addresses, port_difference(old.1, port.to_be()));
    packet[check..check + 2].copy_from_slice(&new.to_ne_bytes());
    packet
}

/// Who is forged takes what is sent to him, and says nothing.
fn swallow(scene: &Scene) {
    let via = scene.stranger.addresses();
    for (range, via) in
        [("198.18.0.0/15", via.v4.to_string()), ("2001:db8::/32", via.v6.to_string())]
    {
        ip(scene.proxied.node(), &format!("route add {range} via {via}"));
        ip(&scene.stranger, &format!("route add blackhole {range}"));
    }
}

/// Floods the node port of the near Service.
fn flooded(protocol: &str, words: &str, times: u32) {
    for v6 in [false, true] {
        let scene = Scene::new(&[]);
        swallow(&scene);
        let mut kept = Kept::new(&scene, v6);
        let [_, node_port] = scene.frontends(false, v6);
        let somebody = if v6 { "[2001:db8::1]:1" } else { "198.18.0.1:1" };
        let before = scene.near_pod.packets().unwrap().received;
        flood(&scene, &mut kept, &format!("{protocol} {somebody} > {node_port} {words}"), times);
        let reached = scene.near_pod.packets().unwrap().received - before;
        assert!(reached > u64::from(FLOOD * times / 2), "the pod met only {reached} packets");
        // New ones are served, too.
        let new = || tcp(scene.client.netns(), node_port).and_then(|mut it| round_trip(&mut it));
        assert!(wait::until(SOON, || new().is_ok()), "a new connection to {node_port}");
        let socket = udp(scene.client.netns(), v6);
        let served = wait::until(SOON, || datagram_round_trip(&socket, node_port, b"new"));
        assert!(served, "a new flow to {node_port}");
        kept.go_on();
    }
}

#[test]
fn a_syn_flood_to_a_node_port_leaves_established_service_alone() {
    flooded("tcp", "syn", 1);
}

#[test]
fn spoofed_datagrams_fill_conntrack_and_leave_established_service_alone() {
    flooded("udp", "len=4", 1);
}

/// What established connections have room for is taken by a hundred of them: those that come then are
/// served, but newer ones may displace them, and nobody else.
#[test]
fn a_full_table_of_connections_costs_new_ones_only() {
    let scene = Scene::new(&["--conntrack-max-per-core=1", "--conntrack-min=64"]);
    swallow(&scene);
    let mut kept = Kept::new(&scene, false);
    let [cluster_ip, node_port] = scene.frontends(false, false);
    let more: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = tcp(scene.client.netns(), cluster_ip).unwrap();
            round_trip(&mut stream).unwrap();
            stream
        })
        .collect();
    assert!(counted(&scene, " flows_full") > 0, "the table has room for all of {}", more.len());
    let text = format!("udp 198.18.0.1:1 > {node_port} len=4");
    flood(&scene, &mut kept, &text, 1);
    let new = || tcp(scene.client.netns(), cluster_ip).and_then(|mut it| round_trip(&mut it));
    assert!(wait::until(SOON, || new().is_ok()), "a new connection to {cluster_ip}");
    kept.go_on();
}

/// Sees the source ports of what reaches a namespace.
struct Sniffer(Vec<(UdpSocket, bool)>);

impl Sniffer {
    fn new(netns: &Netns) -> Self {
        let mut sockets = Vec::new();
        for domain in [Domain::IPV4, Domain::IPV6] {
            for protocol in [Protocol::TCP, Protocol::UDP] {
                let open = || Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
                let socket = netns.run(open).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                sockets.push((UdpSocket::from(socket), domain == Domain::IPV6));
            }
        }
        Self(sockets)
    }

    /// Until nothing comes any more.
    fn ports(&self) -> BTreeSet<u16> {
        let mut ports = BTreeSet::new();
        let mut room = [0; 2048];
        for (socket, v6) in &self.0 {
            while let Ok((n, _)) = socket.recv_from(&mut room) {
                let header = if *v6 { 0 } else { usize::from(room[0] & 15) * 4 };
                if let Some([a, b]) = room[..n].get(header..header + 2) {
                    ports.insert(u16::from_be_bytes([*a, *b]));
                }
            }
        }
        ports
    }
}

/// Asserts that what is sent in between reaches none of these namespaces, and that the marked
/// packet that is sent last, which may, does reach the first.
fn nothing_reaches(scene: &Scene, v6: bool, send: impl Fn(&Wire)) {
    let witnesses =
        [scene.near_pod.netns(), scene.far_pod.netns(), scene.client.netns()].map(Sniffer::new);
    scene.acquaint(v6);
    let wire = Wire::new(scene.stranger.netns());
    send(&wire);
    let stranger = of(scene.stranger.addresses().both(), v6);
    let [_, node_port] = scene.frontends(false, v6);
    let [mut near, far, client] = witnesses.each_ref().map(Sniffer::ports);
    let comes = wait::until(SOON, || {
        wire.say(&format!("udp {} > {node_port}", SocketAddr::new(stranger, LAST)));
        near.extend(witnesses[0].ports());
        is_among(LAST, &near)
    });
    assert!(comes, "the sniffer hears nothing: {near:?}");
    for heard in [near, far, client] {
        assert!(!is_among(MARK, &heard), "let through: {heard:?}");
    }
}

/// Whether it is one of the ports, as it was or masqueraded.
fn is_among(port: u16, ports: &BTreeSet<u16>) -> bool {
    ports.contains(&port) || ports.contains(&(SNAT_FIRST | (port & SNAT_MASK)))
}

#[test]
fn packets_that_claim_to_be_from_loopback_get_nowhere() {
    let scene = Scene::new(&[]);
    for v6 in [false, true] {
        let loopback: IpAddr =
            if v6 { [0, 0, 0, 0, 0, 0, 0, 1u16].into() } else { [127, 0, 0, 1].into() };
        let before = counted(&scene, MARTIAN);
        nothing_reaches(&scene, v6, |wire| {
            for to in [false, true].into_iter().flat_map(|is_far| scene.frontends(is_far, v6)) {
                let from = SocketAddr::new(loopback, MARK);
                for packet in ["tcp F > T syn", "tcp F > T ack", "udp F > T"] {
                    let text = packet.replace('F', &from.to_string()).replace('T', &to.to_string());
                    wire.say(&text);
                }
            }
        });
        let met = counted(&scene, MARTIAN) - before;
        assert!(met >= 12, "only {met} packets came as far as to the node");
    }
}

#[test]
fn answers_that_nobody_asked_for_get_nowhere() {
    let scene = Scene::new(&[]);
    for v6 in [false, true] {
        let mut kept = Kept::new(&scene, v6);
        let node = scene.node(v6);
        let stranger = of(scene.stranger.addresses().both(), v6);
        let far_pod = of(scene.far_pod.addresses().both(), v6);
        nothing_reaches(&scene, v6, |wire| {
            // To ports of masqueraded connections, from endpoints and from others.
            for port in (49_152..=u16::MAX).step_by(16) {
                let to = SocketAddr::new(node, port);
                for from in [far_pod, stranger] {
                    let from = SocketAddr::new(from, MARK);
                    wire.say(&format!("tcp {from} > {to} syn-ack"));
                    wire.say(&format!("udp {from} > {to}"));
                }
            }
            // The middle of connections that were never opened.
            for to in [false, true].into_iter().flat_map(|is_far| scene.frontends(is_far, v6)) {
                for flags in ["syn-ack", "ack", "psh-ack len=10", "fin-ack", "rst"] {
                    wire.say(&format!("tcp {} > {to} {flags}", SocketAddr::new(stranger, MARK)));
                }
            }
        });
        kept.go_on();
    }
}

/// A stranger on the link, a pod of the node itself and a pod of another node.
#[test]
fn neither_strangers_nor_pods_of_this_node_or_another_reach_the_nodes_loopback() {
    let scene = Scene::new(&[]);
    let node = scene.proxied.node();
    let own = node.addresses();
    // Without the proxy the kernels would let IPv4 through and in.
    for node in [node, &scene.far] {
        node.netns().set_sysctls(&[("ipv4/conf/all/route_localnet", "1")]).unwrap();
    }
    let pod = scene.proxied.pod("attacker");
    let listen = |address: IpAddr| {
        let socket = node.netns().run(|| UdpSocket::bind((address, TARGET))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket
    };
    let loopbacks: [IpAddr; 2] = [[127, 0, 0, 1].into(), [0, 0, 0, 0, 0, 0, 0, 1u16].into()];
    let listeners = loopbacks.map(listen);
    to_loopback(|| scene.stranger.command("ip"), &own.v4.to_string(), &own.v6.to_string());
    to_loopback(|| scene.far.command("ip"), &own.v4.to_string(), &own.v6.to_string());
    to_loopback(|| pod.command("ip"), "10.244.1.1", "fe80::1");
    to_loopback(|| scene.far_pod.command("ip"), "10.244.2.1", "fe80::1");
    for (attacker, netns) in [
        (scene.stranger.addresses(), scene.stranger.netns()),
        (pod.addresses(), pod.netns()),
        (scene.far_pod.addresses(), scene.far_pod.netns()),
    ] {
        let before = counted(&scene, MARTIAN);
        let wire = Wire::new(netns);
        for loopback in loopbacks {
            let from = SocketAddr::new(of(attacker.both(), loopback.is_ipv6()), MARK);
            let to = SocketAddr::new(loopback, TARGET);
            for _ in 0..5 {
                wire.say(&format!("udp {from} > {to} len=8"));
                wire.say(&format!("tcp {from} > {to} syn"));
            }
        }
        // They came as far as to the node. What is for `::1` any kernel on the way drops itself.
        let met = wait::until(SOON, || counted(&scene, MARTIAN) >= before + 10);
        assert!(
            met,
            "from {attacker:?} only {} came to the node",
            counted(&scene, MARTIAN) - before
        );
    }
    for listener in &listeners {
        let heard = listener.recv_from(&mut [0; 64]);
        assert!(heard.is_err(), "let through: {heard:?}");
    }
}

/// How often something happened on the node.
fn counted(scene: &Scene, what: &str) -> u64 {
    let proxied = &scene.proxied;
    let status = proxied.fairlead().status(proxied.node(), proxied.bpffs()).unwrap();
    let text = String::from_utf8(status.stdout).unwrap();
    let count = text.lines().find_map(|line| line.trim().strip_suffix(what));
    count.map_or(0, |count| count.parse().unwrap())
}

/// Sends what is for loopback addresses to the gateway.
fn to_loopback(ip: impl Fn() -> Launch, via_v4: &str, via_v6: &str) {
    let run = |args: &str| {
        let output = ip().args(args.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {args}: {output:?}");
    };
    for (family, range, via) in [("-4", "127.0.0.0/8", via_v4), ("-6", "::1", via_v6)] {
        run(&format!("{family} route add default via {via} dev eth0 table 101"));
        run(&format!("{family} rule add pref 10 lookup local"));
        run(&format!("{family} rule del pref 0"));
        run(&format!("{family} rule add pref 5 to {range} lookup 101"));
    }
}
