//! Requests through the Service's address, and which pods they reach.

use std::{collections::BTreeMap, time::Duration};

use anyhow::bail;
use sandbox::fairlead::Client;
use sandbox::traffic::{Load, Protocol, Tally, Until};

use super::{
    cluster::Cluster,
    objects::Web,
    screen::{Screen, count},
};
use crate::interrupt::Interrupt;

const DURATION: Duration = Duration::from_millis(1500);

pub(super) fn show(
    screen: &mut Screen,
    interrupt: &Interrupt,
    cluster: &Cluster,
    rate: u32,
) -> anyhow::Result<()> {
    screen.step("Requests to the Service's address: HTTP and UDP, over IPv4 and IPv6")?;
    screen.progress("sending ...")?;
    let kinds = [Protocol::Http, Protocol::Udp];
    let targets = cluster.service();
    let loads = kinds.iter().flat_map(|protocol| {
        targets.map(|target| Load {
            target,
            protocol: *protocol,
            rate,
            until: Until::Over(DURATION),
            timeout: Duration::from_secs(5),
        })
    });
    let clients = loads
        .map(|load| Ok((load.clone(), cluster.fairlead.client_in(&cluster.client, &load)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    interrupt.wait_until(DURATION, || false)?;
    tell(screen, cluster, clients)
}

/// Tells who answered, once all have ended.
pub(super) fn tell(
    screen: &mut Screen,
    cluster: &Cluster,
    clients: Vec<(Load, Client)>,
) -> anyhow::Result<()> {
    let mut total: BTreeMap<String, u64> = BTreeMap::new();
    let webs = cluster.webs()?;
    for (load, client) in clients {
        let tally = client.finish()?;
        check(&load, &tally, &webs)?;
        for (name, n) in tally.answers {
            *total.entry(name).or_default() += n;
        }
    }
    let most = total.values().copied().max().unwrap_or_default();
    screen.line(&format!("{} requests, all answered:", count(total.values().sum())))?;
    for (name, n) in total {
        screen.bar(&name, n, most)?;
    }
    Ok(())
}

/// Every pod, of every protocol and family, and no failure.
fn check(load: &Load, tally: &Tally, webs: &[Web]) -> anyhow::Result<()> {
    let way = format!("{} to {}", load.protocol, load.target);
    if tally.failed > 0 {
        bail!(
            "{} of {} requests failed ({way}): {:?}",
            tally.failed,
            tally.requests,
            tally.failures
        );
    }
    let names = webs.iter().map(|web| web.name.as_str());
    let missed: Vec<_> = names.filter(|name| !tally.answers.contains_key(*name)).collect();
    if !missed.is_empty() {
        bail!("{} was never hit by {} requests ({way})", missed.join(", "), tally.requests);
    }
    Ok(())
}
