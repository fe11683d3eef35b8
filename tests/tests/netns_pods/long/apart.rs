//! Nodes with only routers between them: they join by a token, and their pods meet in tunnels.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use sandbox::Node;
use serde_json::Value;
use tests::pods::{ASKS, Cluster, kubectl};

/// A server and a pod to ask from, both on one node, and a Service.
fn place(node: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: web-{node}, labels: {{app: web-{node}}}}}
spec:
  nodeName: {node}
  containers: [{{name: hello, image: fairlead/hello, readinessProbe: {ASKS}}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: ask-{node}}}
spec:
  nodeName: {node}
  containers: [{{name: client, image: fairlead/client}}]
---
apiVersion: v1
kind: Service
metadata: {{name: web-{node}}}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {{app: web-{node}}}
  ports: [{{port: 80, targetPort: 8080}}]
"
    )
}

fn host(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect()
}

/// Waits until a pod is answered by a server, at a URL.
fn until_answered(cluster: &Cluster, from: &str, url: &str, by: &str) {
    cluster.until(&format!("{by} answers {from} at {url}"), |c| {
        let (said, _) = c.run(&format!("exec {from} -- curl -s -m 5 {url}"));
        (said.trim() == by).then_some(())
    });
}

fn asked_from(machine: &Node, url: &str) -> String {
    let output = machine.command("curl").args(["-s", "-m", "5", url]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn nodes_with_routers_between_them_join_by_a_token_and_their_pods_meet_in_tunnels() {
    let nodes = ["near", "far"];
    let (mut cluster, router) = Cluster::start_apart("apart", kubectl(), nodes);
    for node in nodes {
        cluster.apply(&place(node));
    }
    for node in nodes {
        cluster.until_ready(&format!("web-{node}"));
        cluster.until_ready(&format!("ask-{node}"));
    }
    // A second time after the agent that made the tunnels has been killed.
    for round in 0..2 {
        for (from, to) in [("near", "far"), ("far", "near")] {
            let (from, to) = (format!("ask-{from}"), format!("web-{to}"));
            let pod = cluster.pod(&to);
            let ips = pod["status"]["podIPs"].as_array().unwrap();
            assert_eq!(ips.len(), 2, "{pod}");
            for ip in ips {
                let url = format!("http://{}:8080/", host(ip["ip"].as_str().unwrap()));
                until_answered(&cluster, &from, &url, &to);
            }
            let service = cluster.find("service", &to).unwrap();
            for ip in texts(&service["spec"]["clusterIPs"]) {
                until_answered(&cluster, &from, &format!("http://{}/", host(&ip)), &to);
            }
            until_answered(&cluster, &from, &format!("http://{to}/"), &to);
            assert_eq!(cluster.sh(&from, "cat /sys/class/net/eth0/mtu"), "1450");
        }
        if round == 0 {
            cluster.kill_agent_of("far");
            cluster.join("far");
        }
    }
    // A node port of one node leads to a pod of the other.
    let service = cluster.find("service", "web-far").unwrap();
    let port = &service["spec"]["ports"][0]["nodePort"];
    for address in cluster.node_of("near").addresses().both() {
        let url = format!("http://{}:{port}/", host(&address.to_string()));
        cluster.until(&format!("the other node's pod answers at {url}"), |_| {
            (asked_from(&router, &url) == "web-far").then_some(())
        });
    }

    // What a node was given is its own, and who is invited may become a node and nothing else.
    let kubeconfig = cluster.root_of("far").join("kubeconfig");
    assert_eq!(fs::metadata(&kubeconfig).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!fs::read_to_string(&kubeconfig).unwrap().contains(&cluster.join_words()[3]));
    let invited = "--as system:bootstrap:x --as-group system:bootstrappers";
    let may = |what: &str| cluster.run(&format!("auth can-i {what} {invited}")).1;
    assert!(may("create serviceaccounts/fairlead-node --subresource=token -n kube-system"));
    assert!(!may("create serviceaccounts/other --subresource=token -n kube-system"));
    assert!(!may("get secrets -n kube-system"));
}

#[test]
fn who_is_not_invited_does_not_join() {
    let cluster = Cluster::start_many("invited", kubectl(), &["first"]);
    let other = cluster.outside();
    let words = cluster.join_words();
    let (server, token, hash) = (&words[1], &words[3], &words[5]);
    let joins = |server: &str, token: &str, hash: &str| {
        let root = cluster.dir.path().join("never");
        let output = other
            .command(tests::binary::fairlead())
            .args(["node", "--run-pods", "--hostname-override", "never", "--root-dir"])
            .arg(&root)
            .args(["--join", server, "--token", token, "--ca-hash", hash])
            .arg("--cgroup")
            .arg(other.cgroup())
            .arg("--bpffs")
            .arg(other.bpffs().unwrap())
            .output()
            .unwrap();
        assert!(!output.status.success(), "{output:?}");
        assert!(!root.join("kubeconfig").exists());
        String::from_utf8(output.stderr).unwrap()
    };
    let said = joins(server, "abcdef.0123456789abcdef", hash);
    assert!(said.contains("Unauthorized"), "{said}");
    let said = joins(server, token, &format!("sha256:{}", "0".repeat(64)));
    assert!(said.contains("it is another cluster, or not its server"), "{said}");
    let said = joins(server, token, "sha256:12");
    assert!(said.contains("64 hexadecimal digits"), "{said}");
    // A token whose time is over, or that somebody takes back, is none.
    let id = token.split('.').next().unwrap();
    cluster.ok(&format!("delete secret bootstrap-token-{id} -n kube-system"));
    let said = joins(server, token, hash);
    assert!(said.contains("Unauthorized"), "{said}");
    assert!(!cluster.run("get node never").1);
}
