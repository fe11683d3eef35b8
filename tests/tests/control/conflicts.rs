//! Two Services that claim one address: who wins, and how the loser hears of it.

use std::path::Path;
use std::sync::Arc;

use kube::Client;
use model::name::Protocol;
use model::source::kube::{Connection, KubeConfig, Selection};
use model::watch::{self, Watch};
use proxy::backend::fake::Fake;
use proxy::config::NodeConfig;
use proxy::notices;
use proxy::plan::{At, FrontendKey};
use proxy::sync::Syncer;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::companion::{Companion, eventually, get, post};

const SHARED: &str = "203.0.113.7";

/// The proxy of one node, on a backend in memory, that goes on until it is dropped.
struct Proxy {
    winner: String,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Starts it, and waits until it knows who has the address.
    async fn start(kubeconfig: &Path, node: &str) -> Self {
        let kube_config =
            KubeConfig { kubeconfig: Some(kubeconfig.to_owned()), ..KubeConfig::default() };
        let connection = Connection::find(&kube_config).await.unwrap();
        let Watch { mut feed, notices, task, .. } =
            watch::kube(connection, node, Selection::for_proxy());
        let mut tasks = JoinSet::new();
        tasks.spawn(task);
        let config = NodeConfig::new(node);
        let everything = Arc::new(|_: &_| Ok(()));
        let mut syncer =
            Syncer::new(Fake::default(), config, everything, Box::new(|_| Ok(()))).unwrap();
        let at = At::Address(SHARED.parse().unwrap());
        let key = FrontendKey { at, port: 80, protocol: Protocol::Tcp };
        loop {
            let update = feed.next().await.unwrap();
            let round = syncer.update(&update).unwrap();
            notices.set(notices::of(&round));
            if let Some(frontend) = round.plan.frontends.get(&key)
                && !round.plan.conflicts.is_empty()
            {
                let winner = frontend.service.service.name.to_string();
                return Self { winner, _tasks: tasks };
            }
        }
    }
}

async fn claim(client: &Client, name: &str) -> Value {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"externalIPs": [SHARED], "ports": [{"port": 80}]},
    });
    post(client, "/api/v1/namespaces/default/services", &service).await.unwrap()
}

/// What is said about a Service, ordered by who says it.
async fn told(client: &Client, service: &str) -> Vec<Value> {
    let path = format!(
        "/apis/events.k8s.io/v1/namespaces/default/events?fieldSelector=regarding.name={service}"
    );
    let mut events = get(client, &path).await.unwrap()["items"].as_array().unwrap().clone();
    events.sort_by_key(|event| event["reportingInstance"].to_string());
    events
}

fn explained(kubeconfig: &Path, node: &str) -> Value {
    let output = std::process::Command::new(tests::binary::fairlead())
        .args(["explain", "192.0.2.1", &format!("{SHARED}:80/tcp"), "-o", "json"])
        .args(["--bpffs", "/nonexistent/fairlead", "--hostname-override", node, "--kubeconfig"])
        .arg(kubeconfig)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn the_same_service_wins_on_every_node_and_after_a_restart_and_the_loser_is_told() {
    let companion = Companion::start(&["--no-controllers"]).await;
    let (client, kubeconfig) = (companion.client().await, companion.kubeconfig());
    let mut claims = [claim(&client, "zeta").await, claim(&client, "alpha").await];
    // The older wins; of one second, the first by name.
    let order = |service: &Value| {
        let metadata = &service["metadata"];
        (metadata["creationTimestamp"].to_string(), metadata["name"].to_string())
    };
    claims.sort_by_key(order);
    let [winner, loser] =
        [0, 1].map(|idx: usize| claims[idx]["metadata"]["name"].as_str().unwrap().to_owned());

    let a = Proxy::start(&kubeconfig, "node-a").await;
    let b = Proxy::start(&kubeconfig, "node-b").await;
    assert_eq!([&a.winner, &b.winner], [&winner, &winner]);
    let events = eventually("both nodes tell the loser", async || {
        Some(told(&client, &loser).await).filter(|events| events.len() == 2)
    })
    .await;
    for (event, node) in events.iter().zip(["node-a", "node-b"]) {
        assert_eq!(event["reason"], "AddressConflict", "{event}");
        assert_eq!(event["type"], "Warning", "{event}");
        assert_eq!(event["reportingInstance"], node, "{event}");
        assert_eq!(event["regarding"]["kind"], "Service", "{event}");
        assert_eq!(event["regarding"]["uid"], claims[1]["metadata"]["uid"], "{event}");
        assert_eq!(
            event["note"],
            format!(
                "spec.externalIPs: {SHARED}:80/tcp is already served for Service default/{winner} \
                 (external-ip); remove it from one of the two"
            )
        );
    }

    drop(a);
    let again = Proxy::start(&kubeconfig, "node-a").await;
    assert_eq!(again.winner, winner);
    let counts = eventually("the restarted node tells it once more", async || {
        let events = told(&client, &loser).await;
        let counts: Vec<Value> = events.iter().map(|it| it["series"]["count"].clone()).collect();
        (counts != [Value::Null, Value::Null]).then_some(counts)
    })
    .await;
    assert_eq!(counts, [json!(2), Value::Null], "it adds no Event of its own");
    assert_eq!(told(&client, &winner).await, Vec::<Value>::new());

    for node in ["node-a", "node-b"] {
        let explained = explained(&kubeconfig, node);
        assert_eq!(explained["service"], format!("default/{winner}"), "{explained}");
        assert!(explained["why"].to_string().contains(&loser), "{explained}");
    }
}
