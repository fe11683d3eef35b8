//! A pod that reaches itself through its own Service: masqueraded, and no more often than others.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener, UdpSocket};
use std::thread;

use abi::counter::Counter;
use sandbox::manifest::Endpoint;
use sandbox::traffic::Protocol;
use sandbox::{Pod, hello};
use tests::cluster::{Cluster, Node};

/// Lets a pod answer its name and the address of whoever asks.
fn tell_who_asks(pod: &Pod) {
    let at = (Ipv6Addr::UNSPECIFIED, hello::PORT);
    let sockets = || (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap());
    let (tcp, udp) = pod.netns().run(sockets).unwrap();
    let name = pod.name().to_owned();
    let answer = move |peer: IpAddr| format!("{name} {}\n", peer.to_canonical());
    let answer_udp = answer.clone();
    // They end with the test.
    thread::spawn(move || {
        loop {
            let (stream, peer) = tcp.accept().unwrap();
            let mut line = String::new();
            // A client that gives up is one that its tally counts as failed.
            if BufReader::new(&stream).read_line(&mut line).is_ok() {
                _ = (&stream).write_all(answer(peer.ip()).as_bytes());
            }
        }
    });
    thread::spawn(move || {
        loop {
            let (_, peer) = udp.recv_from(&mut [0; 64]).unwrap();
            udp.send_to(answer_udp(peer.ip()).as_bytes(), peer).unwrap();
        }
    });
}

fn n_left_to_packets(node: &Node) -> u64 {
    let counters = load::pinned::Pinned::under(node.bpffs()).counters().unwrap();
    counters.into_iter().find(|(counter, _)| *counter == Counter::LeftToPackets).unwrap().1
}

#[test]
fn a_pod_that_reaches_itself_hears_the_node_and_is_met_as_often_as_others() {
    const N: u32 = 400;
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let [one, two, client] = ["one", "two", "client"].map(|name| node.pod(name));
    tell_who_asks(&one);
    tell_who_asks(&two);
    let service = cluster.service("web", &[]);
    cluster.set_endpoints(&service, &[Endpoint::of(&one), Endpoint::of(&two)]);
    node.start_proxy();
    for target in service.ways() {
        let own: IpAddr = match target.ip().to_canonical() {
            IpAddr::V4(_) => one.addresses().v4.into(),
            IpAddr::V6(_) => one.addresses().v6.into(),
        };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let tally = cluster.send(&one, protocol, target, N);
            let place = format!("{protocol} to {target}: {tally:?}");
            assert_eq!(tally.failed, 0, "{place}");
            let of = |name: &str| {
                let answers = tally.answers.iter();
                answers.filter(|(answer, _)| answer.starts_with(name)).collect::<Vec<_>>()
            };
            let itself: u64 = of("one ").iter().map(|(_, n)| **n).sum();
            assert!(of("one ").iter().all(|(answer, _)| !answer.ends_with(&format!(" {own}"))));
            assert!(of("two ").iter().all(|(answer, _)| answer.ends_with(&format!(" {own}"))));
            // Six deviations of four hundred tosses.
            assert!((140..=260).contains(&itself), "met itself {itself} times: {place}");
        }
    }
    let before = n_left_to_packets(&node);
    assert!(before > 0);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        assert_eq!(cluster.send(&client, protocol, service.v4(), 50).failed, 0);
    }
    assert_eq!(n_left_to_packets(&node), before, "one that serves nothing is led at its socket");
}
