//! What passed the packet programs, by Service port and endpoint, and what they turned away.

use std::net::TcpStream;
use std::time::Duration;

use load::pinned::Pinned;
use sandbox::manifest::Service;
use tests::cluster::eventually;

use crate::scene::{PORT, Scene, datagram_round_trip, of, round_trip, tcp, udp};
use crate::wire::Wire;

/// Nobody serves it.
const EMPTY: &str = "10.96.0.20:80";
const NAME: &str = "default/empty:tcp";
/// As long as whoever is refused waits.
const QUICK: Duration = Duration::from_millis(50);

impl Scene {
    fn said(&self, args: &[&str]) -> String {
        let proxied = &self.proxied;
        let command = proxied.node().command(proxied.fairlead().path());
        let bpffs = proxied.bpffs().to_str().unwrap();
        let output = command.args(args).args(["--bpffs", bpffs]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// The first thing that `fairlead monitor` tells.
    fn told_of(&self, act: impl Fn()) -> String {
        std::thread::scope(|scope| {
            let told = scope.spawn(|| self.said(&["monitor", "--count", "1"]));
            eventually("it is told", || {
                act();
                told.is_finished()
            });
            told.join().unwrap()
        })
    }

    /// What `fairlead status` says of a Service port and its endpoint.
    fn served(&self, name: &str) -> Vec<String> {
        let status = self.said(&["status", "--services"]);
        let mut lines = status.lines().skip_while(|line| !line.starts_with(name));
        lines.by_ref().take(2).map(str::to_owned).collect()
    }
}

#[test]
fn packets_are_counted_by_service_and_endpoint_while_a_connection_lasts_and_after() {
    let scene = Scene::new(&["--conntrack-udp-timeout=1s", "--conntrack-udp-timeout-stream=1s"]);
    let netns = scene.client.netns();
    let pod = of(scene.near_pod.addresses().both(), false);
    let [cluster_ip, node_port] = scene.frontends(false, false);
    let mut stream = tcp(netns, cluster_ip).unwrap();
    round_trip(&mut stream).unwrap();
    let [service, endpoint] = scene.served("default/near:tcp").try_into().unwrap();
    // The handshake has three, and a byte there and back is acknowledged or not.
    let n_packets = |line: &str| {
        let (_, rest) = line.split_once(" 1 connections, ").unwrap();
        rest.split_once(" packets, ").unwrap().0.parse::<u64>().unwrap()
    };
    assert!((5..=7).contains(&n_packets(&service)), "{service}");
    assert!((5..=7).contains(&n_packets(&endpoint)), "{endpoint}");
    assert!(endpoint.contains(&pod.to_string()), "{endpoint}");

    let socket = udp(netns, false);
    for _ in 0..5 {
        assert!(datagram_round_trip(&socket, node_port, b"four"));
    }
    let served = scene.served("default/near:udp");
    let counted = "1 connections, 10 packets, 320 bytes";
    assert!(served.iter().all(|line| line.ends_with(counted)), "{served:?}");
    let pinned = Pinned::under(scene.proxied.bpffs());
    eventually("the flow ends", || pinned.flows().len() == 1);
    assert_eq!(scene.served("default/near:udp"), served, "and is still counted");
}

#[test]
fn packets_that_are_refused_or_dropped_are_counted_and_told() {
    let scene = Scene::new(&[]);
    let empty = Service::new("default", "empty").cluster_ip([10, 96, 0, 20]).tcp("tcp", PORT, PORT);
    scene.cluster.folder().write_service(&empty, &[]).unwrap();
    let netns = scene.client.netns();
    let empty = EMPTY.parse().unwrap();
    eventually("it is refused", || tcp(netns, empty).is_err() && !scene.served(NAME).is_empty());
    let client = of(scene.client.addresses().both(), false);
    let told = scene.told_of(|| {
        _ = netns.run(|| TcpStream::connect_timeout(&empty, QUICK)).unwrap();
    });
    let refused = format!("→ {EMPTY}/tcp (Service {NAME}): refused, packet_refused");
    assert!(told.contains(&refused) && told.contains(&client.to_string()), "{told}");

    scene.acquaint(false);
    let wire = Wire::new(scene.stranger.netns());
    let [_, node_port] = scene.frontends(false, false);
    let told = scene.told_of(|| wire.say(&format!("udp 127.0.0.1:6666 > {node_port} len=4")));
    let dropped = format!("127.0.0.1:6666 → {node_port}/udp: dropped, drop_martian");
    assert!(told.contains(&dropped), "{told}");
    let counted = scene.served(NAME).swap_remove(0);
    assert!(counted.contains(" refused"), "{counted}");
}
