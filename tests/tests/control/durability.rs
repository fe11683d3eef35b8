//! SIGKILL at random moments under load: nothing acknowledged is lost, nothing given out twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};

use crate::companion::{Companion, config_map, get, post};

/// Names that were acknowledged, and the revision each was acknowledged with.
type Acknowledged = Arc<Mutex<BTreeMap<String, u64>>>;

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

async fn write(client: Client, prefix: String, acknowledged: Acknowledged) {
    for i in 0.. {
        let name = format!("{prefix}-{i}");
        let (path, object) = if i % 2 == 0 {
            ("configmaps", config_map(&name))
        } else {
            let port = json!([{"port": 80}]);
            let spec = json!({"type": "NodePort", "ports": port});
            let meta = json!({"name": name});
            (
                "services",
                json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}),
            )
        };
        match post(&client, &format!("/api/v1/namespaces/default/{path}"), &object).await {
            Ok(made) => {
                let key = format!("{path}/{name}");
                acknowledged.lock().unwrap().insert(key, revision(&made));
            }
            Err(_) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_kills_lose_nothing_acknowledged() {
    let mut companion = Companion::start(&["--no-controllers"]).await;
    let acknowledged = Acknowledged::default();
    // Not random, so that a failure can be repeated; spread over the life of a batch.
    for (round, wait) in (0..30_u64).map(|round| (round, 5 + round * 37 % 120)) {
        let client = companion.client().await;
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let prefix = format!("r{round}-w{writer}");
                tokio::spawn(write(client.clone(), prefix, Arc::clone(&acknowledged)))
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(wait)).await;
        companion.kill();
        for writer in writers {
            writer.await.unwrap();
        }
        companion.restart().await;
    }

    let client = companion.client().await;
    let mut found = BTreeMap::new();
    let (mut ips, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for plural in ["configmaps", "services"] {
        let list = get(&client, &format!("/api/v1/namespaces/default/{plural}")).await.unwrap();
        for object in list["items"].as_array().unwrap() {
            let name = object["metadata"]["name"].as_str().unwrap();
            found.insert(format!("{plural}/{name}"), revision(object));
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
