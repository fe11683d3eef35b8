//! Requests from another machine to the Service's node port, and from where the pods see them come.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::bail;
use sandbox::traffic::{Load, Protocol, Until};

use super::{cluster::Cluster, screen::Screen, spread};
use crate::interrupt::Interrupt;

const DURATION: Duration = Duration::from_secs(1);
/// How long it takes to see where requests come from.
const LOOK: Duration = Duration::from_millis(100);
const IN_FORCE_WITHIN: Duration = Duration::from_secs(10);

pub(super) fn show(
    screen: &mut Screen,
    interrupt: &Interrupt,
    cluster: &Cluster,
    rate: u32,
) -> anyhow::Result<()> {
    let [target, _] = cluster.node_ports();
    screen.step(&format!("The same from another machine: http://{target}, a node port"))?;
    screen.progress("sending ...")?;
    let clients = cluster
        .node_ports()
        .into_iter()
        .map(|target| {
            let load = load(target, Protocol::Http, rate, DURATION);
            Ok((load.clone(), cluster.fairlead.client_on(&cluster.outside, &load)?))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    interrupt.wait_until(DURATION, || false)?;
    spread::tell(screen, cluster, clients)?;

    let own = cluster.outside.addresses().v4.to_string();
    let sources = sources(cluster)?;
    if sources.contains(&own) {
        bail!("the pods see {own}, though externalTrafficPolicy is Cluster");
    }
    let node = sources.into_iter().collect::<Vec<_>>().join(", ");
    screen
        .line(&format!("{:<31}the pods see {node}, the node", "externalTrafficPolicy: Cluster"))?;
    cluster.keep_source()?;
    let deadline = Instant::now() + IN_FORCE_WITHIN;
    while self::sources(cluster)? != BTreeSet::from([own.clone()]) {
        if Instant::now() > deadline {
            bail!("the pods do not see {own}, though externalTrafficPolicy is Local");
        }
        interrupt.wait_until(LOOK, || false)?;
    }
    Ok(screen
        .line(&format!("{:<31}the pods see {own}, the client", "externalTrafficPolicy: Local"))?)
}

/// From where the pods see requests come.
fn sources(cluster: &Cluster) -> anyhow::Result<BTreeSet<String>> {
    let [target, _] = cluster.node_ports();
    let load = load(target, Protocol::HttpSource, 100, LOOK);
    let tally = cluster.fairlead.client_on(&cluster.outside, &load)?.finish()?;
    if tally.failed > 0 {
        bail!("{} of {} requests failed: {:?}", tally.failed, tally.requests, tally.failures);
    }
    Ok(tally.answers.into_keys().collect())
}

fn load(target: std::net::SocketAddr, protocol: Protocol, rate: u32, duration: Duration) -> Load {
    Load { target, protocol, rate, until: Until::Over(duration), timeout: Duration::from_secs(5) }
}
