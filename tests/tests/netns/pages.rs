//! The pages of a proxy, asked as a load balancer and Prometheus do.

use sandbox::traffic::Protocol;
use tests::cluster::{Cluster, Node, eventually};

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
