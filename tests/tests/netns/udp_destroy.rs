//! How long it takes to end the sockets of a node full of pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::path::Path;
use std::time::Instant;

use proxy::sockets;
use sandbox::link;
use sandbox::netns::Netns;
use tests::cluster::{Cluster, Node};

const N: usize = 1000;

/// Named network namespaces, as container runtimes make them; they go with this.
struct Named<'a> {
    node: &'a Node,
    cluster: &'a Cluster,
    names: Vec<String>,
}

impl<'a> Named<'a> {
    fn create(cluster: &'a Cluster, node: &'a Node) -> Self {
        let names = (0..N).map(|n| format!("fl-{}-{n}", std::process::id())).collect();
        let named = Self { node, cluster, names };
        named.each("add");
        named
    }

    fn each(&self, verb: &str) {
        let file = self.cluster.dir().join("netns.batch");
        let lines: String =
            self.names.iter().map(|name| format!("netns {verb} {name}\n")).collect();
        std::fs::write(&file, lines).unwrap();
        let output = self.node.node().command("ip").args(["-batch"]).arg(&file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for Named<'_> {
    fn drop(&mut self) {
        self.each("del");
    }
}

/// A connected UDP socket, its cookie, and its namespace's.
fn connected(name: &str) -> (UdpSocket, u64, u64) {
    let netns = Netns::open(&Path::new("/run/netns").join(name)).unwrap();
    link::configure(&netns, async |links| links.set_up("lo", true).await).unwrap();
    let open = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect("127.0.0.1:9").unwrap();
        (load::socket_cookie(&socket).unwrap(), load::netns_cookie(&socket).unwrap(), socket)
    };
    let (cookie, namespace, socket) = netns.run(open).unwrap();
    (socket, cookie, namespace)
}

#[test]
fn stale_sockets_of_a_thousand_namespaces_are_ended_and_no_others() {
    let cluster = Cluster::new();
    let node = cluster.node("node-a");
    let named = Named::create(&cluster, &node);
    let mut stale: sockets::Stale = BTreeMap::new();
    let mut ends = Vec::new();
    for name in &named.names {
        let (socket, cookie, namespace) = connected(name);
        let (other, _, _) = connected(name);
        stale.insert(namespace, BTreeSet::from([cookie]));
        ends.push((socket, other));
    }
    let started = Instant::now();
    let n = sockets::destroy(stale);
    println!("{n} sockets in {N} namespaces: {:.0} ms", started.elapsed().as_secs_f64() * 1e3);
    assert_eq!(n, N);
    for (ended, other) in &ends {
        ended.send(b"x").unwrap_err();
        other.send(b"x").unwrap();
    }
}
