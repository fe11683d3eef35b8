//! Routes to the other nodes' pods, straight through those nodes or by tunnels.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};

use crate::api::Cluster;
use crate::network::Network;

/// Follows the nodes for ever.
pub(crate) async fn keep(cluster: &Cluster, own: &str, network: &Arc<Network>) {
    let api: Api<Node> = Api::all(cluster.client());
    let mut events = pin!(watcher(api, watcher::Config::default()));
    let mut done: HashMap<IpNet, IpAddr> = HashMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::InitApply(node) | Event::Apply(node)) => {
                if node.metadata.name.as_deref() != Some(own) {
                    for (range, address) in routes(&node, network.tunnels_over_ipv4()) {
                        let is_done = done.get(&range) == Some(&address);
                        if !is_done && add(network, (range, address)).await {
                            done.insert(range, address);
                        }
                    }
                }
            }
            Ok(Event::Delete(_) | Event::Init | Event::InitDone) => {}
            Err(error) => {
                tracing::debug!(%error, "the nodes will be listed again");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

async fn add(network: &Arc<Network>, (range, node): (IpNet, IpAddr)) -> bool {
    let network = Arc::clone(network);
    let added = tokio::task::spawn_blocking(move || network.add_route(range, node)).await;
    match added {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::warn!(%range, %node, %error, "no route to another node's pods");
            false
        }
        Err(_) => false,
    }
}

/// Where a node's pods are, and its address of the same family; or of the one that all tunnels are of.
fn routes(node: &Node, tunnels_over_ipv4: Option<bool>) -> Vec<(IpNet, IpAddr)> {
    let ranges = node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten());
    let addresses: Vec<IpAddr> = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten())
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect();
    let via = |range: IpNet| {
        let is_ipv4 = tunnels_over_ipv4.unwrap_or_else(|| range.addr().is_ipv4());
        let same = |address: &&IpAddr| address.is_ipv4() == is_ipv4;
        addresses.iter().find(same).map(|address| (range, *address))
    };
    ranges.filter_map(|range| range.parse().ok()).filter_map(via).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_range_is_reached_through_an_address_of_its_family() {
        let node: Node = serde_saphyr::from_str(
            "{spec: {podCIDRs: [10.244.1.0/24, 'fd00:1::/64']}, status: {addresses: \
             [{type: Hostname, address: b}, {type: InternalIP, address: 172.18.0.2}]}}",
        )
        .unwrap();
        let expected = ("10.244.1.0/24".parse().unwrap(), "172.18.0.2".parse().unwrap());
        assert_eq!(routes(&node, None), [expected]);
        let tunnelled = ("fd00:1::/64".parse().unwrap(), expected.1);
        assert_eq!(routes(&node, Some(true)), [expected, tunnelled]);
        assert_eq!(routes(&node, Some(false)), []);
    }
}
