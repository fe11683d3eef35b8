//! A pod goes while clients send: the Service heals, and nobody notices.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sandbox::{
    fairlead::Client,
    manifest::{Endpoint, State},
    traffic::{Load, Protocol, Until},
};

use super::{
    cluster::{Cluster, Web},
    screen::{Screen, count},
};
use crate::interrupt::Interrupt;

/// For how long requests go on before the pod goes, and after, in seconds.
const BEFORE: u64 = 1;
const AFTER: u64 = 2;
/// The pod gets no more requests when it has had none for this long.
const QUIET: Duration = Duration::from_millis(500);
const QUIET_WITHIN: Duration = Duration::from_secs(10);
const GRACE: Duration = Duration::from_secs(10);

pub(super) fn show(
    screen: &mut Screen,
    interrupt: &Interrupt,
    cluster: &mut Cluster,
    rate: u32,
) -> anyhow::Result<()> {
    screen.step("A pod is removed while clients send")?;
    let target = cluster.service_v4();
    let clients = [Protocol::Http, Protocol::Udp]
        .into_iter()
        .map(|protocol| {
            let timeout = Duration::from_secs(5);
            let load = Load { target, protocol, rate, until: Until::Told, timeout };
            cluster.fairlead.client(&cluster.client, &load)
        })
        .collect::<Result<Vec<_>, _>>()?;
    screen.line(&format!("{rate} HTTP connections and {rate} UDP questions a second go on"))?;
    let deadline = Duration::from_secs(30);
    interrupt.wait_until(deadline, || answered(&clients) >= 2 * BEFORE * u64::from(rate))?;

    let leaving = cluster.webs.remove(1);
    let name = leaving.pod.name().to_owned();
    let mut endpoints: Vec<_> = cluster.webs.iter().map(|web| Endpoint::of(&web.pod)).collect();
    let staying = endpoints.clone();
    endpoints.push(Endpoint::of(&leaving.pod).in_state(State::Terminating));
    cluster.folder.write_endpoints(&cluster.service, &endpoints)?;
    screen.line(&format!("{name} is marked as terminating in the EndpointSlices"))?;
    wait_quiet(screen, interrupt, &clients, &name)?;
    end(leaving)?;
    cluster.folder.write_endpoints(&cluster.service, &staying)?;
    screen.line(&format!("{name} has ended, and is gone from the EndpointSlices"))?;

    let goal = answered(&clients) + 2 * AFTER * u64::from(rate);
    screen.progress("sending on ...")?;
    interrupt.wait_until(deadline, || answered(&clients) >= goal)?;
    summarise(screen, clients)
}

fn answered(clients: &[Client]) -> u64 {
    clients.iter().map(|client| client.tally().requests).sum()
}

/// Waits until `name` gets no more requests, and says how soon that was.
fn wait_quiet(
    screen: &mut Screen,
    interrupt: &Interrupt,
    clients: &[Client],
    name: &str,
) -> anyhow::Result<()> {
    let hits = || -> u64 {
        clients.iter().filter_map(|client| client.tally().answers.get(name).copied()).sum()
    };
    let marked = Instant::now();
    let (mut seen, mut last) = (hits(), marked);
    let is_quiet = interrupt.wait_until(QUIET_WITHIN, || {
        let now = hits();
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

fn end(web: Web) -> anyhow::Result<()> {
    let Web { pod, mut server } = web;
    server.terminate(GRACE).with_context(|| format!("ending the server in {}", pod.name()))?;
    Ok(pod.remove()?)
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
            "of {requests} requests while a pod was removed, these failed: {}",
            failures.join(", ")
        );
    }
    Ok(screen.line(&format!("{} requests, 0 failed", count(requests)))?)
}
