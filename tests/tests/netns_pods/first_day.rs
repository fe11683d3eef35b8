//! What everybody does on the first day.

use std::collections::BTreeSet;

use serde_json::Value;
use tests::pods::{Cluster, is_ready, kubectl, name};

#[test]
fn a_first_day_with_each_kubectl() {
    for (version, kubectl) in tests::binary::kubectls() {
        let cluster = Cluster::start(&format!("day{}", version.replace('.', "")), kubectl);
        cluster.ok("create deployment hello --image=fairlead/hello --replicas=3");
        cluster.ok("expose deployment hello --port=80 --target-port=8080");
        let pods = cluster.until("three pods are ready", |c| {
            Some(c.pods()).filter(|pods| pods.len() == 3 && pods.iter().all(is_ready))
        });
        for pod in &pods {
            let name = pod["metadata"]["name"].as_str().unwrap();
            for ip in pod["status"]["podIPs"].as_array().unwrap() {
                let ip = ip["ip"].as_str().unwrap();
                let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
                let url = format!("http://{host}:8080/");
                assert_eq!(cluster.on_node(&["curl", "-s", "-m", "5", &url]), name);
            }
        }
        let slices = cluster.until("its endpoints are in a slice", |c| {
            let text = c.ok("get endpointslices -l kubernetes.io/service-name=hello -o json");
            (text.matches("\"ready\": true").count() == 3).then_some(text)
        });
        assert!(slices.contains("8080"));
        reached_from_a_pod_and_from_outside(&cluster, &pods);

        let name = pods[0]["metadata"]["name"].as_str().unwrap();
        let ip = pods[1]["status"]["podIP"].as_str().unwrap();
        assert!(cluster.ok(&format!("logs {name}")).contains("listens on"));
        assert_eq!(cluster.ok(&format!("exec {name} -- hostname")).trim(), name);
        let asked = cluster.ok(&format!("exec {name} -- curl -s -m 5 http://{ip}:8080/"));
        assert_eq!(asked.trim(), pods[1]["metadata"]["name"].as_str().unwrap());
        let (said, well) = cluster.run_words(&["exec", name, "--", "sh", "-c", "echo no; exit 3"]);
        assert!(!well && said.contains("no") && said.contains("exit code 3"), "{said}");
        let (said, well) = cluster.run(&format!("exec {name} -- nosuch"));
        assert!(!well && said.contains("not found in $PATH"), "{said}");

        let forward = cluster.begin(&format!("port-forward {name} 18080:8080"));
        let answer = cluster.until("the port is forwarded", |c| {
            Some(c.on_node(&["curl", "-s", "-m", "5", "http://127.0.0.1:18080/"]))
                .filter(|answer| !answer.is_empty())
        });
        assert_eq!(answer, name);
        drop(forward);

        cluster.ok(&format!("delete pod {name}"));
        cluster.until("it is replaced", |c| {
            let pods = c.pods();
            let replaced = pods.iter().all(|pod| pod["metadata"]["name"] != name);
            (pods.len() == 3 && replaced && pods.iter().all(is_ready)).then_some(())
        });
    }
}

/// By its name from a pod, and by a port of the node from another machine: each replica answers.
fn reached_from_a_pod_and_from_outside(cluster: &Cluster, pods: &[Value]) {
    let replicas: BTreeSet<String> = pods.iter().map(|pod| name(pod).to_owned()).collect();
    let wide = cluster.ok("get pods -o wide --no-headers");
    for pod in pods {
        let ip = pod["status"]["podIP"].as_str().unwrap();
        let mut lines = wide.lines();
        assert!(lines.any(|line| line.starts_with(name(pod)) && line.contains(ip)), "{wide}");
    }
    cluster.ok("run asks --image=fairlead/client");
    cluster.until_ready("asks");
    let all_answer = |way: &str, ask: &dyn Fn() -> String| {
        let mut answered = BTreeSet::new();
        cluster.until(&format!("each replica answers {way}"), |_| {
            answered.extend(Some(ask()).filter(|answer| replicas.contains(answer)));
            (answered == replicas).then_some(())
        });
    };
    let words = ["exec", "asks", "--", "curl", "-s", "-m", "5", "http://hello/"];
    all_answer("a pod", &|| cluster.run_words(&words).0.trim().to_owned());
    cluster.ok("delete pod asks --grace-period=1");

    cluster.ok("expose deployment hello --type=NodePort --name=open --port=80 --target-port=8080");
    let port = cluster.ok("get service open -o jsonpath={.spec.ports[0].nodePort}");
    let (outside, url) = (cluster.outside(), format!("http://172.18.0.1:{port}/"));
    all_answer("another machine", &|| {
        let output = outside.command("curl").args(["-s", "-m", "5", &url]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    });
}

const SHOP: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: blue, file: content}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {password: secret}
---
apiVersion: v1
kind: Pod
metadata: {name: shop, labels: {app: shop}}
spec:
  hostname: till
  subdomain: shops
  securityContext: {runAsUser: 1000, fsGroup: 2000}
  initContainers:
  - {name: first, image: fairlead/client, command: [sh, -c, 'echo one > /scratch/order']}
  - {name: second, image: fairlead/client, command: [sh, -c, 'echo two >> /scratch/order']}
  - name: side
    image: fairlead/client
    restartPolicy: Always
    command: [sh, -c, 'echo side >> /scratch/order; exec /fairlead pod-process idle']
  containers:
  - name: main
    image: fairlead/hello
    workingDir: /scratch
    env:
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: hidden, key: password}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: BOTH, value: '$(COLOR) $(PASSWORD)'}
    readinessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 1}
    securityContext: {readOnlyRootFilesystem: true}
    resources: {limits: {memory: 256Mi, cpu: 500m}}
  volumes:
  - {name: scratch, emptyDir: {}}
  - {name: settings, configMap: {name: settings}}
";

#[test]
fn a_pod_has_what_its_spec_says() {
    let cluster = Cluster::start("shop", kubectl());
    let mounts = "volumeMounts: [{name: scratch, mountPath: /scratch}, {name: settings, mountPath: /etc/settings}]";
    let manifest: String = SHOP
        .lines()
        .map(|line| match line {
            // Every container sees the same volumes.
            line if line.contains("image: fairlead") && line.contains("command") => {
                format!("{}, {mounts}}}\n", line.trim_end().strip_suffix('}').unwrap())
            }
            line if line.trim_start().starts_with("image: fairlead") => {
                format!("{line}\n    {mounts}\n")
            }
            line => format!("{line}\n"),
        })
        .collect();
    cluster.apply(&manifest);
    cluster.until_ready("shop");
    let told = |command: &str| {
        let words = ["exec", "shop", "-c", "main", "--", "sh", "-c", command];
        let (text, well) = cluster.run_words(&words);
        assert!(well, "{command}: {text}");
        text.trim().to_owned()
    };
    assert_eq!(told("cat order"), "one\ntwo\nside");
    assert_eq!(told("echo $BOTH"), "blue secret");
    assert_eq!(told("echo $NODE"), "shop");
    assert_eq!(told("cat /etc/settings/file"), "content");
    assert_eq!(told("hostname"), "till");
    assert!(told("cat /etc/hosts").contains("till.shops.default.svc.cluster.local"));
    assert_eq!(told("id -u"), "1000");
    assert!(told("id -G").contains("2000"));
    assert!(told("touch /x 2>&1; true").contains("Read-only"));
    assert!(told("ls /var/run/secrets/kubernetes.io/serviceaccount").contains("token"));
    cluster.ok("delete pod shop --grace-period=5");
    assert!(!cluster.run("get pod shop").1);
}
