//! A proxy that reads the companion by its kubeconfig, what kubectl makes of it, and real traffic
//! while the API server stops, starts, forgets and does not answer. Needs root.
#![expect(clippy::unwrap_used, reason = "a test fails loudly")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use sandbox::fairlead::{Client, Fairlead};
use sandbox::manifest::{self, Endpoint, Service};
use sandbox::traffic::Protocol;
use sandbox::{Process, wait};
use tests::cluster::{Cluster, Node, SOON, Web, endpoints, eventually, fairlead, names};

/// A client that failed for long waits for half a minute before it tries again.
const PATIENCE: Duration = Duration::from_secs(90);
/// Requests of each load in each phase.
const N: u64 = 200;

/// An API server on a node, and kubectl beside it.
struct Companion<'n> {
    node: &'n Node,
    dir: PathBuf,
    server: Option<Process>,
}

impl<'n> Companion<'n> {
    fn start(node: &'n Node, cluster: &Cluster) -> Self {
        let mut companion = Self { node, dir: cluster.dir().join("control"), server: None };
        std::fs::create_dir_all(&companion.dir).unwrap();
        companion.begin(&[]);
        companion
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// Serves with the same data at the same place, and returns when kubectl is answered.
    fn begin(&mut self, more: &[&str]) {
        let log = File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        let ranges = ["--service-cluster-ip-range", "10.96.0.0/16,fd00:10:96::/112"];
        let server = self
            .node
            .node()
            .command(fairlead().path())
            .args(["control", "--listen", "127.0.0.1:6443", "--data"])
            .arg(self.dir.join("data"))
            .arg("--kubeconfig-out")
            .arg(self.kubeconfig())
            .args(ranges)
            .args(more)
            .stderr(log)
            .spawn();
        self.server = Some(server.unwrap());
        eventually("kubectl is answered", || self.kubectl(&["get", "namespaces"]).is_ok());
    }

    fn server(&self) -> &Process {
        self.server.as_ref().unwrap()
    }

    fn kill(&mut self) {
        self.server.take().unwrap().kill().unwrap();
    }

    fn kubectl(&self, args: &[&str]) -> Result<String, String> {
        let (_, kubectl) = tests::binary::kubectls().pop().unwrap();
        let command = self.node.node().command(kubectl);
        let command = command.arg("--kubeconfig").arg(self.kubeconfig()).arg("--cache-dir");
        let output = command.arg(self.dir.join("cache")).args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn apply(&self, yaml: &str) {
        let file = self.dir.join("apply.yaml");
        std::fs::write(&file, yaml).unwrap();
        self.kubectl(&["apply", "-f", file.to_str().unwrap()]).unwrap();
    }
}

/// A proxy by kubeconfig; killed when dropped.
fn start_proxy(node: &Node, kubeconfig: &std::path::Path, cluster: &Cluster) -> Process {
    let fairlead: &Fairlead = node.fairlead();
    let proxy = node
        .node()
        .command(fairlead.path())
        .args(["proxy", "--hostname-override", node.node().name(), "--kubeconfig"])
        .arg(kubeconfig)
        .arg("--cgroup")
        .arg(node.node().cgroup())
        .arg("--bpffs")
        .arg(node.bpffs())
        .stderr(File::create(cluster.dir().join("proxy.log")).unwrap())
        .spawn()
        .unwrap();
    let in_sync = || fairlead.is_in_sync(node.node(), node.bpffs()).unwrap();
    let log = || std::fs::read_to_string(cluster.dir().join("proxy.log")).unwrap();
    assert!(wait::until(SOON, in_sync), "the proxy is not in sync:\n{}", log());
    proxy
}

fn service(name: &str, n: u8) -> Service {
    let v6 = std::net::Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, n.into());
    Service::new("default", name)
        .cluster_ip(std::net::Ipv4Addr::new(10, 96, 0, n))
        .cluster_ip(v6)
        .tcp("tcp", 80, sandbox::hello::PORT)
        .udp("udp", 80, sandbox::hello::PORT)
}

/// What sends all the time: to the Service that changes, and to one that nobody touches.
struct Loads {
    changing: Vec<Client>,
    still: Client,
}

impl Loads {
    fn go_on(&self) {
        let all = || self.changing.iter().chain([&self.still]);
        let goals: Vec<u64> = all().map(|load| load.tally().requests + N).collect();
        for (load, goal) in all().zip(goals) {
            eventually("requests are sent and end", || load.tally().requests >= goal);
        }
    }

    /// Waits until these answer, and nobody else.
    fn reach(&self, webs: &BTreeSet<&str>) {
        for load in &self.changing {
            let reached = wait::until(PATIENCE, || {
                let before = load.tally();
                assert!(load.after(50, SOON), "{:?}", load.tally());
                let after = load.tally();
                let grew = |(name, n): (&String, &u64)| before.answers.get(name) != Some(n);
                let now =
                    after.answers.iter().filter(|it| grew(*it)).map(|(name, _)| name.as_str());
                now.collect::<BTreeSet<_>>() == *webs
            });
            assert!(reached, "{webs:?} and no other: {:?}", load.tally());
        }
    }

    fn none_failed(self) {
        for load in self.changing.into_iter().chain([self.still]) {
            let tally = load.finish().unwrap();
            assert_eq!(tally.failures, BTreeMap::new(), "of {} requests", tally.requests);
        }
    }
}

fn routing_goes_on(unreachable_for: Duration) {
    let cluster = Cluster::new();
    let node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2", "web-3"]);
    let pod = node.pod("client");
    let mut companion = Companion::start(&node, &cluster);
    companion.apply(&manifest::node_yaml(node.node()));
    let (changing, still) = (service("changing", 10), service("still", 11));
    let yaml = |service: &Service, webs: &[Endpoint]| {
        format!("{}---\n{}", service.yaml(), service.slices_yaml(webs))
    };
    let put = |companion: &Companion<'_>, webs: &[Endpoint]| {
        companion.apply(&changing.slices_yaml(webs));
    };
    companion.apply(&yaml(&changing, &endpoints(&webs)));
    companion.apply(&yaml(&still, &endpoints(&webs)));
    let proxy = start_proxy(&node, &companion.kubeconfig(), &cluster);
    let send = |protocol, n| {
        cluster.load(&pod, protocol, (std::net::Ipv4Addr::new(10, 96, 0, n), 80).into())
    };
    let loads = Loads {
        changing: vec![send(Protocol::Tcp, 10), send(Protocol::Udp, 10)],
        still: send(Protocol::Http, 11),
    };
    let upto = |n: usize| webs.get(..n).unwrap();
    let (all, two, one) = (upto(3), upto(2), upto(1));
    let of = |webs: &'_ [Web]| endpoints(webs);
    loads.reach(&names(all));

    // Stopped, and started again.
    companion.kill();
    loads.go_on();
    companion.begin(&[]);
    put(&companion, &of(two));
    loads.reach(&names(two));

    // There, and silent.
    companion.server().freeze().unwrap();
    let requests = loads.still.tally().requests;
    let goal = requests + u64::from(tests::cluster::RATE) * unreachable_for.as_secs();
    let sent = wait::until(unreachable_for * 3, || loads.still.tally().requests >= goal);
    assert!(sent, "{:?}", loads.still.tally());
    companion.server().thaw().unwrap();
    put(&companion, &of(all));
    loads.reach(&names(all));

    // It has forgotten what happened since the proxy last heard of it.
    companion.kill();
    proxy.freeze().unwrap();
    companion.begin(&["--history", "0", "--history-size", "0"]);
    let many: String = (0..400).map(|n| format!("---\n{}", other_service(n))).collect();
    companion.apply(&many);
    companion.kubectl(&["delete", "services", "-l", "churn=yes", "--wait=false"]).unwrap();
    put(&companion, &of(one));
    proxy.thaw().unwrap();
    loads.reach(&names(one));
    loads.go_on();
    loads.none_failed();
    drop(proxy);
}

fn other_service(n: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: other-{n}, labels: {{churn: 'yes'}}}}\n\
         spec: {{clusterIP: None, ports: [{{port: 80}}]}}\n"
    )
}

#[test]
fn routing_goes_on_whatever_becomes_of_the_api_server() {
    routing_goes_on(Duration::from_secs(5));
}

mod long {
    use std::time::Duration;

    #[test]
    fn routing_goes_on_while_the_api_server_is_unreachable_for_a_minute() {
        super::routing_goes_on(Duration::from_secs(60));
    }
}
