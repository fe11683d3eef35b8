//! Nodes that fail, and pods that are driven away.

use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};

use crate::companion::{Companion, code, delete, eventually, get, merge, post};

const PODS: &str = "/api/v1/namespaces/default/pods";
const NODE: &str = "/api/v1/nodes/n1";

async fn put_node(client: &Client) {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "allocatable": {"cpu": "4", "memory": "4Gi", "pods": "10"}}});
    post(client, "/api/v1/nodes", &node).await.unwrap();
}

async fn set_ready(client: &Client, status: &str) {
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
    merge(client, &format!("{NODE}/status"), &ready).await.unwrap();
}

/// A pod on the node that endures it so many seconds not being ready.
async fn put_pod(client: &Client, name: &str, seconds: Option<u64>) {
    let endure = |key: &str| {
        let mut one = json!({"key": format!("node.kubernetes.io/{key}"), "operator": "Exists",
            "effect": "NoExecute"});
        if let Some(seconds) = seconds {
            one["tolerationSeconds"] = json!(seconds);
        }
        one
    };
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": "n1", "terminationGracePeriodSeconds": 5,
            "tolerations": [endure("not-ready"), endure("unreachable")],
            "containers": [{"name": "c", "image": "a:1"}]}});
    post(client, PODS, &pod).await.unwrap();
    let status = json!({"status": {"phase": "Running",
        "conditions": [{"type": "Ready", "status": "True"}]}});
    merge(client, &format!("{PODS}/{name}/status"), &status).await.unwrap();
}

/// The keys of the node's taints by which pods must go, once they are these.
async fn tainted(client: &Client, wanted: &[&str]) {
    eventually(&format!("taints {wanted:?}"), || async {
        let node = get(client, NODE).await.unwrap();
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        let of = |effect: &str| -> Vec<String> {
            let found = taints.iter().filter(|taint| taint["effect"] == effect);
            found.map(|taint| taint["key"].as_str().unwrap().to_owned()).collect()
        };
        (of("NoExecute") == wanted && of("NoSchedule") == wanted).then_some(())
    })
    .await;
}

async fn is_going(client: &Client, name: &str) -> bool {
    let pod = get(client, &format!("{PODS}/{name}")).await.unwrap();
    pod["metadata"]["deletionTimestamp"].is_string()
}

/// The default: what somebody who says nothing about it endures.
async fn put_plain_pod(client: &Client) -> Value {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "a:1"}]}});
    post(client, PODS, &pod).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_ready_is_tainted_and_left_by_those_who_cannot_bear_it() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    put_node(&client).await;
    put_pod(&client, "soon", Some(1)).await;
    put_pod(&client, "patient", Some(600)).await;
    put_pod(&client, "stays", None).await;
    let plain = put_plain_pod(&client).await;
    let tolerations = plain["spec"]["tolerations"].as_array().unwrap();
    assert!(
        tolerations.len() == 2 && tolerations.iter().all(|one| one["tolerationSeconds"] == 300)
    );

    set_ready(&client, "False").await;
    tainted(&client, &["node.kubernetes.io/not-ready"]).await;
    eventually("one goes", || async { is_going(&client, "soon").await.then_some(()) }).await;
    for name in ["patient", "stays", "plain"] {
        assert!(!is_going(&client, name).await, "{name}");
    }
    set_ready(&client, "True").await;
    tainted(&client, &[]).await;
    // Nobody will end the pods of a node that is no more.
    delete(&client, NODE, &json!({})).await.unwrap();
    eventually("all are gone", || async {
        let list = get(&client, PODS).await.unwrap();
        list["items"].as_array().unwrap().is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_is_a_deletion_with_its_options() {
    let companion = Companion::start(&["--no-controllers"]).await;
    let client = companion.client().await;
    put_node(&client).await;
    put_pod(&client, "p", None).await;
    let pod = get(&client, &format!("{PODS}/p")).await.unwrap();
    let path = format!("{PODS}/p/eviction");
    let evict = |options: Value| {
        json!({"apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": "p", "namespace": "default"}, "deleteOptions": options})
    };
    let other = evict(json!({"preconditions": {"uid": "another"}}));
    assert_eq!(code(post(&client, &path, &other).await), 409);
    post(&client, &path, &evict(json!({"dryRun": ["All"]}))).await.unwrap();
    assert!(!is_going(&client, "p").await, "only as if");
    let mut misnamed = evict(json!({}));
    misnamed["metadata"]["name"] = json!("q");
    assert_eq!(code(post(&client, &path, &misnamed).await), 400);
    let right = json!({"preconditions": {"uid": pod["metadata"]["uid"]}});
    let done = post(&client, &path, &evict(right)).await.unwrap();
    assert_eq!((&done["kind"], &done["status"]), (&json!("Status"), &json!("Success")));
    assert!(is_going(&client, "p").await, "its grace period runs");
    post(&client, &path, &evict(json!({"gracePeriodSeconds": 0}))).await.unwrap();
    assert_eq!(code(get(&client, &format!("{PODS}/p")).await), 404);
    assert_eq!(code(post(&client, &path, &evict(json!({}))).await), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_bound_once() {
    let companion = Companion::start(&["--no-controllers"]).await;
    let client = companion.client().await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "a:1"}]}});
    post(&client, PODS, &pod).await.unwrap();
    let to = |node: &str| {
        json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node}})
    };
    let path = format!("{PODS}/p/binding");
    post(&client, &path, &to("n1")).await.unwrap();
    let bound = get(&client, &format!("{PODS}/p")).await.unwrap();
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    assert_eq!(code(post(&client, &path, &to("n2")).await), 409);
}

mod long {
    use super::*;

    /// Who renews the node's lease, every few seconds.
    async fn renew(client: &Client) {
        const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "n1"}, "spec": {"renewTime": time}});
        let body = json!({"spec": {"renewTime": time}});
        if merge(client, &format!("{LEASES}/n1"), &body).await.is_err() {
            post(client, LEASES, &lease).await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_whose_lease_runs_out_is_unreachable_until_it_is_renewed() {
        let companion = Companion::start(&[]).await;
        let client = companion.client().await;
        put_node(&client).await;
        put_pod(&client, "soon", Some(1)).await;
        put_pod(&client, "stays", None).await;
        // As long as it is renewed, it is well, though its status is old.
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_secs(55) {
            renew(&client).await;
            tainted(&client, &[]).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        tainted(&client, &["node.kubernetes.io/unreachable"]).await;
        let node = get(&client, NODE).await.unwrap();
        assert_eq!(node["status"]["conditions"][0]["status"], "Unknown");
        assert_eq!(node["status"]["conditions"][0]["reason"], "NodeStatusUnknown");
        eventually("one goes", || async { is_going(&client, "soon").await.then_some(()) }).await;
        eventually("the other is not ready", || async {
            let pod = get(&client, &format!("{PODS}/stays")).await.unwrap();
            (pod["status"]["conditions"][0]["status"] == "False").then_some(())
        })
        .await;
        renew(&client).await;
        set_ready(&client, "True").await;
        tainted(&client, &[]).await;
        assert!(!is_going(&client, "stays").await);
    }
}
