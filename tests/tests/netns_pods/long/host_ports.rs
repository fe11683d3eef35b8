//! Ports of the node that lead to a pod: from other machines, over both families and protocols.

use sandbox::Node;
use tests::pods::{Cluster, kubectl};

/// A pod that asks for ports of its node, one of them at one address.
fn pod(name: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: hello
    image: fairlead/hello
    ports:
    - {{containerPort: 8080, hostPort: 8000}}
    - {{containerPort: 8080, hostPort: 8000, protocol: UDP}}
    - {{containerPort: 8080, hostPort: 8001, hostIP: 172.18.0.1}}
"
    )
}

/// The node, as other machines reach it.
const ADDRESSES: [&str; 2] = ["172.18.0.1", "fd00:172:18::1"];

/// What another machine is told at a port of the node.
fn ask(outside: &Node, address: &str, protocol: &str, port: u16) -> String {
    let command = if protocol == "udp" {
        let script = format!("exec 3<>/dev/udp/{address}/{port} && echo >&3 && head -n 1 <&3");
        outside.command("timeout").args(["5", "bash", "-c", &script])
    } else {
        let host = if address.contains(':') { format!("[{address}]") } else { address.into() };
        outside.command("curl").args(["-s", "-m", "5", &format!("http://{host}:{port}/")])
    };
    String::from_utf8_lossy(&command.output().unwrap().stdout).trim().to_owned()
}

fn until_answered(cluster: &Cluster, outside: &Node, by: &str) {
    for address in ADDRESSES {
        for protocol in ["tcp", "udp"] {
            cluster.until(&format!("{by} answers at {address}, {protocol}"), |_| {
                (ask(outside, address, protocol, 8000) == by).then_some(())
            });
        }
    }
}

#[test]
fn a_port_of_the_node_leads_to_the_pod_that_asks_for_it() {
    let mut cluster = Cluster::start("host-ports", kubectl());
    let outside = cluster.outside();
    cluster.apply(&pod("web"));
    cluster.until_ready("web");
    until_answered(&cluster, &outside, "web");
    assert_eq!(ask(&outside, ADDRESSES[0], "tcp", 8001), "web");
    assert_eq!(ask(&outside, ADDRESSES[1], "tcp", 8001), "", "only at the address it names");

    // Nobody else gets them.
    cluster.apply(&pod("next"));
    cluster.until("the next one waits for them", |c| {
        c.run("get events").0.contains("didn't have free ports").then_some(())
    });

    // They lead there while there is no agent, and when there is one again.
    cluster.kill_agent();
    assert_eq!(ask(&outside, ADDRESSES[0], "tcp", 8000), "web");
    cluster.start_agent();
    cluster.ok("delete pod web");
    cluster.until_ready("next");
    until_answered(&cluster, &outside, "next");
    cluster.ok("delete pod next");
    cluster.until("nobody answers", |_| {
        ask(&outside, ADDRESSES[0], "tcp", 8000).is_empty().then_some(())
    });
}
