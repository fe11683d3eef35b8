//! What is wrong with an object becomes an Event on it, whatever the API server makes of that.

use model::notice::{Notice, Reason};
use model::problem::Problem;
use model::source::kube::Selection;
use serde_json::{Value, json};

use crate::{Node, service, status};

fn conflict(service: &str) -> Notice {
    let problem = Problem::new(format_args!("Service shop/{service}"), "spec.externalIPs", "taken");
    Notice { problem, reason: Reason::AddressConflict }
}

fn found(uids: &[&str]) -> Value {
    let items: Vec<Value> = uids
        .iter()
        .map(|uid| {
            json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": {"name": "a", "namespace": "shop", "uid": uid},
            })
        })
        .collect();
    json!({
        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
        "metadata": {"resourceVersion": "9"}, "items": items,
    })
}

fn written() -> Value {
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "a.1"},
        "eventTime": "2026-01-01T00:00:00.000000Z",
    })
}

#[tokio::test]
async fn an_event_that_fails_is_tried_again_and_one_that_is_there_is_counted_on() {
    let mut node = Node::new(Selection::for_proxy()).await;
    node.listed("7", &[service("a", "3")]).await.keep();
    node.watch.notices.set([conflict("a")].into());

    for (code, answer) in [(500, status(500)), (409, status(409))] {
        let lookup = node.server.next("services").await;
        assert_eq!(lookup.path(), "/api/v1/namespaces/shop/services");
        assert_eq!(lookup.query("fieldSelector"), "metadata.name=a");
        lookup.json(200, &found(&["uid-of-a"]));
        let create = node.server.next("events").await;
        assert_eq!(create.method(), "POST");
        assert_eq!(create.path(), "/apis/events.k8s.io/v1/namespaces/shop/events");
        let event = create.body();
        assert_eq!(event["regarding"]["uid"], "uid-of-a");
        assert_eq!(event["reportingInstance"], "here");
        assert_eq!(event["reason"], "AddressConflict");
        assert_eq!(event["note"], "spec.externalIPs: taken");
        create.json(code, &answer);
    }
    let repeat = node.server.next("events").await;
    assert_eq!(repeat.method(), "PATCH");
    assert!(repeat.path().starts_with("/apis/events.k8s.io/v1/namespaces/shop/events/a."));
    assert_eq!(repeat.body()["series"]["count"], 2);
    repeat.json(200, &written());
}

#[tokio::test]
async fn an_event_that_is_refused_holds_up_no_other() {
    let mut ending = status(403);
    ending["details"] = json!({"causes": [{"reason": "NamespaceTerminating"}]});
    for refusal in [status(422), ending] {
        let mut node = Node::new(Selection::for_proxy()).await;
        node.listed("7", &[]).await.keep();
        node.watch.notices.set([conflict("a"), conflict("b")].into());
        node.server.next("services").await.json(200, &found(&["uid-of-a"]));
        let code = u16::try_from(refusal["code"].as_u64().unwrap()).unwrap();
        node.server.next("events").await.json(code, &refusal);
        let next = node.server.next("services").await;
        assert_eq!(next.query("fieldSelector"), "metadata.name=b");
        next.json(200, &found(&["uid-of-b"]));
        assert_eq!(node.server.next("events").await.body()["regarding"]["uid"], "uid-of-b");
    }
}

#[tokio::test]
async fn nobody_is_told_about_an_object_that_is_gone() {
    let mut node = Node::new(Selection::for_proxy()).await;
    node.listed("7", &[]).await.keep();
    node.watch.notices.set([conflict("a")].into());
    node.server.next("services").await.json(200, &found(&[]));
    node.watch.notices.set([conflict("a"), conflict("b")].into());
    let next = node.server.next("services").await;
    assert_eq!(next.query("fieldSelector"), "metadata.name=b");
    next.json(200, &found(&["uid-of-b"]));
    node.server.next("events").await.json(201, &written());
}
