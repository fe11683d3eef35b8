//! The modes that the cases are played in, and what cannot be shown with packets, with the reason.

use std::collections::BTreeSet;
use std::env;
use std::net::IpAddr;

use model::name::Family;
use tests::case::Expectation;
use tests::stage;

use crate::layout::Layout;

/// A dataplane under test.
#[derive(Clone, Debug)]
pub(crate) struct Mode {
    /// What its tests are named after.
    pub(crate) name: String,
    /// The backend, as the case files name it.
    pub(crate) backend: String,
    /// What the proxy is told.
    pub(crate) args: Vec<String>,
    /// How pods are connected.
    pub(crate) layout: Layout,
}

/// Name, then what the proxy is told, then how pods are connected.
const MODES: [(&str, &str, Layout); 13] = [
    ("nftables", "--proxy-mode=nftables", Layout::Routed),
    ("iptables-nft", "--proxy-mode=iptables", Layout::Routed),
    (LEGACY, "--proxy-mode=iptables", Layout::Routed),
    ("ebpf", "--proxy-mode=ebpf", Layout::Routed),
    ("ebpf-host", "--proxy-mode=ebpf --socket-lb=host", Layout::Routed),
    ("ebpf-packets", PACKETS, Layout::Routed),
    ("ebpf-packets-clsact", CLSACT, Layout::Routed),
    ("ebpf-bridge", "--proxy-mode=ebpf", Layout::Bridge),
    ("ebpf-packets-bridge", PACKETS, Layout::Bridge),
    ("ebpf-vxlan", "--proxy-mode=ebpf", Layout::Vxlan),
    ("ebpf-packets-vxlan", PACKETS, Layout::Vxlan),
    ("ebpf-masquerade", "--proxy-mode=ebpf", Layout::Masquerade),
    ("ebpf-packets-masquerade", PACKETS, Layout::Masquerade),
];

/// Where the kubelet has left a sign that this node uses the legacy variant of iptables.
const LEGACY: &str = "iptables-legacy";

const PACKETS: &str = "--proxy-mode=ebpf --socket-lb=off";

/// As on kernels before 6.6.
const CLSACT: &str = "--proxy-mode=ebpf --socket-lb=off --clsact";

/// What is played however pods are connected, and programs are attached.
const CORE: [&str; 6] = [
    "2.1-cluster-ip.txt",
    "2.1-hairpin.txt",
    "2.1-protocols.txt",
    "2.3-external-traffic-policy.txt",
    "2.5-endpoints-elsewhere.txt",
    "2.6-no-endpoints.txt",
];

/// What cannot be shown: file, source, destination (each may be empty: any), and why.
const UNSHOWN: [(&str, &str, &str, &str); 2] = [
    (
        "2.16-external-ips.txt",
        "client",
        "224.0.0.1:80",
        "no TCP socket connects to a multicast address",
    ),
    (
        "2.10-detect-local-families.txt",
        "10.244.2.1",
        "",
        "the address is another node's as well, which takes no packet from it",
    ),
];

/// All modes, or the one that `CASE_MODE` tells of.
pub(crate) fn modes() -> Vec<Mode> {
    match env::var("CASE_MODE") {
        Ok(text) => {
            let (name, args) = text.split_once('=').expect("CASE_MODE is NAME=ARGUMENTS");
            vec![Mode::new(name, args, Layout::Routed)]
        }
        Err(_) => MODES.iter().map(|(name, args, layout)| Mode::new(name, args, *layout)).collect(),
    }
}

impl Mode {
    fn new(name: &str, args: &str, layout: Layout) -> Self {
        let args: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
        let backend = args.iter().find_map(|arg| arg.strip_prefix("--proxy-mode="));
        let backend = backend.expect("a mode names its --proxy-mode").to_owned();
        Self { name: name.to_owned(), backend, args, layout }
    }

    /// Whether a file is played in this mode; with `CASE_CORE` in the environment the core alone.
    pub(crate) fn plays(&self, file: &str) -> bool {
        let is_plain =
            self.layout == Layout::Routed && !self.args.iter().any(|it| it == "--clsact");
        is_plain && env::var_os("CASE_CORE").is_none() || CORE.contains(&file)
    }

    /// Whether a file is left to the command that takes its time: the modes of iptables play the
    /// core whenever anything changes.
    pub(crate) fn is_long(&self, file: &str) -> bool {
        self.backend == "iptables" && !CORE.contains(&file)
    }

    /// Whether the node shows that it uses the legacy variant of iptables.
    pub(crate) fn is_legacy(&self) -> bool {
        self.name == LEGACY
    }

    /// Whether the node's own sockets are translated.
    pub(crate) fn at_sockets(&self) -> bool {
        self.backend == "ebpf" && !self.args.iter().any(|arg| arg == "--socket-lb=off")
    }

    /// What a node sends to its own addresses passes loopback, where packets cannot be translated:
    /// their answers would come from an address of the node, which the kernel takes for forged.
    fn has_no_path(&self, expectation: &Expectation, host: &BTreeSet<IpAddr>) -> bool {
        let to = expectation.to.ip();
        let is_own = |address: IpAddr| {
            address.is_loopback()
                || stage::address("node", Family::of(&to)) == Some(address)
                || host.contains(&address)
        };
        // A source that nobody has is given to the node.
        let is_itself = expectation.from.parse() == Ok(to);
        let from_own = is_itself
            || matches!(&*expectation.from, "node" | "localhost")
            || expectation.from.parse().is_ok_and(is_own);
        let to_own = is_itself || is_own(to);
        self.backend == "ebpf" && !self.at_sockets() && from_own && to_own
    }
}

/// Why an expectation cannot be shown with packets; `None` if it can.
pub(crate) fn unshown(
    mode: &Mode,
    file: &str,
    expectation: &Expectation,
    host: &BTreeSet<IpAddr>,
) -> Option<&'static str> {
    if mode.has_no_path(expectation, host) {
        return Some("without the socket path nothing leads from a node to itself");
    }
    let to = expectation.to.to_string();
    let (_, _, _, reason) = UNSHOWN.iter().find(|(in_file, from, at, _)| {
        *in_file == file
            && (from.is_empty() || *from == expectation.from)
            && (at.is_empty() || *at == to)
    })?;
    Some(reason)
}
