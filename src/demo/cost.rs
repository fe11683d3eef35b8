//! What the Service's address costs, beside the pods' own.

use std::net::SocketAddr;

use sandbox::{
    hello,
    traffic::{
        Protocol,
        compare::{Comparison, Cost},
    },
};

use super::{
    cluster::Cluster,
    screen::{Screen, count},
};
use crate::interrupt::Interrupt;

const N_ROUNDS: u32 = 100;
/// In a round: long enough to take every pod in turn a few times.
const N_REQUESTS: u32 = 30;

pub(super) fn show(
    screen: &mut Screen,
    interrupt: &Interrupt,
    cluster: &Cluster,
) -> anyhow::Result<()> {
    let [service, _] = cluster.service();
    screen.step("What that costs, beside the pods' own addresses")?;
    let direct: Vec<SocketAddr> =
        cluster.webs()?.iter().map(|web| (web.addresses.v4, hello::PORT).into()).collect();
    let mut lines = vec![format!("{:<6}{:>12}{:>14}{:>9}", "", "pod", "Service", "ratio")];
    for (name, protocol) in [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp)] {
        screen.progress(&format!("measuring {name} ..."))?;
        let comparison = Comparison {
            protocol,
            direct: direct.clone(),
            service,
            n_rounds: N_ROUNDS,
            n_requests: N_REQUESTS,
        };
        let costs = cluster.fairlead.compare(&cluster.client, &comparison)?;
        interrupt.wait_until(std::time::Duration::ZERO, || true)?;
        lines.push(format!(
            "{name:<6}{:>12}{:>14}{:>9.2}",
            micros(costs.direct),
            micros(costs.service),
            costs.service.p50_ns as f64 / costs.direct.p50_ns.max(1) as f64,
        ));
    }
    for line in lines {
        screen.line(&line)?;
    }
    let n_requests = u64::from(N_ROUNDS) * u64::from(N_REQUESTS);
    screen.line("connect, question, answer, close: the median of")?;
    screen.line(&format!(
        "{} requests each way, in {N_ROUNDS} short rounds in turn",
        count(n_requests)
    ))?;
    Ok(())
}

fn micros(cost: Cost) -> String {
    format!("{:.1} us", cost.p50_ns as f64 / 1000.0)
}
