//! Service `kube-system/kube-dns`, whose endpoints are the nodes that answer names.
//!
//! Nobody selects its pods, as there are none: each node keeps a slice of its own for each family,
//! which goes with its Node object.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::api::{Cluster, RequestError};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";
/// Between two tries.
const AGAIN: Duration = Duration::from_secs(1);
/// A last word is not waited for any longer.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Where the cluster's names are asked for; empty if nobody answers them.
pub(crate) async fn servers(cluster: &Cluster) -> Result<Vec<IpAddr>, RequestError> {
    let service = cluster.service(NAMESPACE, NAME).await?;
    let spec = service.and_then(|service| service.spec).unwrap_or_default();
    let ips = spec.cluster_ips.unwrap_or_default();
    Ok(ips.iter().filter_map(|ip| ip.parse().ok()).collect())
}

/// Says for ever that this node answers names there, for other nodes to ask.
pub(crate) async fn keep(cluster: &Cluster, addresses: &[SocketAddr]) {
    let mut said = false;
    while let Err(error) = tell(cluster, addresses, true).await {
        if !std::mem::replace(&mut said, true) {
            tracing::warn!("other nodes do not know that this one answers names: {error}");
        }
        tokio::time::sleep(AGAIN).await;
    }
    std::future::pending::<()>().await;
}

/// Says that it will not, if that can be said quickly.
pub(crate) async fn withdraw(cluster: &Cluster, addresses: &[SocketAddr]) {
    if addresses.is_empty() {
        return;
    }
    match tokio::time::timeout(LAST_WORD, tell(cluster, addresses, false)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("not said that this node answers no more: {error}"),
        Err(_) => tracing::debug!("not said that this node answers no more: no time"),
    }
}

async fn tell(cluster: &Cluster, addresses: &[SocketAddr], ready: bool) -> Result<(), kube::Error> {
    let services: Api<Service> = Api::namespaced(cluster.client(), NAMESPACE);
    unless_there(services.create(&PostParams::default(), &from(service())?).await)?;
    let nodes: Api<Node> = Api::all(cluster.client());
    let uid = nodes.get(cluster.node()).await?.metadata.uid.unwrap_or_default();
    let slices: Api<EndpointSlice> = Api::namespaced(cluster.client(), NAMESPACE);
    for address in addresses {
        let slice = slice(cluster.node(), &uid, *address, ready);
        if unless_there(slices.create(&PostParams::default(), &from(slice.clone())?).await)? {
            continue;
        }
        let name = slice_name(cluster.node(), *address);
        slices.patch(&name, &PatchParams::default(), &Patch::Merge(slice)).await?;
    }
    Ok(())
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, kube::Error> {
    serde_json::from_value(value).map_err(kube::Error::SerdeError)
}

/// Whether it was made; not if it was there.
fn unless_there<T>(made: Result<T, kube::Error>) -> Result<bool, kube::Error> {
    match made {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        other => other.map(|_| true),
    }
}

/// Named as everywhere, so that everybody finds it. `[pure]`
fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": NAME, "namespace": NAMESPACE,
            "labels": {"k8s-app": NAME, "kubernetes.io/name": "CoreDNS"},
        },
        "spec": {
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            ],
        },
    })
}

fn slice_name(node: &str, address: SocketAddr) -> String {
    format!("{NAME}-{node}-{}", if address.is_ipv4() { "ipv4" } else { "ipv6" })
}

/// One node's endpoint of one family. `[pure]`
fn slice(node: &str, uid: &str, address: SocketAddr, ready: bool) -> Value {
    let port = address.port();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": slice_name(node, address), "namespace": NAMESPACE,
            "labels": {
                "kubernetes.io/service-name": NAME,
                "endpointslice.kubernetes.io/managed-by": "fairlead-node",
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}],
        },
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "ports": [
            {"name": "dns", "port": port, "protocol": "UDP"},
            {"name": "dns-tcp", "port": port, "protocol": "TCP"},
        ],
        "endpoints": [{
            "addresses": [address.ip().to_string()],
            "conditions": {"ready": ready, "serving": ready, "terminating": false},
            "nodeName": node,
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_a_slice_that_goes_with_its_node() {
        let of = |address: &str| slice("a", "1", address.parse().unwrap(), true);
        let (v4, v6) = (of("172.18.0.1:53"), of("[fd00::1]:53"));
        assert_eq!(v4["metadata"]["name"], "kube-dns-a-ipv4");
        assert_eq!(
            (&v6["addressType"], &v6["metadata"]["name"]),
            (&json!("IPv6"), &json!("kube-dns-a-ipv6"))
        );
        assert_eq!(v4["metadata"]["ownerReferences"][0]["uid"], "1");
        let read: EndpointSlice = from(v6).unwrap();
        assert_eq!(read.endpoints.unwrap()[0].addresses, ["fd00::1"]);
        assert_eq!(from::<Service>(service()).unwrap().metadata.name.as_deref(), Some(NAME));
    }
}
