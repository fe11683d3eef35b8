//! What each object comes to, as text: `tests/cases/model/*.txt`.
//!
//! A case is a line `# what it shows`, the objects as YAML, a line `-- expect --` and what the
//! cluster then holds. `UPDATE_EXPECT=1` writes what it holds into the file.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that stops at the line at fault says most"
)]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use expect_test::expect_file;
use model::cluster::{ServiceState, Snapshot};
use model::service::{Service, ServiceType, TrafficPolicy};
use model::slices::MergedEndpoint;
use model::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/cases/model");
const EXPECT: &str = "-- expect --\n";

#[tokio::test]
async fn every_case_comes_to_what_it_says() {
    let mut files: Vec<_> =
        fs::read_dir(CASES).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no cases in {CASES}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let mut now = String::new();
        for case in text.split_inclusive("\n\n\n") {
            let (objects, _) = case.split_once(EXPECT).unwrap_or_else(|| (case.trim_end(), ""));
            let gap = if case.ends_with("\n\n\n") { "\n\n" } else { "" };
            write!(now, "{objects}{EXPECT}{}{gap}", render(&load(objects).await)).unwrap();
        }
        expect_file![Path::new(&file)].assert_eq(&now);
    }
}

async fn load(objects: &str) -> Snapshot {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("case.yaml"), objects).unwrap();
    let mut watch = watch::files(dir.path(), "here").unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(watch.task);
    let first = timeout(Duration::from_secs(10), watch.feed.next()).await;
    first.unwrap_or_else(|_| panic!("in sync:\n{objects}")).unwrap().snapshot
}

fn render(seen: &Snapshot) -> String {
    let mut text = String::new();
    for (name, state) in &seen.services {
        match &state.service {
            Some(service) => render_service(service, &mut text),
            None => writeln!(text, "{name} (no Service)").unwrap(),
        }
        render_endpoints(state, &mut text);
    }
    if let Some(node) = seen.node.as_ref().filter(|node| !node.addresses.is_empty()) {
        let zone = node.zone.as_deref().unwrap_or("-");
        let (addresses, cidrs) = (&node.addresses, &node.pod_cidrs);
        write!(text, "node {} zone {zone} addresses {addresses:?} pods {cidrs:?}", node.name)
            .unwrap();
        writeln!(text, " deleting {} to-be-deleted {}", node.deleting, node.to_be_deleted).unwrap();
    }
    let namespaces: String = seen.namespaces.iter().map(|name| format!(" {name}")).collect();
    writeln!(text, "namespaces:{namespaces}").unwrap();
    for problem in seen.problems.iter().flat_map(|(_, list)| list.iter()) {
        writeln!(text, "! {problem}").unwrap();
    }
    text
}

fn render_service(service: &Service, text: &mut String) {
    write!(text, "{} {:?}", service.name, service.service_type).unwrap();
    let mut say = |what: &str, is: bool| {
        if is {
            write!(text, " {what}").unwrap();
        }
    };
    say("headless", service.headless);
    say("foreign-proxy", service.foreign_proxy);
    say("not-captured", !service.capture);
    say("ends-connections", service.ends_connections);
    say("eTP=Local", service.external_traffic_policy == TrafficPolicy::Local);
    say("iTP=Local", service.internal_traffic_policy == TrafficPolicy::Local);
    say("not-routed", !service.is_routed());
    say("created", service.created != 0);
    let mut list = |what: &str, items: &[String]| {
        if !items.is_empty() {
            write!(text, " {what}={}", items.join(",")).unwrap();
        }
    };
    let strings =
        |items: &[std::net::IpAddr]| items.iter().map(ToString::to_string).collect::<Vec<_>>();
    list("ips", &strings(&service.cluster_ips));
    list("external", &strings(&service.external_ips));
    list("vips", &strings(&service.load_balancer_vips));
    let ranges = &service.load_balancer_source_ranges;
    list("ranges", &ranges.iter().map(ToString::to_string).collect::<Vec<_>>());
    if let Some(affinity) = service.session_affinity {
        write!(text, " affinity={}s", affinity.as_secs()).unwrap();
    }
    if service.health_check_node_port != 0 {
        write!(text, " health={}", service.health_check_node_port).unwrap();
    }
    text.push('\n');
    for port in &service.ports {
        let name = if port.name.is_empty() { "-" } else { &port.name };
        write!(text, "  port {name} {}/{}", port.port, port.protocol).unwrap();
        if port.node_port != 0 {
            write!(text, " node {}", port.node_port).unwrap();
        }
        text.push('\n');
    }
    assert!(!matches!(&service.service_type, ServiceType::ExternalName(name) if name.is_empty()));
}

fn render_endpoints(state: &ServiceState, text: &mut String) {
    for ((port, protocol), endpoints) in state.endpoints.ports.iter() {
        let port = if port.is_empty() { "-" } else { port };
        for endpoint in endpoints.iter() {
            writeln!(text, "  endpoint {port}/{protocol} {}", render_endpoint(endpoint)).unwrap();
        }
    }
    for endpoint in state.endpoints.portless.iter() {
        writeln!(text, "  endpoint without port {}", render_endpoint(endpoint)).unwrap();
    }
    if let Some(time) = state.endpoints.last_change_trigger {
        writeln!(text, "  last change {time:?}").unwrap();
    }
}

fn render_endpoint(endpoint: &MergedEndpoint) -> String {
    let mut text = endpoint.address.to_string();
    let conditions = endpoint.conditions;
    let mut say = |what: &str, is: bool| {
        if is {
            write!(text, " {what}").unwrap();
        }
    };
    say("local", endpoint.local);
    say("not-ready", !conditions.ready);
    say("not-serving", !conditions.serving);
    say("terminating", conditions.terminating);
    let mut some = |what: &str, is: Option<&str>| {
        if let Some(is) = is {
            write!(text, " {what}={is}").unwrap();
        }
    };
    some("zone", endpoint.zone.as_deref());
    some("hostname", endpoint.hostname.as_deref());
    some("pod", endpoint.pod.as_deref());
    some("weight", endpoint.weight.map(|weight| weight.to_string()).as_deref());
    if let Some(hints) = &endpoint.hints {
        let join = |names: &[std::sync::Arc<str>]| names.join(",");
        some("for-zones", Some(&join(&hints.for_zones)));
        some("for-nodes", Some(&join(&hints.for_nodes)));
    }
    text
}
