//! A pod goes while clients send: another takes its place, and nobody notices.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use sandbox::{
    fairlead::Client,
    traffic::{Load, Protocol, Until},
};

use super::{
    cluster::{Cluster, until},
    objects::{self, N_PODS, PODS, Web, at},
    screen::{Screen, count},
};
use crate::interrupt::Interrupt;

/// For how long requests go on before the pod goes, and after, in seconds.
const BEFORE: u64 = 1;
const AFTER: u64 = 2;
/// The pod gets no more requests when it has had none for this long.
const QUIET: Duration = Duration::from_millis(500);
const QUIET_WITHIN: Duration = Duration::from_secs(10);

pub(super) fn show(
    screen: &mut Screen,
    interrupt: &Interrupt,
    cluster: &Cluster,
    rate: u32,
) -> anyhow::Result<()> {
    screen.step("A pod is deleted while clients send")?;
    let [target, _] = cluster.service();
    let clients = [Protocol::Http, Protocol::Udp]
        .into_iter()
        .map(|protocol| {
            let timeout = Duration::from_secs(5);
            let load = Load { target, protocol, rate, until: Until::Told, timeout };
            cluster.fairlead.client_in(&cluster.client, &load)
        })
        .collect::<Result<Vec<_>, _>>()?;
    screen.line(&format!("{rate} HTTP connections and {rate} UDP questions a second go on"))?;
    let deadline = Duration::from_secs(30);
    interrupt.wait_until(deadline, || answered(&clients) >= 2 * BEFORE * u64::from(rate))?;

    let webs = cluster.webs()?;
    let leaving = &webs.first().context("no pod is ready")?.name;
    let known: BTreeSet<&str> = webs.iter().map(|web| web.name.as_str()).collect();
    cluster.api.delete(&format!("{PODS}/{leaving}"))?;
    screen.line(&format!("{leaving} is marked as terminating"))?;
    wait_quiet(screen, interrupt, &clients, leaving)?;
    wait_replaced(screen, interrupt, cluster, &known, &clients)?;
    until(interrupt, "the pod has not gone", || {
        let pods = cluster.api.get(objects::WEBS)?;
        let mut pods = at(&pods, "/items").as_array().into_iter().flatten();
        Ok((!pods.any(|pod| at(pod, "/metadata/name") == leaving.as_str())).then_some(()))
    })?;
    screen.line(&format!("{leaving} has ended, and is gone"))?;

    let goal = answered(&clients) + 2 * AFTER * u64::from(rate);
    screen.progress("sending on ...")?;
    interrupt.wait_until(deadline, || answered(&clients) >= goal)?;
    summarise(screen, clients)
}

fn answered(clients: &[Client]) -> u64 {
    clients.iter().map(|client| client.tally().requests).sum()
}

/// How often a pod has answered.
fn hits(clients: &[Client], name: &str) -> u64 {
    clients.iter().filter_map(|client| client.tally().answers.get(name).copied()).sum()
}

/// Waits until `name` gets no more requests, and says how soon that was.
fn wait_quiet(
    screen: &mut Screen,
    interrupt: &Interrupt,
    clients: &[Client],
    name: &str,
) -> anyhow::Result<()> {
    let marked = Instant::now();
    let (mut seen, mut last) = (hits(clients, name), marked);
    let is_quiet = interrupt.wait_until(QUIET_WITHIN, || {
        let now = hits(clients, name);
        if now != seen {
            (seen, last) = (now, Instant::now());
        }
        last.elapsed() >= QUIET
    })?;
    if !is_quiet {
        bail!("{name} still gets requests {} s after it was marked", QUIET_WITHIN.as_secs());
    }
    let took = last.duration_since(marked).as_millis();
    Ok(screen.line(&format!("its last request came within {} ms", took.max(1)))?)
}

/// Waits until a pod that nobody knew is asked as well.
fn wait_replaced(
    screen: &mut Screen,
    interrupt: &Interrupt,
    cluster: &Cluster,
    known: &BTreeSet<&str>,
    clients: &[Client],
) -> anyhow::Result<()> {
    screen.progress("the Deployment makes another ...")?;
    let new = until(interrupt, "no other pod has taken its place", || {
        let webs = cluster.webs()?;
        let is_whole = webs.len() == N_PODS;
        let new = webs.into_iter().find(|Web { name, .. }| !known.contains(name.as_str()));
        Ok(new.filter(|new| is_whole && hits(clients, &new.name) > 0))
    })?;
    Ok(screen.line(&format!("{} has taken its place, and answers", new.name))?)
}

fn summarise(screen: &mut Screen, clients: Vec<Client>) -> anyhow::Result<()> {
    let (mut requests, mut failures) = (0, Vec::new());
    for client in clients {
        let tally = client.finish()?;
        requests += tally.requests;
        failures.extend(tally.failures);
    }
    if !failures.is_empty() {
        let failures: Vec<_> = failures.iter().map(|(what, n)| format!("{n} x {what}")).collect();
        bail!(
            "of {requests} requests while a pod was replaced, these failed: {}",
            failures.join(", ")
        );
    }
    Ok(screen.line(&format!("{} requests, 0 failed", count(requests)))?)
}
