//! Watches: every event once and in order, resumed over a restart, refused after compaction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use http::Request;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::companion::{Companion, config_map, eventually, get, merge, post, revision};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Follows config maps from a revision until `n` events have come; gives kind and revision.
async fn follow(client: &Client, from: u64, n: usize) -> Vec<(String, u64)> {
    let path = format!("{MAPS}?watch=1&resourceVersion={from}");
    let lines = client.request_stream(Request::get(path).body(Vec::new()).unwrap()).await.unwrap();
    let events = lines.lines().take(n).map_ok(|line| {
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_ne!(event["type"], "ERROR", "{event}");
        (event["type"].as_str().unwrap().to_owned(), revision(&event["object"]))
    });
    events.try_collect().await.unwrap()
}

/// Changes config maps: some made, some changed, some deleted. Gives every revision there was.
async fn churn(client: &Client, prefix: &str, n: usize) -> BTreeSet<u64> {
    let mut revisions = BTreeSet::new();
    for i in 0..n {
        let name = format!("{prefix}-{}", i / 3);
        let path = format!("{MAPS}/{name}");
        let changed = match i % 3 {
            0 => post(client, MAPS, &config_map(&name)).await.unwrap(),
            1 => merge(client, &path, &json!({"data": {"i": i.to_string()}})).await.unwrap(),
            // What a deletion answers does not say its revision: the watch does.
            _ if i % 2 == 0 => {
                let delete = Request::delete(&path).body(Vec::new()).unwrap();
                client.request::<Value>(delete).await.unwrap();
                continue;
            }
            _ => merge(client, &path, &json!({"data": {"last": "1"}})).await.unwrap(),
        };
        revisions.insert(revision(&changed));
    }
    revisions
}

#[tokio::test(flavor = "multi_thread")]
async fn every_watcher_gets_every_event_once_and_in_order() {
    let companion = Companion::start(&["--no-controllers"]).await;
    let client = companion.client().await;
    let from = revision(&get(&client, MAPS).await.unwrap());
    let n = 900;
    let watchers: Vec<_> = (0..20)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { follow(&client, from, 4 * n).await })
        })
        .collect();
    let writers = (0..4).map(|writer| {
        let client = client.clone();
        tokio::spawn(async move { churn(&client, &format!("w{writer}"), n).await })
    });
    let mut acknowledged = BTreeSet::new();
    for writer in writers.collect::<Vec<_>>() {
        acknowledged.extend(writer.await.unwrap());
    }
    for watcher in watchers {
        let events = watcher.await.unwrap();
        assert!(events.is_sorted_by(|(_, a), (_, b)| a < b), "in order, and none twice");
        let seen: BTreeSet<u64> = events.iter().map(|(_, revision)| *revision).collect();
        assert!(acknowledged.is_subset(&seen), "none missed");
        assert_eq!(seen.len(), 4 * n);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_resumes_over_a_kill() {
    let mut companion = Companion::start(&["--no-controllers"]).await;
    let client = companion.client().await;
    let from = revision(&get(&client, MAPS).await.unwrap());
    let before = churn(&client, "before", 30).await;
    companion.kill();
    companion.restart().await;
    let client = companion.client().await;
    let after = churn(&client, "after", 30).await;
    let events = follow(&client, from, 60).await;
    let seen: BTreeSet<u64> = events.into_iter().map(|(_, revision)| revision).collect();
    assert!(before.is_subset(&seen) && after.is_subset(&seen));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_that_was_compacted_is_gone() {
    let flags = ["--no-controllers", "--history", "0", "--history-size", "0"];
    let companion = Companion::start(&flags).await;
    let client = companion.client().await;
    let from = revision(&get(&client, MAPS).await.unwrap());
    churn(&client, "x", 900).await;
    let path = format!("{MAPS}?watch=1&resourceVersion={from}");
    let lines = client.request_stream(Request::get(path).body(Vec::new()).unwrap()).await.unwrap();
    let lines: Vec<String> = lines.lines().try_collect().await.unwrap();
    let event: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(event["object"]["reason"], "Expired");
    let exact = format!("{MAPS}?resourceVersion={from}&resourceVersionMatch=Exact");
    let refused = get(&client, &exact).await.unwrap_err();
    assert!(matches!(refused, kube::Error::Api(status) if status.code == 410));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reflector_holds_what_the_server_holds() {
    let mut companion = Companion::start(&["--no-controllers"]).await;
    let client = companion.client().await;
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
        let (reader, writer) = reflector::store();
        let stream = reflector(writer, watcher(api, config)).default_backoff().touched_objects();
        let following = tokio::spawn(stream.for_each(|_| std::future::ready(())));
        reader.wait_until_ready().await.unwrap();
        churn(&client, "churn", 300).await;
        companion.kill();
        companion.restart().await;
        let client = companion.client().await;
        churn(&client, "again", 300).await;
        let wanted: BTreeMap<String, String> = names(&get(&client, MAPS).await.unwrap());
        let reader = &reader;
        eventually("the reflector holds the same", || async {
            let held: BTreeMap<String, String> = reader
                .state()
                .iter()
                .map(|map| {
                    let meta = map.metadata.clone();
                    (meta.name.unwrap(), meta.resource_version.unwrap())
                })
                .collect();
            (held == wanted).then_some(())
        })
        .await;
        following.abort();
        let all = Request::delete(MAPS).body(Vec::new()).unwrap();
        client.request::<Value>(all).await.unwrap();
    }
}

fn names(list: &Value) -> BTreeMap<String, String> {
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|object| {
            let meta = &object["metadata"];
            let text = |field: &str| meta[field].as_str().unwrap().to_owned();
            (text("name"), text("resourceVersion"))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_one_moment() {
    let companion = Companion::start(&["--no-controllers"]).await;
    let client = companion.client().await;
    for i in 0..25 {
        post(&client, MAPS, &config_map(&format!("page-{i:02}"))).await.unwrap();
    }
    let first = get(&client, &format!("{MAPS}?limit=10")).await.unwrap();
    assert_eq!(first["metadata"]["remainingItemCount"], 15);
    // What happens between two pages is not on them.
    let gone = Request::delete(format!("{MAPS}/page-20")).body(Vec::new()).unwrap();
    client.request::<Value>(gone).await.unwrap();
    post(&client, MAPS, &config_map("page-99")).await.unwrap();
    let mut seen: Vec<String> = names(&first).into_keys().collect();
    let mut token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    while !token.is_empty() {
        let page = get(&client, &format!("{MAPS}?limit=10&continue={token}")).await.unwrap();
        seen.extend(names(&page).into_keys());
        token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
    }
    let expected: Vec<String> = (0..25).map(|i| format!("page-{i:02}")).collect();
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_watchers_are_served_at_once() {
    let companion = Companion::start(&["--no-controllers"]).await;
    let client = companion.client().await;
    let from = revision(&get(&client, MAPS).await.unwrap());
    let started = Arc::new(Mutex::new(0));
    let watchers: Vec<_> = (0..1000)
        .map(|_| {
            let (client, started) = (client.clone(), Arc::clone(&started));
            tokio::spawn(async move {
                let path = format!("{MAPS}?watch=1&resourceVersion={from}");
                let request = Request::get(path).body(Vec::new()).unwrap();
                let lines = client.request_stream(request).await.unwrap();
                *started.lock().unwrap() += 1;
                let line = lines.lines().next().await.unwrap().unwrap();
                let event: Value = serde_json::from_str(&line).unwrap();
                assert_eq!(event["object"]["metadata"]["name"], "news");
            })
        })
        .collect();
    eventually("all are watching", || async { (*started.lock().unwrap() == 1000).then_some(()) })
        .await;
    post(&client, MAPS, &config_map("news")).await.unwrap();
    for watcher in watchers {
        watcher.await.unwrap();
    }
}
