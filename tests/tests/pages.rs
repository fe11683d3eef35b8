//! What the loop tells of itself: whether it keeps up, and what it counted.
#![expect(clippy::unwrap_used, reason = "a test fails loudly")]

use std::sync::Arc;
use std::time::Duration;

use model::cluster::Cluster;
use model::feed::Update;
use pages::Text;
use proxy::backend::fake::{Fake, Fault};
use proxy::config::NodeConfig;
use proxy::health::Moment;
use proxy::observer::Observer;
use proxy::sync::Syncer;
use tests::objects;

/// Twice kube-proxy's sync period.
const LONGEST: Duration = Duration::from_secs(60);

const NODE: &str = "\
apiVersion: v1
kind: Node
metadata: {name: node-a}
status: {addresses: [{type: InternalIP, address: 172.18.0.1}]}
";

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec:
  clusterIPs: [10.96.0.10]
  ports: [{name: http, port: 80}]
";

/// A slice of the Service, with the time at which the cluster changed.
fn slice(endpoint: &str, changed: jiff::Timestamp) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  namespace: shop
  name: web-1
  labels: {{kubernetes.io/service-name: web}}
  annotations: {{endpoints.kubernetes.io/last-change-trigger-time: '{changed}'}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints: [{{addresses: [{endpoint}]}}]
"
    )
}

struct Scene {
    cluster: Cluster,
    syncer: Syncer<Fake>,
    observer: Observer,
}

impl Scene {
    fn new(backend: Fake) -> Self {
        let config = NodeConfig::new("node-a");
        let supports = Arc::new(|_: &_| Ok(()));
        let syncer = Syncer::new(backend, config, supports, Box::new(|_| Ok(()))).unwrap();
        Self { cluster: Cluster::new("node-a"), observer: syncer.observer(), syncer }
    }

    /// Has the loop told of some objects; whether it left nothing undone.
    fn tell(&mut self, yaml: &str) -> bool {
        let dirty = self.cluster.apply_all(objects::read(yaml).unwrap().into_changes());
        let update = Update { snapshot: self.cluster.snapshot(), dirty };
        self.syncer.update(&update).unwrap().retry_after.is_none()
    }

    fn retry(&mut self) -> bool {
        self.syncer.retry(&self.cluster.snapshot()).unwrap().retry_after.is_none()
    }

    /// The status codes of `/healthz` and `/livez` so many seconds from now.
    fn health_in(&self, seconds: u64) -> [u16; 2] {
        let now = Moment::now();
        let then = Moment { instant: now.instant + Duration::from_secs(seconds), ..now };
        [self.observer.healthz(then, LONGEST), self.observer.livez(then, LONGEST)]
            .map(|report| report.status())
    }

    /// One value of the page of metrics.
    fn metric(&self, sample: &str) -> String {
        let mut text = Text::default();
        let written = self.observer.write("nftables", &mut text);
        let page = text.finish(written);
        let line = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        assert!(line.is_some(), "no {sample} in\n{page}");
        line.unwrap().to_owned()
    }
}

#[test]
fn who_leaves_a_change_undone_for_twice_the_sync_period_is_unhealthy_until_it_is_made() {
    let mut backend = Fake::default();
    for op in 0..20 {
        backend.fail(op, Fault::RETRY);
    }
    let mut scene = Scene::new(backend);
    assert_eq!(scene.health_in(1000), [503, 200], "nobody has seen the node; nothing is undone");
    assert!(!scene.tell(&format!("{NODE}---\n{SERVICE}")));
    assert_eq!(scene.health_in(50), [200, 200]);
    assert_eq!(scene.health_in(60), [503, 503]);
    let mut tries = 0;
    while !scene.retry() {
        tries += 1;
        assert_eq!(scene.health_in(60), [503, 503], "failing again makes nothing younger");
        assert!(tries < 20, "twenty operations fail");
    }
    assert_eq!(scene.health_in(1000), [200, 200]);
    let failures = "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"}";
    assert_eq!(scene.metric(failures), (tries + 1).to_string());
    assert_eq!(scene.metric("kubeproxy_proxy_livez_total{code=\"503\"}"), (tries + 1).to_string());
}

#[test]
fn a_node_that_is_being_deleted_is_alive_and_gets_no_connections() {
    let mut scene = Scene::new(Fake::default());
    assert!(scene.tell(NODE));
    assert_eq!(scene.health_in(0), [200, 200]);
    let tainted = format!(
        "{NODE}spec: {{taints: [{{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}}]}}\n"
    );
    assert!(scene.tell(&tainted));
    assert_eq!(scene.health_in(0), [503, 200]);
    let deleted =
        NODE.replace("name: node-a", "name: node-a, deletionTimestamp: '2026-01-01T00:00:00Z'");
    assert!(scene.tell(&deleted));
    assert_eq!(scene.health_in(0), [503, 200]);
    assert!(scene.tell(NODE));
    assert_eq!(scene.health_in(0), [200, 200]);
}

#[test]
fn what_somebody_else_deletes_counts_as_undone_until_it_is_repaired() {
    let mut scene = Scene::new(Fake::default());
    assert!(scene.tell(&format!("{NODE}---\n{SERVICE}")));
    scene.syncer.backend().empty(1);
    let round = scene.syncer.audit(&scene.cluster.snapshot()).unwrap().unwrap();
    assert!(round.retry_after.is_some());
    assert_eq!(scene.health_in(61), [503, 503]);
    assert!(scene.retry());
    assert_eq!(scene.health_in(61), [200, 200]);
    assert_eq!(scene.metric("fairlead_repairs_total"), "1");
}

#[test]
fn changes_are_counted_and_timed_from_when_the_cluster_made_them() {
    let mut scene = Scene::new(Fake::default());
    let long_ago: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    assert!(scene.tell(&format!("{NODE}---\n{SERVICE}---\n{}", slice("10.244.1.2", long_ago))));
    let timed = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}";
    assert_eq!(scene.metric(timed), "0", "what was there before the proxy is not its own to time");
    let later = jiff::Timestamp::now() + Duration::from_secs(1);
    assert!(scene.tell(&slice("10.244.1.3", later)));
    assert_eq!(scene.metric(timed), "1");
    assert!(scene.tell(&SERVICE.replace("port: 80", "port: 81")));
    assert_eq!(scene.metric(timed), "1", "the endpoints are those that were timed");
    for (sample, expected) in [
        ("kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv6\"}", "0"),
        ("kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}", "3"),
        ("kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}", "1"),
        ("kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}", "2"),
        ("kubeproxy_sync_proxy_rules_service_changes_total", "2"),
        ("kubeproxy_sync_proxy_rules_service_changes_pending", "0"),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_total", "2"),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "0"),
        ("fairlead_frontends", "1"),
    ] {
        assert_eq!(scene.metric(sample), expected, "{sample}");
    }
    let last = scene
        .metric("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"}");
    let last: f64 = last.parse().unwrap();
    assert!(last > 1_700_000_000.0, "{last}");
}

#[test]
fn what_waits_to_be_made_is_pending() {
    let mut backend = Fake::default();
    for op in 0..20 {
        backend.fail(op, Fault::RETRY);
    }
    let mut scene = Scene::new(backend);
    assert!(!scene.tell(&format!("{NODE}---\n{SERVICE}")));
    assert_eq!(scene.metric("kubeproxy_sync_proxy_rules_service_changes_pending"), "1");
    while !scene.retry() {}
    assert_eq!(scene.metric("kubeproxy_sync_proxy_rules_service_changes_pending"), "0");
    assert_eq!(scene.metric("kubeproxy_sync_proxy_rules_service_changes_total"), "1");
}

#[test]
fn ports_without_an_endpoint_here_are_counted_by_policy() {
    let mut scene = Scene::new(Fake::default());
    let local = SERVICE.replace("spec:\n", "spec:\n  internalTrafficPolicy: Local\n");
    let now = jiff::Timestamp::now();
    assert!(scene.tell(&format!("{NODE}---\n{local}---\n{}", slice("10.244.2.2", now))));
    let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    let of = |policy: &str| format!("{name}{{ip_family=\"IPv4\",traffic_policy=\"{policy}\"}}");
    assert_eq!(scene.metric(&of("internal")), "1");
    assert_eq!(scene.metric(&of("external")), "0");
}
