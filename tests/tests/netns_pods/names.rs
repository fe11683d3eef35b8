//! Names, as stock clients in pods of the companion ask for them.

use std::fmt::Write as _;
use std::path::Path;

use tests::pods::{Cluster, is_ready, kubectl};

const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  clusterIP: None
  selector: {app: db}
  ports: [{name: pg, port: 5432, targetPort: 8080}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: db, image: fairlead/hello}]}
---
apiVersion: v1
kind: Service
metadata: {name: many}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: waiting}
spec:
  initContainers:
  - {name: wait, image: fairlead/client, command: [sh, -c, 'until nslookup late; do :; done']}
  containers: [{name: main, image: fairlead/client}]
";

/// A pod to ask from, with more in its spec.
fn client(name: &str, more: &str, dir: &Path) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  {more}\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    \
         image: fairlead/client\n    volumeMounts: [{{name: dir, mountPath: /musl}}]\n  \
         volumes: [{{name: dir, hostPath: {{path: {}}}}}]\n",
        dir.display()
    )
}

/// Eighty endpoints, more than fit a datagram.
fn eighty() -> String {
    let mut text = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: \
                    many-1, labels: {kubernetes.io/service-name: many}}\naddressType: IPv4\n\
                    ports: [{name: http, port: 80}]\nendpoints:\n"
        .to_owned();
    for n in 1..=80 {
        writeln!(text, "- {{addresses: [10.250.0.{n}]}}").unwrap();
    }
    text
}

/// A program of twenty lines of C that asks through musl's `getaddrinfo`.
fn musl_program(cluster: &Cluster, dir: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/netns/names/ask.c");
    let (program, source) = (dir.join("ask"), source.display().to_string());
    cluster.on_node(&["musl-gcc", "-static", "-o", program.to_str().unwrap(), &source]);
    assert!(program.exists(), "musl-gcc, of Debian's musl-tools");
}

/// What a pod's shell prints.
fn says(cluster: &Cluster, pod: &str, words: &str) -> String {
    let (text, well) = cluster.run_words(&["exec", pod, "--", "sh", "-c", words]);
    assert!(well, "{pod}: {words}: {text}");
    text.trim().to_owned()
}

#[test]
fn pods_resolve_what_the_cluster_has_with_stock_clients() {
    let cluster = Cluster::start("names", kubectl());
    let dir = tempfile::tempdir().unwrap();
    musl_program(&cluster, dir.path());
    cluster.ok("create deployment web --image=fairlead/hello --replicas=2");
    cluster.ok("expose deployment web --port=80 --target-port=8080");
    cluster.apply(&format!("{OBJECTS}{}{}", client("asks", "", dir.path()), eighty()));
    cluster.until_ready("asks");
    for pod in ["db-0", "db-1"] {
        cluster.until_ready(pod);
    }
    let web = cluster.ok("get service web -o jsonpath={.spec.clusterIP}");
    let of_pod = |name: &str| cluster.pod(name)["status"]["podIP"].as_str().unwrap().to_owned();
    let says = |words: &str| says(&cluster, "asks", words);

    // The pod asks the Service of that name, and its node answers.
    let kube_dns = cluster.ok("get service kube-dns -n kube-system -o jsonpath={.spec.clusterIP}");
    let conf = says("cat /etc/resolv.conf");
    assert!(conf.starts_with(&format!("nameserver {kube_dns}\n")), "{conf}");
    assert!(says("dig +short ns.dns.cluster.local").lines().any(|ip| ip == "169.254.20.53"));
    let own = cluster
        .ok("get endpointslices -n kube-system -o jsonpath={.items[*].endpoints[*].addresses[*]}");
    assert!(own.split(' ').any(|ip| ip.starts_with("172.18.0.")), "{own}");

    let whole = "web.default.svc.cluster.local";
    assert_eq!(says(&format!("dig +short {whole}")), web);
    assert_eq!(says("dig +short +search web"), web);
    assert_eq!(says(&format!("dig +short -x {web}")), format!("{whole}."));
    for name in ["web", "web.default", "web.default.svc", whole, &format!("{whole}.")] {
        assert!(says(&format!("getent ahostsv4 {name}")).contains(&web), "{name}");
    }
    for name in ["web", "web.default", whole] {
        assert!(says(&format!("/musl/ask {name}")).contains(&web), "{name}");
    }
    assert!(says("nslookup web").contains(&format!("Address: {web}")));
    assert!(says("getent hosts nobody || echo none").ends_with("none"));

    // Pods of the StatefulSet, by their names.
    for pod in ["db-0", "db-1"] {
        let ip = of_pod(pod);
        assert_eq!(says(&format!("dig +short {pod}.db.default.svc.cluster.local")), ip);
        assert!(says(&format!("getent ahostsv4 {pod}.db")).contains(&ip));
        assert!(says(&format!("/musl/ask {pod}.db")).contains(&ip));
        assert!(says(&format!("nslookup {pod}.db")).contains(&ip));
    }
    let srv = says("dig +short _pg._tcp.db.default.svc.cluster.local SRV");
    for pod in ["db-0", "db-1"] {
        let target = format!("0 50 8080 {pod}.db.default.svc.cluster.local.");
        assert!(srv.lines().any(|line| line == target), "{srv}");
    }

    // Eighty addresses do not fit a datagram: dig and glibc come back over TCP.
    let plain = says("dig +noedns many.default.svc.cluster.local");
    assert!(plain.contains("Truncated, retrying in TCP mode"), "{plain}");
    assert!(plain.contains("ANSWER: 80"), "{plain}");
    assert_eq!(says("getent ahostsv4 many | grep -c STREAM"), "80");

    // What is resolved is served.
    let pods = cluster.ok("get pods -l app=web -o name");
    let answer = says("curl -s -m 5 http://web/");
    assert!(pods.contains(&answer) && !answer.is_empty(), "{answer}: {pods}");

    // An init container that waits for a Service goes on when it appears.
    cluster.until("it asks", |c| {
        c.run("logs waiting -c wait").0.contains("can't find late").then_some(())
    });
    assert!(!is_ready(&cluster.pod("waiting")), "it waits");
    cluster.ok("create service clusterip late --tcp=80");
    cluster.until_ready("waiting");
    let late = cluster.ok("get service late -o jsonpath={.spec.clusterIP}");
    assert!(cluster.ok("logs waiting -c wait").contains(&format!("Address: {late}")));
}

#[test]
fn each_dns_policy_gives_its_resolv_conf() {
    let cluster = Cluster::start("policy", kubectl());
    let dir = tempfile::tempdir().unwrap();
    cluster.ok("create service clusterip web --tcp=80");
    let config = "dnsConfig: {nameservers: [192.0.2.7], searches: [own.example], \
                  options: [{name: ndots, value: '2'}]}";
    let own = format!("{config}\n  dnsPolicy: None");
    let pods = [
        ("first", ""),
        ("host-net", "hostNetwork: true"),
        ("with-host-net", "hostNetwork: true\n  dnsPolicy: ClusterFirstWithHostNet"),
        ("default", "dnsPolicy: Default"),
        ("none", &own),
        ("more", config),
    ];
    let text: String = pods.iter().map(|(name, more)| client(name, more, dir.path())).collect();
    cluster.apply(&text);
    for (name, _) in pods {
        cluster.until_ready(name);
    }
    let server = cluster.ok("get service kube-dns -n kube-system -o jsonpath={.spec.clusterIP}");
    let conf = |pod: &str| says(&cluster, pod, "cat /etc/resolv.conf");
    let search = "search default.svc.cluster.local svc.cluster.local cluster.local";
    for pod in ["first", "with-host-net"] {
        let conf = conf(pod);
        assert!(conf.starts_with(&format!("nameserver {server}\n")), "{pod}: {conf}");
        assert!(conf.contains(search) && conf.ends_with("options ndots:5"), "{pod}: {conf}");
        // It works, in a pod's network and in the node's.
        let web = cluster.ok("get service web -o jsonpath={.spec.clusterIP}");
        assert!(says(&cluster, pod, "getent ahostsv4 web").contains(&web), "{pod}");
    }
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap();
    for pod in ["host-net", "default"] {
        let conf = conf(pod);
        assert!(!conf.contains(&server), "{pod}: {conf}");
        for line in host.lines().filter(|line| line.starts_with("nameserver")) {
            assert!(conf.contains(line.trim_end()), "{pod}: {conf}");
        }
    }
    assert_eq!(conf("none"), "nameserver 192.0.2.7\nsearch own.example\noptions ndots:2");
    let more = conf("more");
    assert!(more.starts_with(&format!("nameserver {server}\nnameserver 192.0.2.7\n")), "{more}");
    assert!(more.contains(search) && more.contains("own.example"), "{more}");
    assert!(more.ends_with("options ndots:2"), "{more}");
}
