//! Names as stock clients ask for them, from inside pods whose resolv.conf is that of `ClusterFirst`.

#[path = "names/alive.rs"]
mod alive;
#[path = "names/packets.rs"]
mod packets;

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Output,
};

use sandbox::{Launch, Pod, traffic::Protocol};
use tests::cluster::{Cluster, Node, Web, eventually};

/// Where the pods send their questions: the cluster IP of kube-system/kube-dns.
const CLUSTER_DNS: &str = "10.96.0.10";
/// The same over IPv6.
const CLUSTER_DNS_V6: &str = "fd00:10:96::a";

/// A node that answers names behind the kube-dns Service, and a pod that asks.
struct Stage {
    cluster: Cluster,
    node: Node,
    client: Pod,
    resolv_conf: PathBuf,
}

impl Stage {
    fn new() -> Self {
        let cluster = Cluster::new();
        let mut node = cluster.node("node-a");
        let client = node.pod("client");
        cluster.folder().write("kube-dns", &kube_dns(&[&node])).unwrap();
        start(&mut node, &[]);
        let resolv_conf = cluster.dir().join("resolv.conf");
        let text = format!(
            "nameserver {CLUSTER_DNS}\nsearch default.svc.cluster.local svc.cluster.local \
             cluster.local\noptions ndots:5\n"
        );
        fs::write(&resolv_conf, text).unwrap();
        Self { cluster, node, client, resolv_conf }
    }

    /// Runs a shell's words in the pod, with its own resolv.conf.
    fn run(&self, words: &str) -> Output {
        shell(self.client.command("unshare"), &self.resolv_conf, words).output().unwrap()
    }

    /// A program of twenty lines of C that asks through musl's `getaddrinfo`.
    fn musl_program(&self) -> String {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/netns/names/ask.c");
        let program = self.cluster.dir().join("ask");
        let launch = self.client.command("musl-gcc").args(["-static", "-o"]);
        let output = launch.arg(&program).arg(source).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "musl-gcc, of Debian's musl-tools: {errors}");
        program.to_str().unwrap().to_owned()
    }

    /// What they print, when they succeed.
    fn says(&self, words: &str) -> String {
        let output = self.run(words);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words}: {}\n{text}{errors}", output.status);
        text
    }
}

/// A shell's words with a resolv.conf of their own.
fn shell(unshare: Launch, resolv_conf: &Path, words: &str) -> Launch {
    let script = format!("mount --bind \"$0\" /etc/resolv.conf && {words}");
    unshare.args(["--mount", "sh", "-c", &script]).arg(resolv_conf)
}

/// The Service of the cluster's DNS, in both families, served by these nodes.
fn kube_dns(nodes: &[&Node]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: kube-dns, namespace: kube-system}}\n\
         spec:\n  clusterIP: {CLUSTER_DNS}\n  clusterIPs: [{CLUSTER_DNS}, '{CLUSTER_DNS_V6}']\n\
         \x20 ipFamilies: [IPv4, IPv6]\n  ports:\n\
         \x20 - {{name: dns, port: 53, protocol: UDP}}\n  - {{name: dns-tcp, port: 53, protocol: TCP}}\n"
    );
    for (idx, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: \
             kube-dns-{idx}, namespace: kube-system, labels: {{kubernetes.io/service-name: \
             kube-dns}}}}\naddressType: {family}\nports:\n- {{name: dns, port: 53, protocol: UDP}}\n\
             - {{name: dns-tcp, port: 53, protocol: TCP}}\nendpoints:\n"
        );
        for node in nodes {
            let (both, name) = (node.node().addresses().both(), node.node().name());
            let address = both.get(idx).unwrap();
            text += &format!(
                "- {{addresses: ['{address}'], conditions: {{ready: true}}, nodeName: {name}}}\n"
            );
        }
    }
    text
}

/// Where a node's server listens for everybody.
fn listen(node: &Node) -> Vec<String> {
    let address = |ip: IpAddr| format!("--listen={}", std::net::SocketAddr::new(ip, 53));
    node.node().addresses().both().map(address).into()
}

/// Starts a node that answers names, with more arguments.
fn start(node: &mut Node, more: &[&str]) {
    let listen = listen(node);
    let args: Vec<&str> = listen.iter().map(String::as_str).chain(more.iter().copied()).collect();
    node.start_names_with(&args);
}

/// A headless Service of a `StatefulSet` with so many pods, `db-0` and on, at 10.250.0.1 and on.
fn stateful(n: u8) -> String {
    let endpoints: String = (0..n)
        .map(|idx| {
            format!(
                "- {{addresses: [10.250.0.{}], hostname: db-{idx}, conditions: {{}}}}\n",
                idx + 1
            )
        })
        .collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: db, namespace: default}}\n\
         spec: {{clusterIP: None, ports: [{{name: pg, port: 5432}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: db-1, \
         namespace: default, labels: {{kubernetes.io/service-name: db}}}}\n\
         addressType: IPv4\nports: [{{name: pg, port: 5432}}]\nendpoints:\n{endpoints}"
    )
}

#[test]
fn stock_clients_resolve_short_names_whole_names_and_pods() {
    let stage = Stage::new();
    let webs: Vec<Web> = stage.node.webs(["web-1"]);
    let web = stage.cluster.service("web", &webs);
    stage.cluster.folder().write("db", &stateful(80)).unwrap();
    let (v4, v6) = (web.v4().ip().to_string(), web.v6().ip().to_string());
    eventually("the names are told", || {
        stage.says("dig +short db-79.db.default.svc.cluster.local").contains("10.250.0.80")
    });

    // dig does not search unless told.
    let whole = "web.default.svc.cluster.local";
    assert_eq!(stage.says(&format!("dig +short {whole}")).trim(), v4);
    assert_eq!(stage.says(&format!("dig +short {whole} AAAA")).trim(), v6);
    assert_eq!(stage.says("dig +short +search web").trim(), v4);
    let srv = stage.says(&format!("dig +short _tcp._tcp.{whole} SRV"));
    assert_eq!(srv.trim(), format!("0 50 80 {whole}."), "one of two addresses");
    let reverse = stage.says(&format!("dig +short -x {v4}"));
    assert_eq!(reverse.trim(), format!("{whole}."));

    // 80 addresses do not fit a datagram: dig and the libraries come back over TCP.
    let plain = stage.says("dig +noedns db.default.svc.cluster.local");
    assert!(plain.contains("Truncated, retrying in TCP mode"), "{plain}");
    assert!(plain.contains("ANSWER: 80"), "{plain}");

    // glibc: short, less short, whole with and without its dot, and a pod of the StatefulSet.
    for name in ["web", "web.default", "web.default.svc", whole, &format!("{whole}.")] {
        let hosts = stage.says(&format!("getent ahosts {name}"));
        assert!(hosts.contains(&v4) && hosts.contains(&v6), "{name}: {hosts}");
    }
    assert!(stage.says("getent ahostsv4 db-7.db").contains("10.250.0.8 "));
    let all = stage.says("getent ahostsv4 db");
    let streams = all.lines().filter(|line| line.contains("STREAM")).count();
    assert_eq!(streams, 80, "{all}");
    assert_eq!(stage.run("getent hosts nobody").status.code(), Some(2), "it does not exist");

    // musl, whose versions before 1.2.4 do not come back over TCP and take what has arrived.
    let ask = stage.musl_program();
    for name in ["web", "web.default", whole] {
        let hosts = stage.says(&format!("{ask} {name}"));
        assert!(hosts.contains(&v4) && hosts.contains(&v6), "{name}: {hosts}");
    }
    assert_eq!(stage.says(&format!("{ask} db-7.db")).trim(), "10.250.0.8");
    assert!(stage.says(&format!("{ask} db")).lines().count() >= 28);
    assert!(!stage.run(&format!("{ask} nobody")).status.success());

    // nslookup searches by itself.
    assert!(stage.says("nslookup web").contains(&format!("Address: {v4}")));
    assert!(stage.says("nslookup db-3.db").contains("Address: 10.250.0.4"));

    // And what is resolved is served.
    let tally = stage.cluster.send(&stage.client, Protocol::Http, web.v4(), 20);
    assert_eq!(tally.answers.keys().collect::<Vec<_>>(), ["web-1"], "{tally:?}");
}

#[test]
fn an_init_container_waits_for_a_service_that_appears() {
    let stage = Stage::new();
    let log = stage.cluster.dir().join("waiting");
    let script = format!(
        "mount --bind {} /etc/resolv.conf; until nslookup web >> {} 2>&1; do :; done",
        stage.resolv_conf.display(),
        log.display()
    );
    let mut waiting =
        stage.client.command("unshare").args(["--mount", "sh", "-c", &script]).spawn().unwrap();
    eventually("it asks", || fs::read_to_string(&log).is_ok_and(|log| log.contains("can't find")));
    assert_eq!(waiting.try_wait().unwrap(), None, "it waits");
    let web = stage.cluster.service("web", &[]);
    eventually("it goes on", || waiting.try_wait().unwrap().is_some_and(|it| it.success()));
    let log = fs::read_to_string(&log).unwrap();
    assert!(log.contains(&format!("Address: {}", web.v4().ip())), "{log}");
}
