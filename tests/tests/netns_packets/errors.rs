//! What routers on the way tell reaches who must know it, about the packet that he sent.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;

use sandbox::wait;

use crate::scene::{SOON, Scene, datagram_round_trip, ip, of, tcp, udp};
use crate::wire::{Ear, Wire};

/// The MTU of the way from the proxy's node to the other one's pods.
const NARROW: u32 = 1300;

/// Makes the way to the other node's pods narrow.
fn narrow(scene: &Scene) {
    let via = scene.far.addresses().both();
    for (cidr, via) in scene.far.pod_cidrs().iter().zip(via) {
        ip(scene.proxied.node(), &format!("route replace {cidr} via {via} dev eth0 mtu {NARROW}"));
    }
}

#[test]
fn a_path_mtu_is_found_through_node_ports_and_cluster_ips() {
    let scene = Scene::new(&[]);
    narrow(&scene);
    for v6 in [false, true] {
        let client = of(scene.client.addresses().both(), v6);
        let wire = Wire::new(scene.client.netns());
        let ear = Ear::new(scene.client.netns(), v6);
        for to in scene.frontends(true, v6) {
            let from = SocketAddr::new(client, 40_001);
            let say = || wire.say(&format!("udp {from} > {to} len=1400 df"));
            let too_big = if v6 { (2, 0) } else { (3, 4) };
            let heard = ear.hear(say, |heard| heard.kind == too_big && heard.about == Some(to));
            assert_eq!((heard.mtu, heard.from), (NARROW, scene.node(v6)), "about {to}");
            // A TCP connection finds it, or nothing would come back of what does not fit.
            let mut stream = tcp(scene.client.netns(), to).unwrap();
            let mut writer = stream.try_clone().unwrap();
            let sent: Vec<u8> = (0..300_000u32).map(|i| (i * 7).to_le_bytes()[0]).collect();
            let writes = {
                let sent = sent.clone();
                std::thread::spawn(move || writer.write_all(&sent))
            };
            let mut got = vec![0; sent.len()];
            stream.read_exact(&mut got).unwrap_or_else(|error| panic!("by {to}: {error}"));
            assert!(got == sent, "by {to}");
            writes.join().unwrap().unwrap();
        }
    }
}

#[test]
fn a_ping_of_full_size_to_a_cluster_ip_is_answered() {
    let scene = Scene::new(&[]);
    for v6 in [false, true] {
        let client = of(scene.client.addresses().both(), v6);
        let wire = Wire::new(scene.client.netns());
        let ear = Ear::new(scene.client.netns(), v6);
        let reply = if v6 { (129, 0) } else { (0, 0) };
        let (request, fits) = if v6 { ("128/0", 1452) } else { ("8/0", 1472) };
        for to in scene.frontends(false, v6).map(|to| to.ip()) {
            for len in [0, 56, fits] {
                let say = || wire.say(&format!("icmp {client} > {to} {request} len={len} df"));
                ear.hear(say, |heard| heard.kind == reply && heard.from == to);
            }
        }
    }
}

#[test]
fn a_traceroute_shows_the_routers_and_then_the_endpoint() {
    let scene = Scene::new(&[]);
    for v6 in [false, true] {
        let client = of(scene.client.addresses().both(), v6);
        let wire = Wire::new(scene.client.netns());
        let ear = Ear::new(scene.client.netns(), v6);
        let expired = if v6 { (3, 0) } else { (11, 0) };
        for to in scene.frontends(true, v6) {
            let from = SocketAddr::new(client, 40_002);
            for (hops, router) in [(1, scene.node(v6)), (2, of(scene.far.addresses().both(), v6))] {
                let say = || wire.say(&format!("udp {from} > {to} len=20 ttl={hops}"));
                let heard = ear.hear(say, |it| it.kind == expired && it.from == router);
                assert_eq!(heard.about, Some(to), "{hops} hops: what was sent is quoted");
            }
            let socket = udp(scene.client.netns(), v6);
            let arrives = wait::until(SOON, || datagram_round_trip(&socket, to, b"here"));
            assert!(arrives, "three hops to {to}");
        }
    }
}
