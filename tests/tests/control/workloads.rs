//! What controllers bring about, with nodes that do as they are told.

use serde_json::{Value, json};

use crate::companion::{Companion, Nodes, eventually, failed, get, merge, post, ready, succeeded};

const APPS: &str = "/apis/apps/v1/namespaces/default";
const BATCH: &str = "/apis/batch/v1/namespaces/default";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn template(image: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": "x"}},
        "spec": {"containers": [{"name": "c", "image": image, "ports": [{"containerPort": 80}]}]},
    })
}

fn workload(kind: &str, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "x"},
        "spec": {"selector": {"matchLabels": {"app": "x"}}, "template": template("a:1")},
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

async fn pods(client: &kube::Client) -> Vec<Value> {
    get(client, PODS).await.unwrap()["items"].as_array().unwrap().clone()
}

fn images(pods: &[Value]) -> Vec<String> {
    let mut all: Vec<String> = pods
        .iter()
        .map(|pod| {
            let image = pod["spec"]["containers"][0]["image"].as_str().unwrap();
            format!("{} {image}", pod["metadata"]["name"].as_str().unwrap())
        })
        .collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_hold_a_hundred_endpoints_each() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    let _nodes = Nodes::start(&client, &["n1", "n2"], ready).await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"},
        "spec": {"selector": {"app": "x"}, "trafficDistribution": "PreferClose", "ports": [{"port": 80}]}});
    post(&client, "/api/v1/namespaces/default/services", &service).await.unwrap();
    let set = workload("ReplicaSet", &json!({"replicas": 0}));
    post(&client, &format!("{APPS}/replicasets"), &set).await.unwrap();
    for (n, most) in [(100, 1), (101, 2), (250, 4), (20, 4)] {
        let scale = json!({"spec": {"replicas": n}});
        merge(&client, &format!("{APPS}/replicasets/x/scale"), &scale).await.unwrap();
        let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices\
                    ?labelSelector=kubernetes.io%2Fservice-name%3Dx";
        let slices = eventually(&format!("{n} endpoints"), || async {
            let slices = get(&client, path).await.unwrap()["items"].as_array().unwrap().clone();
            let of = |slice: &Value| slice["endpoints"].as_array().map_or(0, Vec::len);
            let mut sizes: Vec<usize> = slices.iter().map(of).collect();
            sizes.sort_unstable();
            let ready = slices.iter().flat_map(|slice| slice["endpoints"].as_array().unwrap());
            let all_ready = ready.into_iter().all(|one| one["conditions"]["ready"] == true);
            // How full the last ones are depends on how many came at a time.
            let fits = sizes.iter().sum::<usize>() == n
                && sizes.len() <= most
                && sizes.iter().all(|size| *size <= 100);
            (fits && all_ready).then_some(slices)
        })
        .await;
        let endpoint = &slices[0]["endpoints"][0];
        let zone = endpoint["zone"].as_str().unwrap();
        assert!(zone.starts_with("zone-n"), "{endpoint}");
        assert_eq!(endpoint["hints"]["forZones"][0]["name"], zone);
        assert_eq!(endpoint["targetRef"]["kind"], "Pod");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_keeps_names_order_and_partition() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    let _nodes = Nodes::start(&client, &["n1"], ready).await;
    let path = format!("{APPS}/statefulsets");
    let set = workload("StatefulSet", &json!({"replicas": 3, "serviceName": "x"}));
    post(&client, &path, &set).await.unwrap();
    let status = |field: &'static str, n: i64| {
        let (client, path) = (client.clone(), path.clone());
        move || {
            let (client, path) = (client.clone(), path.clone());
            async move {
                let set = get(&client, &format!("{path}/x")).await.unwrap();
                (set["status"][field].as_i64() == Some(n)).then_some(set)
            }
        }
    };
    eventually("three are ready", status("readyReplicas", 3)).await;
    let all = pods(&client).await;
    assert_eq!(images(&all), ["x-0 a:1", "x-1 a:1", "x-2 a:1"]);
    let revision =
        |pod: &Value| pod["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(all.iter().map(revision).is_sorted(), "each after the one before");

    let update = json!({"spec": {"template": template("a:2"),
        "updateStrategy": {"rollingUpdate": {"partition": 2}}}});
    merge(&client, &format!("{path}/x"), &update).await.unwrap();
    eventually("the one above the partition is updated", || async {
        let all = pods(&client).await;
        let ready = all.iter().filter(|pod| pod["status"]["phase"] == "Running").count();
        (ready == 3 && images(&all) == ["x-0 a:1", "x-1 a:1", "x-2 a:2"]).then_some(())
    })
    .await;
    let rest = json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}});
    merge(&client, &format!("{path}/x"), &rest).await.unwrap();
    eventually("all are updated", || async {
        (images(&pods(&client).await) == ["x-0 a:2", "x-1 a:2", "x-2 a:2"]).then_some(())
    })
    .await;
    merge(&client, &format!("{path}/x"), &json!({"spec": {"replicas": 1}})).await.unwrap();
    eventually("the first is left", || async {
        (images(&pods(&client).await) == ["x-0 a:2"]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_set_is_on_every_node_that_suits() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    let _nodes = Nodes::start(&client, &["n1", "n2", "n3"], ready).await;
    let taint = json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
    merge(&client, "/api/v1/nodes/n3", &taint).await.unwrap();
    let set = workload("DaemonSet", &json!({}));
    post(&client, &format!("{APPS}/daemonsets"), &set).await.unwrap();
    let on = || async {
        let all = pods(&client).await;
        let mut nodes: Vec<String> =
            all.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str().map(Into::into)).collect();
        nodes.sort();
        nodes
    };
    eventually("two nodes suit", || async { (on().await == ["n1", "n2"]).then_some(()) }).await;
    merge(&client, "/api/v1/nodes/n3", &json!({"spec": {"taints": null}})).await.unwrap();
    eventually("three nodes suit", || async { (on().await.len() == 3).then_some(()) }).await;
    let update = json!({"spec": {"template": template("a:2")}});
    merge(&client, &format!("{APPS}/daemonsets/x"), &update).await.unwrap();
    eventually("all are updated", || async {
        let all = pods(&client).await;
        let new = all.iter().all(|pod| pod["spec"]["containers"][0]["image"] == "a:2");
        (all.len() == 3 && new).then_some(())
    })
    .await;
}

fn job(spec: &Value) -> Value {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"},
        "spec": {"template": template("a:1")},
    });
    job["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
    for (key, value) in spec.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    job
}

async fn job_condition(client: &kube::Client, form: &'static str) -> Value {
    eventually(form, || async {
        let job = get(client, &format!("{BATCH}/jobs/j")).await.unwrap();
        let conditions = job["status"]["conditions"].as_array()?.clone();
        let holds = conditions.iter().any(|one| one["type"] == form && one["status"] == "True");
        holds.then_some(job)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_indexed_job_completes_every_index_once() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    let _nodes = Nodes::start(&client, &["n1"], succeeded).await;
    let spec = json!({"completions": 5, "parallelism": 2, "completionMode": "Indexed"});
    post(&client, &format!("{BATCH}/jobs"), &job(&spec)).await.unwrap();
    let job = job_condition(&client, "Complete").await;
    assert_eq!(job["status"]["succeeded"], 5);
    assert_eq!(job["status"]["completedIndexes"], "0-4");
    assert_eq!(pods(&client).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_too_often_has_failed() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    let _nodes = Nodes::start(&client, &["n1"], failed).await;
    post(&client, &format!("{BATCH}/jobs"), &job(&json!({"backoffLimit": 0}))).await.unwrap();
    let job = job_condition(&client, "Failed").await;
    assert_eq!((&job["status"]["failed"], &job["status"]["active"]), (&json!(1), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_job_makes_up_for_the_last_missed_run_once() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    let _nodes = Nodes::start(&client, &["n1"], succeeded).await;
    let spec = job(&json!({}))["spec"].clone();
    let cron = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "c"},
        "spec": {"schedule": "* * * * *", "suspend": true, "jobTemplate": {"spec": spec}},
    });
    let path = format!("{BATCH}/cronjobs");
    post(&client, &path, &cron).await.unwrap();
    // As if it had run an hour ago and been away since.
    let hour_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1);
    let status = json!({"status": {"lastScheduleTime": hour_ago.strftime("%Y-%m-%dT%H:%M:00Z").to_string()}});
    merge(&client, &format!("{path}/c/status"), &status).await.unwrap();
    merge(&client, &format!("{path}/c"), &json!({"spec": {"suspend": false}})).await.unwrap();
    let jobs = eventually("the job of the last run", || async {
        let jobs = get(&client, &format!("{BATCH}/jobs")).await.unwrap();
        let jobs = jobs["items"].as_array().unwrap().clone();
        (!jobs.is_empty()).then_some(jobs)
    })
    .await;
    assert!(jobs.len() <= 2, "not sixty: {}", jobs.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_job_forgets_a_run_that_is_too_late_and_waits_for_the_one_that_lasts() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    let _nodes = Nodes::start(&client, &["n1"], ready).await;
    let spec = job(&json!({}))["spec"].clone();
    let cron = |name: &str, more: &Value| {
        let mut cron = json!({
            "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name},
            "spec": {"schedule": "* * * * *", "suspend": true, "jobTemplate": {"spec": spec}},
        });
        cron["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        cron
    };
    let path = format!("{BATCH}/cronjobs");
    let yearly = json!({"schedule": "0 0 1 1 *", "startingDeadlineSeconds": 10});
    post(&client, &path, &cron("late", &yearly)).await.unwrap();
    post(&client, &path, &cron("alone", &json!({"concurrencyPolicy": "Forbid"}))).await.unwrap();
    let long_ago = json!({"status": {"lastScheduleTime": "2020-01-01T00:00:00Z"}});
    let go = json!({"spec": {"suspend": false}});
    for name in ["late", "alone"] {
        merge(&client, &format!("{path}/{name}/status"), &long_ago).await.unwrap();
        merge(&client, &format!("{path}/{name}"), &go).await.unwrap();
    }
    let jobs = || async {
        let jobs = get(&client, &format!("{BATCH}/jobs")).await.unwrap();
        let names =
            jobs["items"].as_array().unwrap().iter().map(|job| {
                job["metadata"]["ownerReferences"][0]["name"].as_str().unwrap().to_owned()
            });
        names.collect::<Vec<_>>()
    };
    eventually("one run of the one", || async { (jobs().await == ["alone"]).then_some(()) }).await;
    // Its job lasts, so another missed run is not begun beside it.
    merge(&client, &format!("{path}/alone/status"), &long_ago).await.unwrap();
    let seen = || async {
        let events = get(&client, "/api/v1/namespaces/default/events").await.unwrap();
        let mut all = events["items"].as_array().unwrap().iter();
        all.any(|event| event["reason"] == "JobAlreadyActive").then_some(())
    };
    eventually("it is said", seen).await;
    assert_eq!(jobs().await, ["alone"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_deployment_is_scaled_and_not_updated() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    let _nodes = Nodes::start(&client, &["n1"], ready).await;
    let path = format!("{APPS}/deployments");
    let deployment = workload("Deployment", &json!({"replicas": 2}));
    post(&client, &path, &deployment).await.unwrap();
    let have = |n: usize, image: &'static str| {
        let client = client.clone();
        move || {
            let client = client.clone();
            async move {
                let all = pods(&client).await;
                let same = all.iter().all(|pod| pod["spec"]["containers"][0]["image"] == image);
                (all.len() == n && same).then_some(())
            }
        }
    };
    eventually("two pods", have(2, "a:1")).await;
    let change = json!({"spec": {"paused": true, "replicas": 4, "template": template("a:2")}});
    merge(&client, &format!("{path}/x"), &change).await.unwrap();
    eventually("four of the old ones", have(4, "a:1")).await;
    let change = json!({"spec": {"paused": false}});
    merge(&client, &format!("{path}/x"), &change).await.unwrap();
    eventually("four of the new ones", have(4, "a:2")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_so_many_at_once_and_no_longer_than_it_may() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    let _nodes = Nodes::start(&client, &["n1"], ready).await;
    let limits = json!({"completions": 9, "parallelism": 3, "activeDeadlineSeconds": 2});
    post(&client, &format!("{BATCH}/jobs"), &job(&limits)).await.unwrap();
    eventually("three at once", || async { (pods(&client).await.len() == 3).then_some(()) }).await;
    let job = job_condition(&client, "Failed").await;
    let conditions = job["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|one| one["reason"] == "DeadlineExceeded"), "{conditions:?}");
    eventually("none is left", || async { pods(&client).await.is_empty().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_takes_along_what_it_owns() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    let _nodes = Nodes::start(&client, &["n1"], ready).await;
    let deployment = workload("Deployment", &json!({"replicas": 2}));
    post(&client, &format!("{APPS}/deployments"), &deployment).await.unwrap();
    eventually("its pods", || async { (pods(&client).await.len() == 2).then_some(()) }).await;
    let mut delete = http::Request::delete(format!("{APPS}/deployments/x"));
    delete = delete.header("content-type", "application/json");
    let body =
        json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"});
    let delete = delete.body(body.to_string().into_bytes()).unwrap();
    client.request::<Value>(delete).await.unwrap();
    eventually("all are gone", || async {
        let sets = get(&client, &format!("{APPS}/replicasets")).await.unwrap();
        let gone = get(&client, &format!("{APPS}/deployments/x")).await.is_err();
        let empty = sets["items"].as_array().unwrap().is_empty();
        (gone && empty && pods(&client).await.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn controllers_killed_at_any_moment_come_to_the_same_end() {
    let mut companion = Companion::start(&[]).await;
    let client = companion.client().await;
    let nodes = Nodes::start(&client, &["n1", "n2"], ready).await;
    let deployment = workload("Deployment", &json!({"replicas": 6}));
    post(&client, &format!("{APPS}/deployments"), &deployment).await.unwrap();
    for (i, wait) in [30_u64, 110, 60, 200, 90, 150, 45, 300].into_iter().enumerate() {
        let change = json!({"spec": {"replicas": 4 + i, "template": template(&format!("a:{i}"))}});
        merge(&client, &format!("{APPS}/deployments/x"), &change).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(wait)).await;
        companion.kill();
        companion.restart().await;
    }
    eventually("eleven pods of the last template, and no other", || async {
        let deployment = get(&client, &format!("{APPS}/deployments/x")).await.ok()?;
        let all = pods(&client).await;
        let last = all.iter().all(|pod| pod["spec"]["containers"][0]["image"] == "a:7");
        let counts = deployment["status"]["availableReplicas"] == 11
            && deployment["status"]["replicas"] == 11;
        (all.len() == 11 && last && counts).then_some(())
    })
    .await;
    drop(nodes);
}
