//! Whatever is asked, and whenever the controllers die: what comes of it is the same.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::Client;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::companion::{Companion, Nodes, eventually, get, merge, post, ready};

const APPS: &str = "/apis/apps/v1/namespaces/default";
const BATCH: &str = "/apis/batch/v1/namespaces/default";
const CORE: &str = "/api/v1/namespaces/default";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// Something that somebody asks for.
#[derive(Clone, Debug)]
enum Ask {
    Scale(&'static str, u8),
    Image(&'static str, u8),
    Pause(bool),
    DeletePods,
    Taint(bool),
    Job(u8),
    Select(bool),
}

/// What is asked, how long nobody asks for more (ms), and whether the controllers die then.
type Step = (Ask, u64, bool);

fn step() -> impl Strategy<Value = Step> {
    let workload = prop_oneof![Just("deployments"), Just("statefulsets"), Just("replicasets")];
    let updated = prop_oneof![Just("deployments"), Just("statefulsets"), Just("daemonsets")];
    let ask = prop_oneof![
        3 => (workload, 0..6_u8).prop_map(|(kind, n)| Ask::Scale(kind, n)),
        3 => (updated, 1..4_u8).prop_map(|(kind, n)| Ask::Image(kind, n)),
        1 => any::<bool>().prop_map(Ask::Pause),
        1 => Just(Ask::DeletePods),
        1 => any::<bool>().prop_map(Ask::Taint),
        1 => (1..4_u8).prop_map(Ask::Job),
        1 => any::<bool>().prop_map(Ask::Select),
    ];
    (ask, 0..250_u64, prop::bool::weighted(0.7))
}

#[test]
fn controllers_that_die_come_to_the_same_end_as_those_that_live() {
    check(2);
}

mod long {
    #[test]
    fn controllers_that_die_come_to_the_same_end_in_thirty_histories() {
        super::check(30);
    }
}

fn check(cases: u32) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = Config {
        cases,
        max_shrink_iters: 4,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let result = runner.run(&prop::collection::vec(step(), 4..14), |steps| {
        runtime.block_on(compare(&steps));
        Ok(())
    });
    result.unwrap();
}

async fn compare(steps: &[Step]) {
    let living = World::new().await;
    let dying = World::new().await;
    let mut alive = living.controllers();
    let mut mortal = dying.controllers();
    // A deployment that is paused before its first replica set is there never gets one, so the end
    // is a function of what is asked only from here on,
    living.begun().await;
    dying.begun().await;
    for (number, (ask, pause, kill)) in steps.iter().enumerate() {
        living.ask(ask, number).await;
        dying.ask(ask, number).await;
        tokio::time::sleep(Duration::from_millis(*pause)).await;
        if *kill {
            // Wherever they are: between two requests, or with one on its way.
            mortal.abort();
            _ = (&mut mortal).await;
            mortal = dying.controllers();
        }
    }
    // and only once nothing is held back: how far a pause or a taint let things come is a matter
    // of time.
    for ask in [Ask::Pause(false), Ask::Taint(false)] {
        living.ask(&ask, steps.len()).await;
        dying.ask(&ask, steps.len()).await;
    }
    let wanted = living.settled().await;
    eventually(&format!("{wanted:#?}, as without a death"), || async {
        (dying.state().await == wanted).then_some(())
    })
    .await;
    assert_eq!(dying.settled().await, wanted, "and stays so");
    alive.abort();
    mortal.abort();
    _ = (&mut alive).await;
    _ = (&mut mortal).await;
}

/// A server with nodes and workloads, and controllers apart from it.
struct World {
    companion: Companion,
    client: Client,
    _nodes: Nodes,
}

impl World {
    async fn new() -> Self {
        let companion = Companion::start(&["--no-controllers"]).await;
        let client = companion.client().await;
        let nodes = Nodes::start(&client, &["n1", "n2"], ready).await;
        for (path, object) in workloads() {
            post(&client, &path, &object).await.unwrap();
        }
        Self { companion, client, _nodes: nodes }
    }

    /// Controllers that die when their task is aborted.
    fn controllers(&self) -> tokio::task::JoinHandle<()> {
        let kubeconfig = std::fs::read_to_string(self.companion.kubeconfig()).unwrap();
        tokio::spawn(async move {
            controllers::run(&kubeconfig, Vec::new(), CancellationToken::new()).await.unwrap();
        })
    }

    /// Waits until every workload is there and ready.
    async fn begun(&self) {
        eventually("a state to begin from", || async {
            let state = self.state().await;
            let two = |kind: &str, field: &str| state[&format!("{APPS}/{kind}/{kind}")][field] == 2;
            let sets = ["deployments", "statefulsets", "replicasets"];
            let ready = sets.iter().all(|kind| two(kind, "readyReplicas"))
                && two("daemonsets", "numberReady")
                && state["ready endpoints"] == 2;
            ready.then_some(())
        })
        .await;
    }

    async fn ask(&self, ask: &Ask, number: usize) {
        let client = &self.client;
        let spec = |spec: Value| json!({"spec": spec});
        match ask {
            Ask::Scale(kind, n) => {
                let body = spec(json!({"replicas": n}));
                merge(client, &format!("{APPS}/{kind}/{kind}"), &body).await.unwrap();
            }
            Ask::Image(kind, n) => {
                let body = spec(json!({"template": template(kind, *n)}));
                merge(client, &format!("{APPS}/{kind}/{kind}"), &body).await.unwrap();
            }
            Ask::Pause(on) => {
                let body = spec(json!({"paused": on}));
                merge(client, &format!("{APPS}/deployments/deployments"), &body).await.unwrap();
            }
            Ask::DeletePods => {
                let path = format!("{CORE}/pods?labelSelector=app%3Ddeployments");
                let delete = http::Request::delete(path).body(Vec::new()).unwrap();
                client.request::<Value>(delete).await.unwrap();
            }
            Ask::Taint(on) => {
                let taint = json!([{"key": "k", "effect": "NoSchedule"}]);
                let body = spec(json!({"taints": if *on { taint } else { Value::Null }}));
                merge(client, "/api/v1/nodes/n2", &body).await.unwrap();
            }
            Ask::Job(n) => {
                let spec =
                    json!({"completions": n, "parallelism": 2, "template": template("jobs", 1)});
                let mut job = json!({"apiVersion": "batch/v1", "kind": "Job",
                    "metadata": {"name": format!("job-{number}")}, "spec": spec});
                job["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
                post(client, &format!("{BATCH}/jobs"), &job).await.unwrap();
            }
            Ask::Select(deployment) => {
                let app = if *deployment { "deployments" } else { "statefulsets" };
                let body = spec(json!({"selector": {"app": app}}));
                merge(client, &format!("{CORE}/services/service"), &body).await.unwrap();
            }
        }
    }

    /// The state, once nothing has been written for a while.
    async fn settled(&self) -> BTreeMap<String, Value> {
        let revision = || async {
            let list = get(&self.client, &format!("{CORE}/configmaps?limit=1")).await.unwrap();
            list["metadata"]["resourceVersion"].clone()
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        let mut last = revision().await;
        loop {
            tokio::time::sleep(Duration::from_millis(1200)).await;
            let now = revision().await;
            if now == last {
                return self.state().await;
            }
            assert!(std::time::Instant::now() < deadline, "it does not come to rest");
            last = now;
        }
    }

    /// What there is, without what may differ: names drawn at random, times, revisions.
    async fn state(&self) -> BTreeMap<String, Value> {
        let mut state = BTreeMap::new();
        for kind in ["deployments", "statefulsets", "replicasets", "daemonsets"] {
            let path = format!("{APPS}/{kind}/{kind}");
            let mut status = get(&self.client, &path).await.unwrap()["status"].take();
            // Revisions are numbered and named by what has been, and that may differ.
            const DIFFER: [&str; 5] = [
                "conditions",
                "observedGeneration",
                "collisionCount",
                "currentRevision",
                "updateRevision",
            ];
            if let Some(status) = status.as_object_mut() {
                status.retain(|field, _| !DIFFER.contains(&field.as_str()));
            }
            state.insert(path, status);
        }
        let pods = get(&self.client, &format!("{CORE}/pods")).await.unwrap();
        let mut by_kind: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pod in pods["items"].as_array().unwrap() {
            let app = pod["metadata"]["labels"]["app"].as_str().unwrap();
            let name = match app {
                "statefulsets" => pod["metadata"]["name"].as_str().unwrap(),
                "daemonsets" => pod["spec"]["nodeName"].as_str().unwrap_or_default(),
                _ => "",
            };
            let image = pod["spec"]["containers"][0]["image"].as_str().unwrap();
            let phase = pod["status"]["phase"].as_str().unwrap_or_default();
            by_kind.entry(app.into()).or_default().push(format!("{name} {image} {phase}"));
        }
        for (app, mut pods) in by_kind {
            pods.sort();
            state.insert(format!("pods of {app}"), json!(pods));
        }
        let slices = get(&self.client, SLICES).await.unwrap();
        let of_service =
            |slice: &&Value| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "service";
        let endpoints = slices["items"].as_array().unwrap().iter().filter(of_service);
        let mut ready: Vec<&Value> = endpoints
            .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten())
            .collect();
        ready.retain(|one| one["conditions"]["ready"] == true);
        state.insert("ready endpoints".into(), json!(ready.len()));
        state
    }
}

fn template(app: &str, image: u8) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"containers": [{"name": "c", "image": format!("a:{image}")}]},
    })
}

fn workloads() -> Vec<(String, Value)> {
    let workload = |kind: &str, plural: &str| {
        let mut object = json!({
            "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": plural},
            "spec": {
                "replicas": 2, "selector": {"matchLabels": {"app": plural}},
                "template": template(plural, 1),
            },
        });
        if kind == "StatefulSet" {
            object["spec"]["serviceName"] = json!("service");
        }
        if kind == "DaemonSet" {
            object["spec"].as_object_mut().unwrap().remove("replicas");
        }
        (format!("{APPS}/{plural}"), object)
    };
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "service"},
        "spec": {"selector": {"app": "deployments"}, "ports": [{"port": 80}]}});
    vec![
        workload("Deployment", "deployments"),
        workload("StatefulSet", "statefulsets"),
        workload("ReplicaSet", "replicasets"),
        workload("DaemonSet", "daemonsets"),
        (format!("{CORE}/services"), service),
    ]
}
