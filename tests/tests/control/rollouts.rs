//! Deployments on their way: how many pods there are at each moment, and what it says of itself.

use std::collections::BTreeMap;

use futures::{AsyncBufReadExt, StreamExt};
use http::Request;
use kube::Client;
use serde_json::{Value, json};

use crate::companion::{Companion, Nodes, eventually, get, items, merge, post, ready, revision};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn template(image: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": "x"}},
        "spec": {"containers": [{"name": "c", "image": image}]},
    })
}

fn deployment(more: &Value) -> Value {
    let mut deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"},
        "spec": {"selector": {"matchLabels": {"app": "x"}}, "template": template("a:1")},
    });
    deployment["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    deployment
}

fn image(pod: &Value) -> &str {
    pod["spec"]["containers"][0]["image"].as_str().unwrap()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

/// Waits until so many pods of an image are ready, and no others are there.
async fn have(client: &Client, n: usize, wanted: &str) {
    eventually(&format!("{n} of {wanted}"), || async {
        let pods = items(client, PODS).await;
        let all = pods.iter().all(|pod| image(pod) == wanted && is_ready(pod));
        (pods.len() == n && all).then_some(())
    })
    .await;
}

/// Plays the pods' events since a revision, and shows what there is after each, until it is
/// enough.
async fn play(client: &Client, from: u64, mut look: impl FnMut(&BTreeMap<String, Value>) -> bool) {
    let path = format!("{PODS}?watch=1&resourceVersion={from}");
    let lines = client.request_stream(Request::get(path).body(Vec::new()).unwrap()).await.unwrap();
    let mut lines = lines.lines();
    let mut pods: BTreeMap<String, Value> = BTreeMap::new();
    loop {
        let line = lines.next().await.unwrap().unwrap();
        let mut event: Value = serde_json::from_str(&line).unwrap();
        let pod = event["object"].take();
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        if event["type"] == "DELETED" {
            pods.remove(&name);
        } else {
            pods.insert(name, pod);
        }
        if look(&pods) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_update_never_has_more_nor_fewer_than_it_may() {
    for (surge, unavailable, most, least) in [
        (json!(2), json!(0), 12, 10),
        (json!(0), json!(3), 10, 7),
        (json!("25%"), json!("25%"), 13, 8),
    ] {
        let companion = Companion::start(&[]).await;
        let client = companion.client().await;
        let from = revision(&get(&client, PODS).await.unwrap());
        let _nodes = Nodes::start(&client, &["n1", "n2"], ready).await;
        let rolling = json!({"maxSurge": surge, "maxUnavailable": unavailable});
        let spec = json!({"replicas": 10, "strategy": {"rollingUpdate": rolling}});
        post(&client, DEPLOYMENTS, &deployment(&spec)).await.unwrap();
        have(&client, 10, "a:1").await;
        let update = json!({"spec": {"template": template("a:2")}});
        merge(&client, &format!("{DEPLOYMENTS}/x"), &update).await.unwrap();
        have(&client, 10, "a:2").await;

        let (mut begun, mut many, mut few) = (false, 0, usize::MAX);
        play(&client, from, |pods| {
            let staying =
                || pods.values().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
            let well = staying().filter(|pod| is_ready(pod)).count();
            begun |= well == 10;
            if begun {
                (many, few) = (many.max(staying().count()), few.min(well));
            }
            pods.len() == 10 && well == 10 && pods.values().all(|pod| image(pod) == "a:2")
        })
        .await;
        assert!(many <= most && few >= least, "{rolling}: {many} at most, {few} at least");
        // It uses what it may, too.
        assert!(many > 10 || few < 10, "{rolling}: {many} at most, {few} at least");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recreate_ends_the_old_ones_before_it_begins_the_new() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    let from = revision(&get(&client, PODS).await.unwrap());
    let _nodes = Nodes::start(&client, &["n1"], ready).await;
    let spec = json!({"replicas": 4, "strategy": {"type": "Recreate"}});
    post(&client, DEPLOYMENTS, &deployment(&spec)).await.unwrap();
    have(&client, 4, "a:1").await;
    let update = json!({"spec": {"template": template("a:2")}});
    merge(&client, &format!("{DEPLOYMENTS}/x"), &update).await.unwrap();
    have(&client, 4, "a:2").await;
    play(&client, from, |pods| {
        let of = |wanted: &str| pods.values().filter(|pod| image(pod) == wanted).count();
        assert!(of("a:1") == 0 || of("a:2") == 0, "{} old, {} new", of("a:1"), of("a:2"));
        of("a:2") == 4
    })
    .await;
}

/// Only the first image ever becomes ready.
fn first_is_ready(pod: &Value) -> Value {
    if image(pod) == "a:1" { ready(pod) } else { json!({"phase": "Running"}) }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_gets_nowhere_keeps_the_old_ones_says_so_and_is_undone() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    let _nodes = Nodes::start(&client, &["n1"], first_is_ready).await;
    let spec = json!({"replicas": 4, "progressDeadlineSeconds": 2, "minReadySeconds": 1});
    post(&client, DEPLOYMENTS, &deployment(&spec)).await.unwrap();
    let path = format!("{DEPLOYMENTS}/x");
    let condition = |form: &'static str, status: &'static str, reason: &'static str| {
        let (client, path) = (client.clone(), path.clone());
        async move {
            eventually(reason, || async {
                let deployment = get(&client, &path).await.unwrap();
                let mut all = deployment["status"]["conditions"].as_array()?.iter();
                all.any(|one| {
                    one["type"] == form && one["status"] == status && one["reason"] == reason
                })
                .then_some(())
            })
            .await;
        }
    };
    condition("Progressing", "True", "NewReplicaSetAvailable").await;
    merge(&client, &path, &json!({"spec": {"template": template("a:2")}})).await.unwrap();
    condition("Progressing", "False", "ProgressDeadlineExceeded").await;
    condition("Available", "True", "MinimumReplicasAvailable").await;
    let old = items(&client, PODS).await.iter().filter(|pod| image(pod) == "a:1").count();
    // A quarter of four may be missing.
    assert_eq!(old, 3);
    merge(&client, &path, &json!({"spec": {"template": template("a:1")}})).await.unwrap();
    have(&client, 4, "a:1").await;
    condition("Progressing", "True", "NewReplicaSetAvailable").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replication_controller_keeps_its_number_and_adopts() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    let _nodes = Nodes::start(&client, &["n1"], ready).await;
    let stray = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "stray", "labels": {"app": "x"}}, "spec": template("a:1")["spec"]});
    post(&client, PODS, &stray).await.unwrap();
    let path = "/api/v1/namespaces/default/replicationcontrollers";
    let controller = json!({"apiVersion": "v1", "kind": "ReplicationController",
        "metadata": {"name": "x"},
        "spec": {"replicas": 3, "selector": {"app": "x"}, "template": template("a:1")}});
    post(&client, path, &controller).await.unwrap();
    have(&client, 3, "a:1").await;
    let stray = get(&client, &format!("{PODS}/stray")).await.unwrap();
    assert_eq!(stray["metadata"]["ownerReferences"][0]["name"], "x");
    // Without the label it is nobody's, and another takes its place.
    let label = json!({"metadata": {"labels": {"app": "other"}}});
    merge(&client, &format!("{PODS}/stray"), &label).await.unwrap();
    have(&client, 4, "a:1").await;
    let scale = json!({"spec": {"replicas": 1}});
    merge(&client, &format!("{path}/x/scale"), &scale).await.unwrap();
    have(&client, 2, "a:1").await;
    let stray = get(&client, &format!("{PODS}/stray")).await.unwrap();
    assert!(stray["metadata"]["ownerReferences"].is_null(), "{stray}");
}
