//! Jobs: every pod is counted once, whatever becomes of it, and nobody is left behind.

use std::collections::BTreeSet;

use kube::Client;
use serde_json::{Value, json};

use crate::companion::{
    Companion, Nodes, code, delete, eventually, get, items, merge, post, ready, succeeded,
};

const JOBS: &str = "/apis/batch/v1/namespaces/default/jobs";
const PODS: &str = "/api/v1/namespaces/default/pods";
const TRACKING: &str = "batch.kubernetes.io/job-tracking";

fn job(spec: &Value) -> Value {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"},
        "spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "a:1"}],
        }}},
    });
    job["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    job
}

/// Waits for a condition of the job.
async fn condition(client: &Client, form: &'static str) -> Value {
    eventually(form, || async {
        let job = get(client, &format!("{JOBS}/j")).await.unwrap();
        let mut all = job["status"]["conditions"].as_array()?.iter();
        all.any(|one| one["type"] == form && one["status"] == "True").then_some(job)
    })
    .await
}

fn is_tracked(pod: &Value) -> bool {
    pod["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|all| all.iter().any(|one| one == TRACKING))
}

/// Somebody who deletes every pod as soon as it has ended.
fn clean_up(client: &Client) -> tokio::task::JoinHandle<()> {
    let client = client.clone();
    tokio::spawn(async move {
        loop {
            for pod in items(&client, PODS).await {
                if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
                    let name = pod["metadata"]["name"].as_str().unwrap();
                    _ = delete(&client, &format!("{PODS}/{name}"), &json!({})).await;
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_deleted_at_its_end_is_counted_and_not_tried_again() {
    for mode in ["NonIndexed", "Indexed"] {
        let mut companion = Companion::start(&[]).await;
        let client = companion.client().await;
        let _nodes = Nodes::start(&client, &["n1"], succeeded).await;
        let cleaner = clean_up(&client);
        let spec = json!({"completions": 12, "parallelism": 4, "completionMode": mode});
        post(&client, JOBS, &job(&spec)).await.unwrap();
        let made = || async {
            let events = items(&client, "/api/v1/namespaces/default/events").await;
            let made = events.iter().filter(|event| event["reason"] == "SuccessfulCreate");
            let all: BTreeSet<String> =
                made.map(|event| event["message"].as_str().unwrap().to_owned()).collect();
            all
        };
        eventually("a few are made", || async { (made().await.len() > 3).then_some(()) }).await;
        cleaner.abort();
        companion.kill();
        companion.restart().await;
        let cleaner = clean_up(&client);
        let job = condition(&client, "Complete").await;
        cleaner.abort();
        assert_eq!(job["status"]["succeeded"], 12, "{mode}");
        assert!(job["status"]["failed"].is_null(), "{mode}: {}", job["status"]);
        assert!(job["status"]["completionTime"].is_string(), "{mode}");
        let uncounted = &job["status"]["uncountedTerminatedPods"];
        assert!(uncounted.is_null() || *uncounted == json!({}), "{mode}: {uncounted}");
        // A pod whose event was not written before the kill cannot be counted here.
        assert!(made().await.len() <= 12, "{mode}: {:?}", made().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_deleted_leaves_no_pod_held() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    let _nodes = Nodes::start(&client, &["n1"], ready).await;
    let parallel = job(&json!({"completions": 3, "parallelism": 3}));
    for policy in ["Background", "Foreground"] {
        post(&client, JOBS, &parallel).await.unwrap();
        eventually("its pods run", || async {
            let pods = items(&client, PODS).await;
            let held =
                pods.iter().filter(|pod| is_tracked(pod) && pod["status"]["phase"] == "Running");
            (held.count() == 3).then_some(())
        })
        .await;
        let options = json!({"propagationPolicy": policy});
        delete(&client, &format!("{JOBS}/j"), &options).await.unwrap();
        eventually("nothing is left", || async {
            let gone = get(&client, &format!("{JOBS}/j")).await.is_err();
            (gone && items(&client, PODS).await.is_empty()).then_some(())
        })
        .await;
    }
    post(&client, JOBS, &parallel).await.unwrap();
    eventually("its pods run", || async {
        let pods = items(&client, PODS).await;
        let running = pods.iter().filter(|pod| pod["status"]["phase"] == "Running");
        (running.count() == 3).then_some(())
    })
    .await;
    let orphan = json!({"propagationPolicy": "Orphan"});
    delete(&client, &format!("{JOBS}/j"), &orphan).await.unwrap();
    eventually("they are nobody's, and nobody holds them", || async {
        let pods = items(&client, PODS).await;
        let free =
            pods.iter().all(|pod| pod["metadata"]["ownerReferences"].is_null() && !is_tracked(pod));
        (pods.len() == 3 && free).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_while_it_is_suspended_and_goes_when_its_time_has_come() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    let _nodes = Nodes::start(&client, &["n1"], ready).await;
    let spec = json!({"completions": 2, "parallelism": 2, "ttlSecondsAfterFinished": 1});
    post(&client, JOBS, &job(&spec)).await.unwrap();
    let running = |n: usize| {
        let client = client.clone();
        async move {
            eventually(&format!("{n} pods"), || async {
                let pods = items(&client, PODS).await;
                let run = pods.iter().all(|pod| pod["status"]["phase"] == "Running");
                (pods.len() == n && run).then_some(())
            })
            .await;
        }
    };
    let suspend = |on: bool| {
        let client = client.clone();
        async move {
            let body = json!({"spec": {"suspend": on}});
            merge(&client, &format!("{JOBS}/j"), &body).await.unwrap();
        }
    };
    running(2).await;
    suspend(true).await;
    let suspended = condition(&client, "Suspended").await;
    assert!(suspended["status"]["failed"].is_null(), "{}", suspended["status"]);
    running(0).await;
    suspend(false).await;
    running(2).await;
    for pod in items(&client, PODS).await {
        let path = format!("{PODS}/{}/status", pod["metadata"]["name"].as_str().unwrap());
        merge(&client, &path, &json!({"status": {"phase": "Succeeded"}})).await.unwrap();
    }
    let done = condition(&client, "Complete").await;
    assert_eq!(done["status"]["succeeded"], 2);
    eventually("its time has come", || async {
        let gone = get(&client, &format!("{JOBS}/j")).await;
        (gone.is_err() && code(gone) == 404).then_some(())
    })
    .await;
    running(0).await;
}
