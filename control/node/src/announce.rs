//! Addresses of Services of type `LoadBalancer`, answered for on the nodes' link: each by one node,
//! and by another one when that is no more.
//!
//! ```text
//!  nodes, Services, slices ──▶ lead [pure]: which addresses are this node's ──▶ answer: ARP and NDP
//! ```
//!
//! All nodes see the same objects and hash alike, so that they agree without asking each other.

mod answer;
mod lead;
mod message;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::runtime::watcher::{self, watcher};
use tokio::sync::watch;

use crate::api::Cluster;
use lead::World;

/// When a watch that failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// Answers for this node's share for ever, on the links that its own addresses are on.
pub(crate) async fn keep(cluster: &Cluster, addresses: &[IpAddr]) {
    let (sender, receiver) = watch::channel(BTreeSet::new());
    tokio::join!(follow(cluster, &sender), answer::keep(addresses, receiver));
}

/// Follows who there is, and says which addresses fall to this node.
async fn follow(cluster: &Cluster, mine: &watch::Sender<BTreeSet<IpAddr>>) {
    let config = watcher::Config::default;
    let mut nodes = pin!(watcher(Api::<Node>::all(cluster.client()), config()));
    let mut services = pin!(watcher(Api::<Service>::all(cluster.client()), config()));
    let mut slices = pin!(watcher(Api::<EndpointSlice>::all(cluster.client()), config()));
    let mut world = World::default();
    loop {
        let heard = tokio::select! {
            Some(event) = nodes.next() => event.map(|event| world.nodes.hear(event)),
            Some(event) = services.next() => event.map(|event| world.services.hear(event)),
            Some(event) = slices.next() => event.map(|event| world.slices.hear(event)),
        };
        if let Err(error) = heard {
            tracing::debug!(%error, "what addresses are answered for will be listed again");
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        let Some(now) = world.led_by(cluster.node()) else { continue };
        mine.send_if_modified(|before| {
            let differs = *before != now;
            *before = now;
            differs
        });
    }
}
