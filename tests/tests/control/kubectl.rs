//! kubectl itself, Debian's 1.20 and 1.32: every verb that the companion promises.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::companion::{Companion, Nodes, eventually, get, merge, ready};

/// One kubectl against one companion.
#[derive(Clone)]
struct Kubectl<'a> {
    program: PathBuf,
    companion: &'a Companion,
}

/// The kubectls to try.
fn programs() -> impl Iterator<Item = PathBuf> {
    tests::binary::kubectls().into_iter().map(|(_, program)| program)
}

impl Kubectl<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--kubeconfig")
            .arg(self.companion.kubeconfig())
            .arg("--cache-dir")
            .arg(self.companion.dir().join("cache"))
            .args(args)
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .current_dir(self.companion.dir());
        command
    }

    async fn output(&self, args: &[&str]) -> Output {
        let mut command = self.command(args);
        let running = tokio::task::spawn_blocking(move || command.output());
        let output = tokio::time::timeout(Duration::from_secs(60), running).await;
        let output = output.unwrap_or_else(|_| panic!("{args:?} does not end")).unwrap();
        output.expect("kubectl runs")
    }

    /// Runs a command that must succeed; gives what it printed.
    async fn run(&self, line: &str) -> String {
        let args: Vec<&str> = line.split(' ').collect();
        let output = self.output(&args).await;
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{} {line}: {out}{err}", self.program.display());
        out
    }

    /// Runs a command that must fail; gives its complaint.
    async fn refused(&self, line: &str) -> String {
        let args: Vec<&str> = line.split(' ').collect();
        let output = self.output(&args).await;
        assert!(!output.status.success(), "{line}: {}", text(&output.stdout));
        text(&output.stderr)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

const MANIFEST: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: ap, labels: {tier: back}}
spec:
  replicas: 2
  selector: {matchLabels: {app: ap}}
  template:
    metadata: {labels: {app: ap}}
    spec:
      containers:
      - {name: c, image: 'a:1', ports: [{containerPort: 80}], env: [{name: A, value: one}]}
---
apiVersion: v1
kind: Service
metadata: {name: ap}
spec: {selector: {app: ap}, ports: [{port: 80}]}
";

fn write_manifests(dir: &Path) {
    std::fs::write(dir.join("one.yaml"), MANIFEST).unwrap();
    let two = MANIFEST.replace("a:1", "a:2").replace("value: one", "value: two");
    std::fs::write(dir.join("two.yaml"), two.replace(", labels: {tier: back}", "")).unwrap();
    std::fs::write(dir.join("typo.yaml"), MANIFEST.replace("replicas", "replicaz")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn deployments_are_made_exposed_scaled_updated_and_undone() {
    for program in programs() {
        let companion = Companion::start(&[]).await;
        let client = companion.client().await;
        let _nodes = Nodes::start(&client, &["n1", "n2"], ready).await;
        let kubectl = Kubectl { program, companion: &companion };
        kubectl.run("create deployment web --image=nginx:1.25").await;
        kubectl.run("scale deployment web --replicas=3").await;
        kubectl.run("rollout status deployment web --timeout=30s").await;
        has(&kubectl.run("get deployment web -o wide").await, &["3/3", "nginx:1.25", "app=web"]);
        kubectl.run("expose deployment web --port=80 --target-port=8080").await;
        eventually("its endpoints", || async {
            let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices\
                        ?labelSelector=kubernetes.io%2Fservice-name%3Dweb";
            let slices = get(&client, path).await.unwrap();
            let endpoints = slices["items"][0]["endpoints"].as_array()?.clone();
            (endpoints.len() == 3).then_some(())
        })
        .await;
        let service = kubectl.run("describe service web").await;
        has(&service, &["Type:", "ClusterIP", "app=web", "8080/TCP", "10.9."]);
        let pods = kubectl.run("get pods -o wide").await;
        has(&pods, &["1/1"].map(|_| "Running"));
        has(&pods, &["NOMINATED NODE", "10.9.0.", "n1", "n2"]);

        kubectl.run("set image deployment/web nginx=nginx:1.26").await;
        kubectl.run("rollout status deployment/web --timeout=30s").await;
        has(
            &kubectl.run("describe deployment web").await,
            &["nginx:1.26", "Available", "ScalingReplicaSet", "RollingUpdateStrategy"],
        );
        kubectl.run("rollout undo deployment/web").await;
        kubectl.run("rollout status deployment/web --timeout=30s").await;
        has(&kubectl.run("get deployment web -o wide").await, &["3/3", "nginx:1.25"]);
        has(&kubectl.run("rollout history deployment/web").await, &["2", "3"]);

        kubectl.run("wait --for=condition=Available deployment/web --timeout=20s").await;
        has(&kubectl.run("describe node n1").await, &["topology.kubernetes.io/zone", "web-"]);
        has(&kubectl.run("describe pods").await, &["Controlled By:", "nginx:1.25", "Scheduled"]);
        kubectl.run("delete deployment web").await;
        eventually("its pods are gone", || async {
            let pods = get(&client, "/api/v1/namespaces/default/pods").await.unwrap();
            pods["items"].as_array().unwrap().is_empty().then_some(())
        })
        .await;
        kubectl.run("delete service web").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_applied_both_ways_and_patched_and_labelled_and_edited() {
    for program in programs() {
        let companion = Companion::start(&["--no-controllers"]).await;
        write_manifests(companion.dir());
        let kubectl = Kubectl { program, companion: &companion };
        let image = "get deployment ap -o jsonpath={.spec.template.spec.containers[0].image}";

        kubectl.run("apply -f one.yaml").await;
        has(&kubectl.run("apply -f one.yaml").await, &["deployment.apps/ap unchanged"]);
        kubectl.run("apply -f two.yaml").await;
        assert_eq!(kubectl.run(image).await, "a:2");
        let labels = kubectl.run("get deployment ap -o jsonpath={.metadata.labels}").await;
        assert!(!labels.contains("tier"), "what is no longer applied is taken out: {labels}");
        kubectl.run("delete -f one.yaml").await;

        kubectl.run("apply --server-side -f one.yaml").await;
        let other = "apply --server-side --field-manager=other -f two.yaml";
        has(&kubectl.refused(other).await, &["conflict", ".image", "kubectl"]);
        kubectl.run(&format!("{other} --force-conflicts")).await;
        assert_eq!(kubectl.run(image).await, "a:2");

        kubectl.run(r#"patch deployment ap -p {"spec":{"replicas":4}}"#).await;
        kubectl.run(r#"patch deployment ap --type=merge -p {"spec":{"paused":true}}"#).await;
        let json = r#"patch deployment ap --type=json -p [{"op":"remove","path":"/spec/paused"}]"#;
        kubectl.run(json).await;
        let spec =
            kubectl.run("get deployment ap -o jsonpath={.spec.replicas}/{.spec.paused}").await;
        assert_eq!(spec, "4/");

        kubectl.run("label deployment ap color=red").await;
        has(&kubectl.run("get deployments -l color=red --show-labels").await, &["ap", "color=red"]);
        kubectl.run("annotate deployment ap note=well").await;
        let mut edit = kubectl.command(&["edit", "deployment", "ap"]);
        edit.env("KUBE_EDITOR", "sed -i s/color:.red/color:\\ blue/");
        let edited = tokio::task::spawn_blocking(move || edit.output()).await.unwrap().unwrap();
        assert!(edited.status.success(), "{}", text(&edited.stderr));
        has(&kubectl.run("get deployments -l color=blue").await, &["ap"]);

        let refused = kubectl.refused("create -f typo.yaml").await;
        has(&refused, &["unknown field", "replicaz"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_can_be_asked() {
    for program in programs() {
        let companion = Companion::start(&["--no-controllers"]).await;
        let kubectl = Kubectl { program, companion: &companion };
        has(&kubectl.run("version").await, &["fairlead"]);
        let resources = kubectl.run("api-resources").await;
        has(
            &resources,
            &["deployments", "deploy", "endpointslices", "servicecidrs", "events.k8s.io"],
        );
        has(&kubectl.run("api-versions").await, &["apps/v1", "discovery.k8s.io/v1", "v1"]);
        assert_eq!(kubectl.run("auth can-i create pods").await.trim(), "yes");
        has(&kubectl.run("explain service.spec").await, &["clusterIP", "trafficDistribution"]);
        has(&kubectl.run("explain pod.spec.containers.ports").await, &["containerPort"]);
        has(&kubectl.run("get services -A -o wide").await, &["kubernetes", "10.96.0.1", "443/TCP"]);
        has(&kubectl.refused("get nosuch").await, &["doesn't have a resource type"]);
        has(&kubectl.refused("get pod none").await, &["NotFound", "pods \"none\" not found"]);
        has(&kubectl.refused("delete namespace default").await, &["Forbidden"]);
        has(&kubectl.refused("create namespace default").await, &["AlreadyExists"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rollouts_are_paused_and_nodes_are_drained() {
    for program in programs() {
        let companion = Companion::start(&[]).await;
        let client = companion.client().await;
        let _nodes = Nodes::start(&client, &["n1", "n2"], ready).await;
        let kubectl = Kubectl { program, companion: &companion };
        kubectl.run("create deployment web --image=nginx:1.25").await;
        kubectl.run("scale deployment web --replicas=4").await;
        kubectl.run("rollout status deployment web --timeout=30s").await;
        kubectl.run("rollout pause deployment web").await;
        kubectl.run("set image deployment/web nginx=nginx:1.26").await;
        has(&kubectl.refused("rollout pause deployment web").await, &["already paused"]);
        let images = "get pods -o jsonpath={.items[*].spec.containers[*].image}";
        assert!(!kubectl.run(images).await.contains("1.26"));
        kubectl.run("rollout resume deployment web").await;
        kubectl.run("rollout status deployment web --timeout=30s").await;
        assert!(!kubectl.run(images).await.contains("1.25"));
        kubectl.run("rollout restart deployment web").await;
        kubectl.run("rollout status deployment web --timeout=30s").await;

        let places = "get pods -o jsonpath={.items[*].spec.nodeName}";
        has(&kubectl.run(places).await, &["n1", "n2"]);
        kubectl.run("drain n1 --timeout=30s").await;
        has(&kubectl.run("get node n1").await, &["Ready,SchedulingDisabled"]);
        kubectl.run("rollout status deployment web --timeout=30s").await;
        eventually("all are elsewhere", || async {
            let places = kubectl.run(places).await;
            (places == "n2 n2 n2 n2").then_some(())
        })
        .await;
        kubectl.run("uncordon n1").await;
        kubectl.run("taint nodes n2 full=yes:NoExecute").await;
        eventually("all are back", || async {
            let places = kubectl.run(places).await;
            (places == "n1 n1 n1 n1").then_some(())
        })
        .await;
        has(&kubectl.refused("top nodes").await, &["Metrics API not available"]);
        has(&kubectl.refused("autoscale deployment web --max=3").await, &["could not find"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_is_waited_for() {
    use std::io::{BufRead, BufReader};

    for program in programs() {
        let companion = Companion::start(&["--no-controllers"]).await;
        let client = companion.client().await;
        let kubectl = Kubectl { program, companion: &companion };
        kubectl.run("create configmap held").await;
        let held = "/api/v1/namespaces/default/configmaps/held";
        let hold = json!({"metadata": {"finalizers": ["example.com/hold"]}});
        merge(&client, held, &hold).await.unwrap();
        kubectl.run("delete configmap held --wait=false").await;
        let wait = ["wait", "--for=delete", "configmap/held", "--timeout=30s", "-v=6"];
        let mut wait = kubectl.command(&wait).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(wait.stderr.take().unwrap()).lines().map(Result::unwrap);
        // It has seen the object; from now on it really waits.
        let seen = said.by_ref().any(|line| line.contains("configmaps") && line.contains(" 200 "));
        assert!(seen && wait.try_wait().unwrap().is_none(), "{}", kubectl.program.display());
        merge(&client, held, &json!({"metadata": {"finalizers": null}})).await.unwrap();
        let rest: Vec<String> = said.collect();
        assert!(wait.wait().unwrap().success(), "{rest:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_are_asked_about_over_https() {
    for program in programs() {
        let companion = Companion::start(&["--no-controllers", "--secure"]).await;
        let kubectl = Kubectl { program, companion: &companion };
        assert_eq!(kubectl.run("auth can-i delete nodes").await.trim(), "yes");
        let bob = "--as=system:serviceaccount:default:bob";
        let refused = kubectl.refused(&format!("get pods {bob}")).await;
        has(&refused, &["Forbidden", "system:serviceaccount:default:bob", "cannot list resource"]);
        kubectl.run("create serviceaccount bob").await;
        kubectl.run("create role reader --verb=get,list --resource=pods").await;
        let binding = "create rolebinding reader --role=reader --serviceaccount=default:bob";
        kubectl.run(binding).await;
        assert_eq!(kubectl.run(&format!("auth can-i list pods {bob}")).await.trim(), "yes");
        has(&kubectl.run(&format!("auth can-i --list {bob}")).await, &["pods", "[get list]"]);
        kubectl.run(&format!("get pods {bob}")).await;
        has(&kubectl.refused(&format!("delete pod x {bob}")).await, &["Forbidden"]);
        has(&kubectl.refused(&format!("get secrets {bob}")).await, &["Forbidden"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_shown_as_they_happen() {
    use std::io::{BufRead, BufReader};

    for program in programs() {
        let companion = Companion::start(&["--no-controllers"]).await;
        let kubectl = Kubectl { program, companion: &companion };
        let mut watch = kubectl.command(&["get", "configmaps", "-w"]);
        let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        kubectl.run("create configmap one --from-literal=a=b").await;
        kubectl.run("delete configmap one").await;
        kubectl.run("create configmap two --from-literal=a=b --from-literal=c=d").await;
        let seen = tokio::task::spawn_blocking(move || {
            lines.by_ref().map(Result::unwrap).find(|line| line.starts_with("two"))
        });
        let seen = tokio::time::timeout(Duration::from_secs(20), seen).await.unwrap().unwrap();
        watch.kill().unwrap();
        watch.wait().unwrap();
        has(&seen.unwrap(), &["two", "2"]);
    }
}
