//! Health check node ports: at each a load balancer asks whether this node has endpoints of one Service.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use model::name::{Family, NamespacedName};
use model::notice::{Notice, Reason};
use model::problem::Problem;
use pages::Page;
use proxy::health::Moment;
use proxy::observer::Observer;
use proxy::plan::Plan;
use proxy::sync::Round;
use proxy::{local, plan};
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{info, warn};

/// How often a port is tried that somebody else has, and addresses are looked at that come and go.
const AGAIN: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// The health check node ports of one proxy.
pub(super) struct Checks {
    observer: Observer,
    /// For how long the kernel may be behind.
    longest: Duration,
    open: BTreeMap<SocketAddr, Open>,
    serving: JoinSet<()>,
    /// The Services whose port cannot be had.
    troubles: watch::Sender<BTreeSet<Notice>>,
}

/// A port at which somebody may ask.
struct Open {
    service: watch::Sender<NamespacedName>,
    serving: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Checks {
    /// None is open yet; what cannot be opened is told to `troubles`.
    pub(super) fn new(
        observer: Observer,
        longest: Duration,
        troubles: watch::Sender<BTreeSet<Notice>>,
    ) -> Self {
        Self { observer, longest, open: BTreeMap::new(), serving: JoinSet::new(), troubles }
    }

    /// Keeps those ports open that the plan asks for, for ever.
    pub(super) async fn serve(mut self, mut seen: watch::Receiver<Option<Arc<Round>>>) {
        loop {
            let round = seen.borrow_and_update().clone();
            let all_done = round.is_none_or(|round| self.follow(&round.plan));
            tokio::select! {
                changed = seen.changed() => if changed.is_err() { return std::future::pending().await },
                () = tokio::time::sleep(AGAIN), if !all_done => {}
            }
        }
    }

    /// Opens and closes what a plan asks for. Says whether that is all, as long as the plan holds.
    fn follow(&mut self, plan: &Plan) -> bool {
        let (desired, is_lasting) = match desired(plan) {
            Ok(desired) => desired,
            Err(error) => {
                warn!("health check node ports stay as they are: {error}");
                return false;
            }
        };
        while self.serving.try_join_next().is_some() {}
        self.open.retain(|at, _| desired.contains_key(at));
        let mut troubles = BTreeSet::new();
        for (at, service) in desired {
            if let Some(open) = self.open.get(&at) {
                open.service
                    .send_if_modified(|of| std::mem::replace(of, service.clone()) != service);
                continue;
            }
            match self.open(at, service.clone()) {
                Ok(open) => _ = self.open.insert(at, open),
                Err(error) => _ = troubles.insert(trouble(&service, at, &error)),
            }
        }
        let all_done = is_lasting && troubles.is_empty();
        for trouble in troubles.difference(&self.troubles.borrow()) {
            warn!("{}; trying again", trouble.problem);
        }
        self.troubles
            .send_if_modified(|known| std::mem::replace(known, troubles.clone()) != troubles);
        all_done
    }

    fn open(&mut self, at: SocketAddr, name: NamespacedName) -> io::Result<Open> {
        let listener = listen(at)?;
        info!("health of Service {name} at {at}");
        let (service, of) = watch::channel(name);
        let (observer, longest) = (self.observer.clone(), self.longest);
        let family = Family::of(&at.ip());
        let serving = pages::serve(listener, move |_| {
            let report = observer.check(&of.borrow(), family, Moment::now(), longest);
            let page = Page::json(report.json()).with_status(report.status());
            let weight = report.weight().to_string();
            std::future::ready(page.with_header("x-load-balancing-endpoint-weight", weight))
        });
        Ok(Open { service, serving: self.serving.spawn(serving) })
    }
}

/// Where each Service is asked about, and whether that holds whatever addresses come and go.
fn desired(plan: &Plan) -> io::Result<(BTreeMap<SocketAddr, NamespacedName>, bool)> {
    let mut desired = BTreeMap::new();
    let mut is_lasting = true;
    if plan.health_checks.is_empty() {
        return Ok((desired, is_lasting));
    }
    for family in Family::ALL {
        let node_ports = plan.settings.node_ports.get(family);
        let is_everywhere = node_ports.within.iter().any(|range| range.prefix_len() == 0);
        let addresses = if is_everywhere {
            BTreeSet::from([anywhere(family)])
        } else {
            is_lasting = false;
            local::serving(family, node_ports)?
        };
        for (name, check) in &plan.health_checks {
            let is_of_family = |service: &Arc<plan::ServicePlan>| {
                service.frontends.iter().any(|(key, _)| key.at.family() == family)
            };
            if plan.services.get(name).is_some_and(is_of_family) {
                for address in &addresses {
                    let at = SocketAddr::new(*address, check.port);
                    desired.entry(at).or_insert_with(|| name.clone());
                }
            }
        }
    }
    Ok((desired, is_lasting))
}

const fn anywhere(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// Each family has a count of its own, so a socket of IPv6 is not one of IPv4 as well.
fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn trouble(service: &NamespacedName, at: SocketAddr, error: &io::Error) -> Notice {
    let object = format!("Service {service}");
    let reason = format!("nobody answers at {at}: {error}; free the port");
    let problem = Problem::new(object, "spec.healthCheckNodePort", reason);
    Notice { problem, reason: Reason::FailedToStartServiceHealthcheck }
}
