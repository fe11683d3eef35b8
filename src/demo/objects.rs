//! What the demo asks the API for, and what it reads from the answers. `[pure]`

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sandbox::{Addresses, hello};
use serde_json::{Value, json};

/// The Deployment's name and the Service's, and the label of its pods.
pub(super) const NAME: &str = "hello";
/// The pod that asks.
pub(super) const CLIENT: &str = "client";
/// How many pods serve.
pub(super) const N_PODS: usize = 3;
/// The Service's port.
const PORT: u16 = 80;
/// The port of the node that leads there.
pub(super) const NODE_PORT: u16 = 30_080;

/// Where objects are made, and read.
pub(super) const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
pub(super) const SERVICES: &str = "/api/v1/namespaces/default/services";
pub(super) const PODS: &str = "/api/v1/namespaces/default/pods";
/// The pods that serve.
pub(super) const WEBS: &str = "/api/v1/namespaces/default/pods?labelSelector=app%3Dhello";

/// A pod that serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Web {
    pub(super) name: String,
    pub(super) addresses: Addresses,
}

/// Three servers. Who goes serves on for a while, so that nobody asks any more when it ends: what
/// Kubernetes recommends.
pub(super) fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME},
        "spec": {
            "replicas": N_PODS,
            "selector": {"matchLabels": {"app": NAME}},
            "template": {
                "metadata": {"labels": {"app": NAME}},
                "spec": {
                    "containers": [{
                        "name": NAME,
                        "image": "fairlead/hello",
                        "readinessProbe": {
                            "httpGet": {"port": hello::PORT},
                            "periodSeconds": 1,
                            "timeoutSeconds": 10,
                        },
                        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
                    }],
                },
            },
        },
    })
}

/// The Service in front of them, of both families, with a port of the node.
pub(super) fn service() -> Value {
    let port = |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": PORT, "targetPort": hello::PORT});
    let mut tcp = port("http", "TCP");
    if let Some(tcp) = tcp.as_object_mut() {
        tcp.insert("nodePort".to_owned(), NODE_PORT.into());
    }
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME},
        "spec": {
            "type": "NodePort",
            "ipFamilyPolicy": "RequireDualStack",
            "selector": {"app": NAME},
            "ports": [tcp, port("udp", "UDP")],
        },
    })
}

/// A pod to ask from: idle until somebody runs something in it.
pub(super) fn client() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": CLIENT},
        "spec": {"containers": [{"name": CLIENT, "image": "fairlead/client"}]},
    })
}

/// Where a Service leads, at its own addresses.
pub(super) fn frontends(service: &Value) -> Option<[SocketAddr; 2]> {
    let Addresses { v4, v6 } = both(at(service, "/spec/clusterIPs").as_array()?.iter())?;
    Some([(v4, PORT).into(), (v6, PORT).into()])
}

/// The pods of a list that are ready and stay.
pub(super) fn webs(list: &Value) -> Vec<Web> {
    let pods = at(list, "/items").as_array().into_iter().flatten();
    let staying = pods.filter(|pod| at(pod, "/metadata/deletionTimestamp").is_null());
    let mut webs: Vec<Web> = staying.filter_map(ready).collect();
    webs.sort_by_key(|web| web.addresses);
    webs
}

/// A pod, if it is ready.
pub(super) fn ready(pod: &Value) -> Option<Web> {
    let mut conditions = at(pod, "/status/conditions").as_array()?.iter();
    if !conditions.any(|one| at(one, "/type") == "Ready" && at(one, "/status") == "True") {
        return None;
    }
    let name = at(pod, "/metadata/name").as_str()?.to_owned();
    let ips = at(pod, "/status/podIPs").as_array()?.iter().map(|one| at(one, "/ip"));
    Some(Web { name, addresses: both(ips)? })
}

/// What is there in an object; null if nothing is.
pub(super) fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    object.pointer(path).unwrap_or(&Value::Null)
}

fn both<'a>(ips: impl Iterator<Item = &'a Value>) -> Option<Addresses> {
    let (mut v4, mut v6): (Option<Ipv4Addr>, Option<Ipv6Addr>) = (None, None);
    for ip in ips.filter_map(|ip| ip.as_str()?.parse().ok()) {
        match ip {
            IpAddr::V4(ip) => v4 = Some(ip),
            IpAddr::V6(ip) => v6 = Some(ip),
        }
    }
    Some(Addresses { v4: v4?, v6: v6? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, ip: &str, ready: &str) -> Value {
        json!({
            "metadata": {"name": name},
            "status": {
                "conditions": [{"type": "Ready", "status": ready}],
                "podIPs": [{"ip": ip}, {"ip": "fd00::1"}],
            },
        })
    }

    #[test]
    fn who_is_ready_and_stays_serves() {
        let mut goes = pod("goes", "10.0.0.4", "True");
        goes["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let late = pod("late", "10.0.0.3", "False");
        let list = json!({"items": [pod("b", "10.0.0.2", "True"), goes, late, pod("a", "10.0.0.1", "True")]});
        let names: Vec<String> = webs(&list).into_iter().map(|web| web.name).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn a_service_has_a_frontend_of_each_family() {
        let mut made = service();
        assert_eq!(frontends(&made), None, "nobody has given it any yet");
        made["spec"]["clusterIPs"] = json!(["10.96.0.7", "fd00:10:96::7"]);
        let expected = ["10.96.0.7:80", "[fd00:10:96::7]:80"].map(|one| one.parse().unwrap());
        assert_eq!(frontends(&made), Some(expected));
        assert_eq!(made["spec"]["ports"][0]["nodePort"], NODE_PORT);
        assert!(made["spec"]["ports"][1]["nodePort"].is_null());
    }
}
