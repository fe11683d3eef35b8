//! Addresses of load balancers, answered for on the nodes' link by one node, and then by another.

use std::collections::BTreeMap;
use std::fs;

use sandbox::Node;
use serde_json::Value;
use tests::pods::{Cluster, kubectl};

use super::healing::{SPREAD, until_ready_pods};

/// A part of the nodes' own link that no device has.
const COMPANION: [&str; 2] = [
    "--load-balancer-pool=172.18.9.0/28,fd00:172:18::9:0/124",
    "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112",
];

/// So many Services that each of two nodes answers for some.
const SERVICES: usize = 6;

fn service(n: usize) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: open-{n}}}
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080}}]
"
    )
}

/// The addresses that a Service was granted.
fn addresses(cluster: &Cluster, n: usize) -> Vec<String> {
    cluster.until("two addresses are granted", |c| {
        let service = c.find("service", &format!("open-{n}"))?;
        let all = service["status"]["loadBalancer"]["ingress"].as_array()?;
        let all = all.iter().map(|one| one["ip"].as_str().unwrap().to_owned());
        Some(all.collect::<Vec<String>>()).filter(|all| all.len() == 2)
    })
}

fn output(node: &Node, words: &[&str]) -> String {
    let output = node.command(words[0]).args(&words[1..]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Waits until a client on the link is answered at an address; says by whom it takes it to be.
fn until_answered(cluster: &Cluster, client: &Node, address: &str) -> String {
    let host = if address.contains(':') { format!("[{address}]") } else { address.into() };
    let url = format!("http://{host}/");
    cluster.until(&format!("{address} answers"), |_| {
        let answer = output(client, &["curl", "-s", "-m", "5", &url]);
        answer.starts_with("web-").then_some(())
    });
    let known: Value =
        serde_json::from_str(&output(client, &["ip", "-j", "neigh", "show", address])).unwrap();
    known[0]["lladdr"].as_str().unwrap().to_owned()
}

#[test]
fn an_address_is_answered_for_by_one_node_and_then_by_another() {
    let nodes = ["stays", "dies"];
    let mut cluster = Cluster::start_many_with("balanced", kubectl(), &nodes, &COMPANION);
    cluster.apply(SPREAD);
    let manifests: Vec<String> = (0..SERVICES).map(service).collect();
    cluster.apply(&manifests.join("---"));
    until_ready_pods(&cluster, 4);
    let [stays, dies] = nodes.map(|name| {
        let link = output(cluster.node_of(name), &["ip", "-j", "link", "show", "eth0"]);
        let link: Value = serde_json::from_str(&link).unwrap();
        link[0]["address"].as_str().unwrap().to_owned()
    });
    let client = cluster.outside();
    let all: Vec<String> = (0..SERVICES).flat_map(|n| addresses(&cluster, n)).collect();
    let mut at = BTreeMap::new();
    for address in &all {
        // Whoever is asked again says the same.
        let by = until_answered(&cluster, &client, address);
        output(&client, &["ip", "neigh", "flush", "all"]);
        assert_eq!(until_answered(&cluster, &client, address), by);
        at.insert(address.clone(), by);
    }
    for family in ['.', ':'] {
        for node in [&stays, &dies] {
            let n = at.iter().filter(|(ip, by)| ip.contains(family) && *by == node).count();
            assert!(n > 0, "{node}: {at:?}");
        }
    }

    // The machine is switched off.
    cluster.kill_agent_of("dies");
    fs::write(cluster.node_of("dies").cgroup().join("cgroup.kill"), "1").unwrap();
    cluster.node_of("dies").set_connected(false).unwrap();
    for address in &all {
        cluster.until("another node has it", |c| {
            (until_answered(c, &client, address) == stays).then_some(())
        });
    }
}
