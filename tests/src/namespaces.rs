//! Many network namespaces by name, as container runtimes make them, with connected UDP sockets in each.
#![expect(clippy::unwrap_used, reason = "a harness fails loudly")]

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::Path;
use std::{fs, process};

use model::name::Protocol;
use proxy::sockets::{Peer, Stale};
use sandbox::link;
use sandbox::netns::Netns;
use sandbox::{Node, Sandbox};

/// Namespaces, which go with this.
#[derive(Debug)]
pub struct Namespaces<'a> {
    node: &'a Node,
    sandbox: &'a Sandbox,
    names: Vec<String>,
}

/// Two sockets in each of many namespaces: the one is to be ended, the other not.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Those that are to be ended.
    pub stale: Stale,
    ends: Vec<[UdpSocket; 2]>,
}

impl<'a> Namespaces<'a> {
    /// Makes so many.
    ///
    /// # Panics
    /// The kernel refuses.
    pub fn create(sandbox: &'a Sandbox, node: &'a Node, n: usize) -> Self {
        let names = (0..n).map(|n| format!("fl-{}-{n}", process::id())).collect();
        let namespaces = Self { node, sandbox, names };
        namespaces.each("add");
        for name in &namespaces.names {
            link::configure(&open(name), async |links| links.set_up("lo", true).await).unwrap();
        }
        namespaces
    }

    /// Opens sockets in all of them.
    ///
    /// # Panics
    /// The kernel refuses.
    pub fn connect(&self) -> Sockets {
        let mut sockets = Sockets { stale: BTreeMap::new(), ends: Vec::new() };
        for name in &self.names {
            let (ended, cookie, namespace) = connected(name);
            let (other, _, _) = connected(name);
            let endpoint = ended.peer_addr().unwrap();
            let peer = Peer { protocol: Protocol::Udp, endpoint };
            sockets.stale.insert(namespace, BTreeMap::from([(cookie, peer)]));
            sockets.ends.push([ended, other]);
        }
        sockets
    }

    fn each(&self, verb: &str) {
        let file = self.sandbox.dir().join("netns.batch");
        let lines: String =
            self.names.iter().map(|name| format!("netns {verb} {name}\n")).collect();
        fs::write(&file, lines).unwrap();
        let output = self.node.command("ip").arg("-batch").arg(&file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for Namespaces<'_> {
    fn drop(&mut self) {
        self.each("del");
    }
}

impl Sockets {
    /// Makes sure that those are ended that were to be, and no others.
    ///
    /// # Panics
    /// They are not.
    pub fn are_ended_where_stale(&self) {
        for [ended, other] in &self.ends {
            ended.send(b"x").unwrap_err();
            other.send(b"x").unwrap();
        }
    }
}

fn open(name: &str) -> Netns {
    Netns::open(&Path::new("/run/netns").join(name)).unwrap()
}

/// A connected UDP socket, its cookie, and its namespace's.
fn connected(name: &str) -> (UdpSocket, u64, u64) {
    let connect = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect("127.0.0.1:9").unwrap();
        (load::socket_cookie(&socket).unwrap(), load::netns_cookie(&socket).unwrap(), socket)
    };
    let (cookie, namespace, socket) = open(name).run(connect).unwrap();
    (socket, cookie, namespace)
}
