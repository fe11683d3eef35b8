//! SIGKILL at random moments under load: nothing acknowledged is lost, nothing given out twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{AsyncBufReadExt, StreamExt};
use http::Request;
use kube::Client;
use serde_json::{Value, json};

use crate::companion::{Companion, config_map, get, post, revision};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SERVICES: &str = "/api/v1/namespaces/default/services";

/// Names that were acknowledged, and the revision each was acknowledged with.
type Acknowledged = Arc<Mutex<BTreeMap<String, u64>>>;

/// Makes objects, and Services that take addresses, until the server is gone; gives some back.
async fn write(client: Client, prefix: String, acknowledged: Acknowledged) {
    for i in 0.. {
        let name = format!("{prefix}-{i}");
        let (path, object) =
            if i % 2 == 0 { (MAPS, config_map(&name)) } else { (SERVICES, service(&name)) };
        let Ok(made) = post(&client, path, &object).await else { return };
        acknowledged.lock().unwrap().insert(format!("{path}/{name}"), revision(&made));
        if i % 8 == 7 {
            // Whether a deletion that is not answered has happened is not known: not counted.
            acknowledged.lock().unwrap().remove(&format!("{path}/{name}"));
            let delete = Request::delete(format!("{path}/{name}")).body(Vec::new()).unwrap();
            if client.request::<Value>(delete).await.is_err() {
                return;
            }
        }
    }
}

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"type": "NodePort", "ports": [{"port": 80}]}})
}

/// Follows config maps over every kill, resuming from the last revision it has seen.
async fn follow(companion: &Companion, mut from: u64, seen: &mut Vec<(String, u64)>, to: u64) {
    let client = companion.client().await;
    let path = format!("{MAPS}?watch=1&resourceVersion={from}");
    let lines = client.request_stream(Request::get(path).body(Vec::new()).unwrap()).await.unwrap();
    let mut lines = lines.lines();
    while from < to {
        let line = lines.next().await.unwrap().unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["type"], "ADDED", "{event}");
        let name = event["object"]["metadata"]["name"].as_str().unwrap();
        from = revision(&event["object"]);
        seen.push((format!("{MAPS}/{name}"), from));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_kills_lose_nothing_acknowledged() {
    let mut companion = Companion::start(&["--no-controllers"]).await;
    let acknowledged = Acknowledged::default();
    let mut from = revision(&get(&companion.client().await, MAPS).await.unwrap());
    let mut seen = Vec::new();
    // After so many writes of a round: not random, so that a failure can be repeated, and spread.
    for (round, n) in (0..30).map(|round| (round, 3 + round * 37 % 40)) {
        let client = companion.client().await;
        let before = acknowledged.lock().unwrap().len();
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let prefix = format!("r{round}-w{writer}");
                tokio::spawn(write(client.clone(), prefix, Arc::clone(&acknowledged)))
            })
            .collect();
        while acknowledged.lock().unwrap().len() < before + n {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        companion.kill();
        for writer in writers {
            writer.await.unwrap();
        }
        companion.restart().await;
        let maps = get(&companion.client().await, MAPS).await.unwrap();
        let last = maps["items"].as_array().unwrap().iter().map(revision).max().unwrap_or(from);
        follow(&companion, from, &mut seen, last).await;
        from = last;
    }
    resumed_without_a_gap(&seen, &acknowledged);
    nothing_is_lost_or_given_twice(&companion, &acknowledged).await;
}

/// What was acknowledged came in order, each once, however often the watch was cut.
fn resumed_without_a_gap(seen: &[(String, u64)], acknowledged: &Acknowledged) {
    assert!(seen.is_sorted_by(|(_, a), (_, b)| a < b), "in order, and none twice");
    let seen: BTreeMap<&str, u64> = seen.iter().map(|(name, at)| (name.as_str(), *at)).collect();
    for (name, revision) in acknowledged.lock().unwrap().iter() {
        if name.starts_with(MAPS) {
            assert_eq!(seen.get(name.as_str()), Some(revision), "{name}");
        }
    }
}

async fn nothing_is_lost_or_given_twice(companion: &Companion, acknowledged: &Acknowledged) {
    let client = companion.client().await;
    let mut found = BTreeMap::new();
    let (mut ips, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for path in [MAPS, SERVICES] {
        let list = get(&client, path).await.unwrap();
        for object in list["items"].as_array().unwrap() {
            let name = object["metadata"]["name"].as_str().unwrap();
            found.insert(format!("{path}/{name}"), revision(object));
            if let Some(ip) = object["spec"]["clusterIP"].as_str() {
                assert!(ips.insert(ip.to_owned()), "{ip} was given out twice");
            }
            if let Some(port) = object["spec"]["ports"][0]["nodePort"].as_u64() {
                assert!(ports.insert(port), "node port {port} was given out twice");
            }
        }
    }
    let acknowledged = acknowledged.lock().unwrap().clone();
    assert!(acknowledged.len() > 300, "only {} writes", acknowledged.len());
    for (name, revision) in &acknowledged {
        assert_eq!(found.get(name), Some(revision), "{name}");
    }
    let addresses = get(&client, "/apis/networking.k8s.io/v1/ipaddresses").await.unwrap();
    let held: BTreeSet<String> = addresses["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|address| address["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(held, ips, "every address is held by a Service, and every Service's is held");
}
