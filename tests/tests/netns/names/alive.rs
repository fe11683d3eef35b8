//! A node's own server, and what clients notice of its end.

use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use sandbox::{Launch, Pod, Process};
use tests::cluster::{Cluster, Node, Service, eventually, other_ebpf_object};
use tests::crowd::Crowd;

use super::{CLUSTER_DNS, CLUSTER_DNS_V6, kube_dns, shell, start};

/// Where a node asks itself.
pub(super) const LINK_LOCAL: &str = "169.254.20.53";
pub(super) const LINK_LOCAL_V6: &str = "fd00:20::53";
/// Both.
const OWN: [&str; 4] = ["--link-local", LINK_LOCAL, "--link-local", LINK_LOCAL_V6];
/// The name of whoever answers leads to where it listens.
const WHO: &str = "ns.dns.cluster.local";
pub(super) const HERE: &str = "the server of the pod's node";
pub(super) const THERE: &str = "the other one";

/// Two nodes that answer names, both behind the kube-dns Service, and a pod on the second.
pub(super) struct Pair {
    pub(super) cluster: Cluster,
    there: Node,
    pub(super) here: Node,
    pod: Pod,
    web: Service,
    resolv_conf: PathBuf,
}

impl Pair {
    pub(super) fn new(more: &[&str]) -> Self {
        let cluster = Cluster::new();
        let mut there = cluster.node("node-a");
        // Whoever else is busy on this machine is not what is measured; processes inherit it.
        let me = nix::unistd::gettid().to_string();
        let renice = there.node().command("renice").args(["-n", "-15", "-p", &me]);
        assert!(renice.output().unwrap().status.success(), "priorities can be set");
        let mut here = cluster.node("node-b");
        let pod = here.pod("client");
        cluster.folder().write("kube-dns", &kube_dns(&[&there, &here])).unwrap();
        let web = cluster.service("web", &[]);
        start(&mut there, &[]);
        start(&mut here, &[&OWN, more].concat());
        let resolv_conf = cluster.dir().join("resolv.conf");
        let search = "default.svc.cluster.local svc.cluster.local cluster.local";
        let text = format!("nameserver {CLUSTER_DNS}\nsearch {search}\noptions ndots:5\n");
        fs::write(&resolv_conf, text).unwrap();
        let pair = Self { cluster, there, here, pod, web, resolv_conf };
        pair.is_led();
        pair
    }

    pub(super) fn start(&mut self, more: &[&str]) {
        start(&mut self.here, &[&OWN, more].concat());
        self.is_led();
    }

    /// Waits until the pod's questions are answered on its node.
    fn is_led(&self) {
        eventually("the node's own server is asked", || {
            self.who(CLUSTER_DNS, "A") == HERE && self.who(CLUSTER_DNS_V6, "AAAA") == HERE
        });
    }

    /// Who answers the pod.
    pub(super) fn who(&self, server: &str, more: &str) -> String {
        let words = [&*format!("@{server}"), "+short", "+tries=1", WHO];
        let dig = self.pod.command("dig").args(words).args(more.split_whitespace());
        let output = dig.output().unwrap();
        let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let there = self.there.node().addresses().both().map(|ip| ip.to_string());
        if answer.lines().any(|line| OWN.contains(&line)) {
            HERE.to_owned()
        } else if there.contains(&answer) {
            THERE.to_owned()
        } else {
            answer
        }
    }

    /// Clients in the pod, or on the node itself.
    fn crowd(&self, launch: Launch, server: &str, rate: u32) -> Process {
        let address =
            if server == CLUSTER_DNS { self.web.v4() } else { self.web.v6() }.ip().to_string();
        let server = SocketAddr::new(server.parse().unwrap(), 53).to_string();
        let args = [&*server, "web.default.svc.cluster.local", &address, &rate.to_string()];
        launch.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    /// A shell that goes on asking through the C library.
    fn asking(&self, unshare: Launch, log: &str) -> (Process, PathBuf) {
        let log = self.cluster.dir().join(log);
        let words = format!(
            "while read -r begin _ < /proc/uptime; do
                 getent ahostsv4 web || {{ code=$?; read -r end _ < /proc/uptime
                     echo \"failed with $code, asked from $begin to $end\"; }}
             done >> {}",
            log.display()
        );
        (shell(unshare, &self.resolv_conf, &words).spawn().unwrap(), log)
    }
}

fn lines(log: &PathBuf) -> usize {
    fs::read_to_string(log).unwrap_or_default().lines().count()
}

/// What became of all questions.
#[expect(clippy::panic, reason = "a test fails loudly")]
fn told(mut crowd: Process) -> Crowd {
    let mut text = String::new();
    drop(crowd.stdin());
    crowd.stdout().unwrap().read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

const CROWD: &str = env!("CARGO_BIN_EXE_names-client");
/// Questions a second, of a pod.
const RATE: u32 = 5000;

#[test]
fn everybody_is_answered_while_a_server_is_restarted_upgraded_and_killed() {
    restarted_upgraded_and_killed();
}

mod long {
    use super::restarted_upgraded_and_killed;

    /// On a machine that does nothing else.
    #[test]
    fn everybody_is_answered_within_300_ms_while_a_server_is_restarted_upgraded_and_killed() {
        for crowd in restarted_upgraded_and_killed() {
            println!("{crowd:?}");
            assert_eq!(crowd.late, 0, "{crowd:?}");
        }
    }
}

/// Restart, upgrade and kill under load: nobody is refused, nobody hears of a name that exists that it
/// does not.
fn restarted_upgraded_and_killed() -> [Crowd; 2] {
    let mut pair = Pair::new(&[]);
    let crowds = [
        pair.crowd(pair.pod.command(CROWD), CLUSTER_DNS, RATE - 1000),
        pair.crowd(pair.pod.command(CROWD), CLUSTER_DNS_V6, 1000),
    ];
    let (mut in_pod, log) = pair.asking(pair.pod.command("unshare"), "in-pod");
    let (mut on_node, other_log) = pair.asking(pair.here.node().command("unshare"), "on-node");
    let object = other_ebpf_object();
    let upgraded = ["--ebpf-object", &object];
    let mut ends = String::new();
    let goes_on = || {
        let before = [&log, &other_log].map(lines);
        eventually("names are asked for", || {
            let now = [&log, &other_log].map(lines);
            now[0] > before[0] + 20 && now[1] > before[1] + 20
        });
    };
    for (orderly, more) in [(true, &[][..]), (true, &upgraded), (false, &[]), (false, &upgraded)] {
        goes_on();
        ends += &fs::read_to_string("/proc/uptime").unwrap();
        if orderly {
            pair.here.stop_proxy();
        } else {
            pair.here.kill_proxy();
        }
        for _ in 0..10 {
            assert_eq!(pair.who(CLUSTER_DNS, "A"), THERE, "at once");
        }
        pair.start(more);
    }
    goes_on();
    let crowds = crowds.map(told);
    for crowd in &crowds {
        assert_eq!(crowd.answers.keys().collect::<Vec<_>>(), ["right"], "{crowd:?}");
        assert_eq!(crowd.refused, 0, "{crowd:?}");
    }
    // A question that was lost with the server is asked again after five seconds.
    in_pod.kill().unwrap();
    on_node.kill().unwrap();
    let ip = pair.web.v4().ip().to_string();
    for log in [&log, &other_log] {
        let answers = fs::read_to_string(log).unwrap();
        let other: Vec<&str> = answers.lines().filter(|line| !line.contains(&ip)).collect();
        let n = answers.lines().count();
        assert_eq!(other, Vec::<&str>::new(), "of {n}; the server was ended at\n{ends}");
    }
    crowds
}

#[test]
fn a_node_answers_itself_while_its_server_lives_and_others_do_once_it_is_dead() {
    let mut pair = Pair::new(&[]);
    let asked = |pair: &Pair| {
        ["", "+tcp"].map(|over| {
            let v4 = pair.who(CLUSTER_DNS, &format!("A {over}"));
            [v4, pair.who(CLUSTER_DNS_V6, &format!("AAAA {over}"))]
        })
    };
    for orderly in [true, false] {
        assert_eq!(asked(&pair), [[HERE; 2]; 2]);
        assert_eq!(pair.who(LINK_LOCAL, "A"), HERE);
        if orderly {
            pair.here.stop_proxy();
        } else {
            pair.here.kill_proxy();
        }
        assert_eq!(asked(&pair), [[THERE; 2]; 2], "at once");
        // A client that knows the address of the server itself finds others behind it, too.
        assert_eq!(pair.who(LINK_LOCAL, "A"), THERE);
        assert_eq!(pair.who(LINK_LOCAL_V6, "AAAA +tcp"), THERE);
        pair.start(&[]);
    }
}

/// What the server at an address says to a question from there, by its code.
fn code(dig: Launch, server: &str, more: &str) -> String {
    let words = [&*format!("@{server}"), "+tries=1", "web.default.svc.cluster.local"];
    let output = dig.args(words).args(more.split_whitespace()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let code = text.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
    code.unwrap_or(&text).to_owned()
}

/// A server that is for its node alone: reached from outside by somebody who finds a way to its
/// address, it refuses, and counts.
#[test]
fn who_is_not_of_the_node_is_refused_and_counted() {
    let cluster = Cluster::new();
    let (stranger, mut here) = (cluster.node("node-a"), cluster.node("node-b"));
    let (pod, other_pod) = (here.pod("client"), stranger.pod("stranger"));
    cluster.folder().write("kube-dns", &kube_dns(&[&here])).unwrap();
    cluster.service("web", &[]);
    here.start_names_with(&[&OWN[..], &["--metrics-address=127.0.0.1:9153"]].concat());
    eventually("its pod is answered", || code(pod.command("dig"), CLUSTER_DNS, "") == "NOERROR");
    let via = here.node().addresses();
    for (address, via) in [(LINK_LOCAL, via.v4.to_string()), (LINK_LOCAL_V6, via.v6.to_string())] {
        let ip = stranger.node().command("ip");
        let output = ip.args(["route", "add", address, "via", &via]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        for over in ["", "+tcp"] {
            let asked = code(stranger.node().command("dig"), address, over);
            assert_eq!(asked, "REFUSED", "{address} {over}");
            assert_eq!(
                code(other_pod.command("dig"), address, over),
                "REFUSED",
                "{address} {over}"
            );
            assert_eq!(code(pod.command("dig"), address, over), "NOERROR", "{address} {over}");
        }
    }
    let page = here.node().command("curl").args(["-s", "http://127.0.0.1:9153/metrics"]);
    let page = String::from_utf8_lossy(&page.output().unwrap().stdout).into_owned();
    assert!(page.contains("fairlead_dns_strangers_total 8"), "{page}");
}

/// What a node was given for its server is taken away again by `cleanup`, and by nothing else.
#[test]
fn cleanup_takes_the_server_s_address_and_rules_away() {
    let mut pair = Pair::new(&[]);
    let has = |pair: &Pair, words: &[&str], what: &str| {
        let (program, args) = words.split_first().unwrap();
        let output = pair.here.node().command(program).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains(what)
    };
    let addresses = ["ip", "address", "show", "dev", "lo"];
    let rules = ["nft", "list", "tables"];
    pair.here.stop_proxy();
    for own in [LINK_LOCAL, LINK_LOCAL_V6] {
        assert!(has(&pair, &addresses, own), "the next process answers there");
    }
    assert!(has(&pair, &rules, "fairlead-dns"));
    let cleaned = pair.here.fairlead().cleanup(pair.here.node(), pair.here.bpffs()).unwrap();
    assert!(cleaned.status.success(), "{cleaned:?}");
    for own in [LINK_LOCAL, LINK_LOCAL_V6] {
        assert!(!has(&pair, &addresses, own));
    }
    assert!(!has(&pair, &rules, "fairlead-dns"));
}

/// Where `NodeLocal DNSCache` serves, nothing is led past it.
#[test]
fn a_node_with_nodelocal_dnscache_is_left_to_it() {
    let cluster = Cluster::new();
    let mut here = cluster.node("node-b");
    let pod = here.pod("client");
    cluster.folder().write("kube-dns", &kube_dns(&[&here])).unwrap();
    cluster.service("web", &[]);
    let ip = here.node().command("ip").args(["link", "add", "nodelocaldns", "type", "bridge"]);
    assert!(ip.output().unwrap().status.success());
    start(&mut here, &OWN);
    let log = here.log();
    assert!(log.contains("NodeLocal DNSCache"), "{log}");
    assert!(log.contains("not led here"), "{log}");
    // It can be asked all the same.
    eventually("it answers", || code(pod.command("dig"), LINK_LOCAL, "") == "NOERROR");
}
