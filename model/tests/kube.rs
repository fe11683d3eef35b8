//! An API server that says what each test wants, and what the feed makes of it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that stops at the line at fault says most"
)]

#[path = "kube/events.rs"]
mod events;
#[path = "kube/server.rs"]
mod server;

use std::time::Duration;

use model::cluster::Snapshot;
use model::name::NamespacedName;
use model::pod::SocketLb;
use model::source::kube::{Connection, KubeConfig, Selection};
use model::watch::{self, Watch};
use serde_json::{Value, json};
use server::{Server, Stream};
use tokio::task::JoinSet;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(20);

/// A feed from the fake server, in which Services are scripted and the rest is quiet.
struct Node {
    server: Server,
    watch: Watch,
    seen: Option<Snapshot>,
    _tasks: JoinSet<()>,
}

impl Node {
    async fn new(selection: Selection) -> Self {
        let server = Server::start().await;
        let kube_config = KubeConfig { master: Some(server.url()), ..KubeConfig::default() };
        let connection = Connection::find(&kube_config).await.unwrap();
        let mut watch = watch::kube(connection, "here", selection);
        let mut tasks = JoinSet::new();
        tasks.spawn(std::mem::replace(&mut watch.task, Box::pin(async {})));
        Self { server, watch, seen: None, _tasks: tasks }
    }

    /// Lists these Services and leaves a watch open.
    async fn listed(&mut self, version: &str, services: &[Value]) -> Stream {
        self.server.next("services").await.json(200, &list(version, "", services));
        let watch = self.server.next("services").await;
        assert_eq!(watch.query("resourceVersion"), version);
        watch.stream()
    }

    async fn until(&mut self, done: impl Fn(&Snapshot) -> bool) {
        let wait = async {
            while !self.seen.as_ref().is_some_and(&done) {
                self.seen = Some(self.watch.feed.next().await.expect("the feed goes on").snapshot);
            }
        };
        if timeout(DEADLINE, wait).await.is_err() {
            panic!("not within {DEADLINE:?}; last seen: {:#?}", self.seen);
        }
    }

    async fn until_services(&mut self, names: &[&str]) {
        self.until(|seen| {
            let is = seen.services.iter().filter(|(_, state)| state.service.is_some());
            is.map(|(name, _)| &*name.name).eq(names.iter().copied())
        })
        .await;
    }

    async fn until_healthy(&mut self, healthy: bool) {
        let wait = self.watch.health.wait_for(|health| health.errors.is_empty() == healthy);
        timeout(DEADLINE, wait).await.expect("health").unwrap();
    }
}

fn service(name: &str, version: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": version},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]},
    })
}

fn list(version: &str, next: &str, items: &[Value]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "List",
        "metadata": {"resourceVersion": version, "continue": next}, "items": items,
    })
}

fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

fn status(code: u16) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "as scripted", "reason": "Scripted", "code": code,
    })
}

#[tokio::test]
async fn a_list_comes_in_pages_and_a_watch_goes_on_from_it() {
    let mut node = Node::new(Selection::everything()).await;
    let first = node.server.next("services").await;
    assert_eq!(first.query("limit"), "500");
    assert_eq!(first.query("continue"), "");
    assert_eq!(first.query("labelSelector"), "");
    first.json(200, &list("7", "more", &[service("a", "3")]));
    let second = node.server.next("services").await;
    assert_eq!(second.query("continue"), "more");
    assert!(!node.watch.health.borrow().in_sync, "half a list is no list");
    second.json(200, &list("7", "", &[service("b", "5")]));
    let watch = node.server.next("services").await;
    assert_eq!(watch.query("watch"), "true");
    assert_eq!(watch.query("resourceVersion"), "7");
    assert_eq!(watch.query("allowWatchBookmarks"), "true");
    let watch = watch.stream();
    node.until_services(&["a", "b"]).await;
    watch.say(&event("ADDED", &service("c", "8"))).await;
    node.until_services(&["a", "b", "c"]).await;
    watch.say(&event("DELETED", &service("a", "9"))).await;
    node.until_services(&["b", "c"]).await;
}

#[tokio::test]
async fn a_lost_watch_resumes_from_the_last_version_heard() {
    let mut node = Node::new(Selection::everything()).await;
    let watch = node.listed("7", &[service("a", "3")]).await;
    watch.say(&event("MODIFIED", &service("a", "8"))).await;
    watch
        .say(&event(
            "BOOKMARK",
            &json!({
                "kind": "Service", "apiVersion": "v1", "metadata": {"resourceVersion": "20"},
            }),
        ))
        .await;
    drop(watch);
    let again = node.server.next("services").await;
    assert_eq!(again.query("resourceVersion"), "20");
    let watch = again.stream();
    watch.say(&event("ADDED", &service("b", "21"))).await;
    node.until_services(&["a", "b"]).await;
    // The connection breaks in the middle of an event.
    watch.break_off().await;
    let again = node.server.next("services").await;
    assert_eq!(again.query("resourceVersion"), "21");
    again.stream().keep();
    node.until_healthy(true).await;
}

#[tokio::test]
async fn a_forgotten_version_is_listed_again_and_what_vanished_goes() {
    for in_the_stream in [true, false] {
        let mut node = Node::new(Selection::everything()).await;
        let watch = node.listed("7", &[service("a", "3"), service("b", "4")]).await;
        node.until_services(&["a", "b"]).await;
        if in_the_stream {
            watch.say(&event("ERROR", &status(410))).await;
        } else {
            drop(watch);
            node.server.next("services").await.json(410, &status(410));
        }
        node.listed("90", &[service("b", "4"), service("c", "80")]).await.keep();
        node.until_services(&["b", "c"]).await;
    }
}

#[tokio::test]
async fn a_list_that_breaks_between_pages_starts_over() {
    let mut node = Node::new(Selection::everything()).await;
    let page = list("7", "more", &[service("a", "3")]);
    node.server.next("services").await.json(200, &page);
    node.server.next("services").await.json(410, &status(410));
    let first = node.server.next("services").await;
    assert_eq!(first.query("continue"), "");
    first.json(200, &list("8", "", &[service("b", "5")]));
    node.server.next("services").await.stream().keep();
    node.until_services(&["b"]).await;
}

#[tokio::test]
async fn a_failing_server_is_told_of_and_tried_again() {
    let mut node = Node::new(Selection::everything()).await;
    for _ in 0..3 {
        node.server.next("services").await.json(500, &status(500));
    }
    node.until_healthy(false).await;
    let what = node.watch.health.borrow().errors["Service"].to_string();
    assert!(what.contains("500 Scripted: as scripted") && what.contains("127.0.0.1"), "{what}");
    let watch = node.listed("7", &[service("a", "3")]).await;
    node.until_services(&["a"]).await;
    node.until_healthy(true).await;
    drop(watch);
    // What was seen stays while a watch is refused.
    node.server.next("services").await.json(503, &status(503));
    node.until_healthy(false).await;
    let again = node.server.next("services").await;
    assert_eq!(again.query("resourceVersion"), "7");
    again.stream().keep();
    node.until_healthy(true).await;
    assert_eq!(node.seen.as_ref().unwrap().services.len(), 1);
}

#[tokio::test]
async fn a_problem_is_cleared_when_its_object_is_mended_or_gone() {
    let mut node = Node::new(Selection::everything()).await;
    let mut bad = service("a", "3");
    bad["spec"]["ports"][0]["protocol"] = json!("TPC");
    let watch = node.listed("7", &[bad.clone(), service("b", "4")]).await;
    node.until_services(&["a", "b"]).await;
    let seen = node.seen.clone().unwrap();
    assert_eq!(
        seen.problems["Service shop/a"][0].to_string(),
        "Service shop/a: spec.ports[0].protocol: \"TPC\" is no protocol; use TCP, UDP or SCTP"
    );
    watch.say(&event("MODIFIED", &service("a", "8"))).await;
    node.until(|seen| seen.problems.is_empty()).await;
    watch.say(&event("MODIFIED", &bad)).await;
    node.until(|seen| !seen.problems.is_empty()).await;
    watch.say(&event("ERROR", &status(410))).await;
    node.listed("90", &[service("b", "4")]).await.keep();
    node.until(|seen| seen.problems.is_empty()).await;
}

#[tokio::test]
async fn selectors_go_to_the_server_and_namespaces_are_left_alone() {
    let mut node = Node::new(Selection::for_proxy()).await;
    let call = node.server.next("services").await;
    assert_eq!(call.query("labelSelector"), "!service.kubernetes.io/service-proxy-name");
    assert_eq!(call.query("fieldSelector"), "spec.clusterIP!=None");
    call.json(200, &list("7", "", &[]));
    node.server.next("services").await.stream().keep();
    node.until(|_| true).await;
    let quiet = node.server.quiet_calls();
    let slices = quiet.iter().find(|call| call.path.ends_with("/endpointslices")).unwrap();
    assert_eq!(slices.query("labelSelector"), "!service.kubernetes.io/headless");
    let own = quiet.iter().find(|call| call.path.ends_with("/nodes")).unwrap();
    assert_eq!(own.query("fieldSelector"), "metadata.name=here");
    assert!(quiet.iter().all(|call| !call.path.ends_with("/namespaces")));
}

#[tokio::test]
async fn what_says_whose_sockets_are_left_alone_is_watched_where_it_may_be() {
    let mut node = Node::new(Selection::for_proxy().with_socket_lb()).await;
    node.server.have("pods", status(403));
    node.server.have(
        "namespaces",
        json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {"name": "shop", "resourceVersion": "2",
                "annotations": {"fairlead.dev/socket-lb": "off"}},
        }),
    );
    node.server.answer_quietly();
    node.listed("7", &[]).await.keep();
    node.until(|seen| seen.socket_lb.get("shop") == Some(&SocketLb::Off)).await;
    node.until_healthy(false).await;
    assert!(node.watch.health.borrow().in_sync, "whatever the server refuses of pods");
    assert!(node.seen.as_ref().unwrap().pods.is_empty());
    node.server.have(
        "pods",
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web-0", "namespace": "shop", "uid": "u-1", "resourceVersion": "2"},
            "spec": {"nodeName": "here", "containers": []},
            "status": {"podIPs": [{"ip": "10.1.0.1"}]},
        }),
    );
    node.until(|seen| seen.pods.contains_key(&NamespacedName::new("shop", "web-0"))).await;
    node.until_healthy(true).await;
    let quiet = node.server.quiet_calls();
    let pods = quiet.iter().find(|call| call.path.ends_with("/pods")).unwrap();
    assert_eq!(pods.query("fieldSelector"), "spec.nodeName=here");
}

#[tokio::test]
async fn slices_join_their_service_and_namespaces_are_metadata() {
    let mut node = Node::new(Selection::everything()).await;
    node.server.have(
        "endpointslices",
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "a-1", "namespace": "shop", "resourceVersion": "2",
                "labels": {"kubernetes.io/service-name": "a"}},
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.1.0.1"], "nodeName": "here"}],
        }),
    );
    node.server.have(
        "namespaces",
        json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {"name": "shop", "resourceVersion": "2"},
        }),
    );
    node.server.have("nodes", json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "here", "resourceVersion": "2"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    }));
    node.server.answer_quietly();
    node.listed("7", &[service("a", "3")]).await.keep();
    node.until_services(&["a"]).await;
    let seen = node.seen.clone().unwrap();
    let endpoints = &seen.services[&NamespacedName::new("shop", "a")].endpoints;
    let endpoint = &endpoints.ports.values().next().unwrap()[0];
    assert_eq!((endpoint.address.to_string().as_str(), endpoint.local), ("10.1.0.1:8080", true));
    assert!(seen.namespaces.contains("shop"));
    assert_eq!(seen.node.unwrap().addresses, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
    let quiet = node.server.quiet_calls();
    let namespaces = quiet.iter().find(|call| call.path.ends_with("/namespaces")).unwrap();
    assert!(namespaces.accept.contains("PartialObjectMetadata"), "{}", namespaces.accept);
}
