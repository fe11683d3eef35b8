//! The pages of a proxy, asked as a load balancer and Prometheus do.

use std::net::SocketAddr;

use sandbox::manifest::Service;
use sandbox::traffic::Protocol;
use tests::cluster::{Cluster, Node, endpoints, eventually};

/// What `curl` gets: the status code and the text.
pub(crate) fn get(node: &Node, url: &str) -> (String, String) {
    let curl = node.node().command("curl");
    let output = curl.args(["-s", "-m", "10", "-w", "\n%{http_code}", url]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').unwrap_or_default();
    (code.to_owned(), body.to_owned())
}

#[test]
fn health_and_metrics_are_where_kube_proxy_has_them() {
    for mode in ["ebpf", "nftables"] {
        let cluster = Cluster::new();
        let mut node = cluster.node("node-a");
        let webs = node.webs(["web-1", "web-2"]);
        let client = node.pod("client");
        let service = cluster.service("web", &webs);
        node.start_proxy_with(&[&format!("--proxy-mode={mode}")]);
        eventually("the pages are there", || {
            get(&node, "http://127.0.0.1:10249/healthz").0 == "200"
        });
        assert_eq!(get(&node, "http://127.0.0.1:10249/proxyMode").1, mode);
        for page in ["healthz", "livez"] {
            let (code, body) = get(&node, &format!("http://127.0.0.1:10256/{page}"));
            assert_eq!(code, "200", "{mode}: {body}");
            let report: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(report["status"]["IPv6"]["healthy"], true, "{mode}: {body}");
            let eligible = report.get("nodeEligible").is_some();
            assert_eq!(eligible, page == "healthz", "{mode}: {body}");
        }
        assert_eq!(get(&node, "http://127.0.0.1:10256/metrics").0, "404");
        // Load balancers ask at the node's address; the metrics are for the node alone.
        let address = node.node().addresses().v4;
        assert_eq!(get(&node, &format!("http://{address}:10256/livez")).0, "200");
        assert_eq!(get(&node, &format!("http://{address}:10249/metrics")).0, "000");

        cluster.send(&client, Protocol::Tcp, service.v4(), 20);
        let (_, page) = get(&node, "http://127.0.0.1:10249/metrics");
        let value = |sample: &str| {
            let line = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{mode}: no {sample} in\n{page}")).parse::<f64>().unwrap()
        };
        for sample in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"}",
            "kubeproxy_sync_proxy_rules_service_changes_total",
            "kubeproxy_proxy_healthz_total{code=\"200\"}",
            "process_resident_memory_bytes",
            "process_open_fds",
        ] {
            assert!(value(sample) > 0.0, "{mode}: {sample}");
        }
        if mode == "ebpf" {
            let asked = "fairlead_service_connections_total{namespace=\"default\",service=\"web\",port=\"tcp\"}";
            assert!(value(asked) >= 20.0, "{page}");
            assert!(value("fairlead_ebpf_events_total{event=\"translated\"}") >= 20.0);
        }
    }
}

#[test]
fn a_load_balancer_is_told_whether_this_node_has_endpoints_of_a_service() {
    const PORT: u16 = 31_080;
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let service = Service::new("default", "shop")
        .cluster_ip([10, 96, 0, 30])
        .cluster_ip([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 30])
        .tcp("tcp", 80, 8080)
        .node_port(30_090)
        .external_traffic_local();
    let balanced = service.yaml().replace(
        "  type: NodePort\n",
        &format!("  type: LoadBalancer\n  healthCheckNodePort: {PORT}\n"),
    );
    cluster.folder().write("shop-service", &balanced).unwrap();
    node.start_proxy();
    for ip in node.node().addresses().both() {
        let url = format!("http://{}/any/path", SocketAddr::new(ip, PORT));
        let told = |n: usize| {
            format!(
                "{{\n\t\"service\": {{\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"shop\"\n\t}},\n\
                 \t\"localEndpoints\": {n},\n\t\"serviceProxyHealthy\": true\n}}"
            )
        };
        let says = |code: &str, n| get(&node, &url) == (code.to_owned(), told(n));
        cluster.folder().write_endpoints(&service, &endpoints(&webs)).unwrap();
        eventually("two endpoints are here", || says("200", 2));
        let head = node.node().command("curl").args(["-s", "-D", "-", "-o", "/dev/null", &url]);
        let head = String::from_utf8(head.output().unwrap().stdout).unwrap().to_lowercase();
        for header in [
            "x-load-balancing-endpoint-weight: 2\r\n",
            "content-type: application/json\r\n",
            "x-content-type-options: nosniff\r\n",
        ] {
            assert!(head.contains(header), "no {header} in {head}");
        }
        cluster.folder().write_endpoints(&service, &[]).unwrap();
        eventually("no endpoint is here", || says("503", 0));
    }
    // A Service that balances no load has none.
    cluster.folder().write("shop-service", &service.yaml()).unwrap();
    let url = format!("http://127.0.0.1:{PORT}/");
    eventually("nobody answers", || get(&node, &url).0 == "000");
}
