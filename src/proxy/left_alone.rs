//! Keeps the sockets of pods alone that ask for it (`fairlead.dev/socket-lb: "off"`).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proxy::backend::ebpf::Packets;
use proxy::left_alone::{Keeper, Seen};
use proxy::plan::LeftAlone;
use proxy::sync::Round;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{info, warn};

/// How soon a pod is looked for again that was not found: its cgroup is about to be made. Then ever later.
const SOON: Duration = Duration::from_millis(100);
/// How often all are looked for: a pod may get another namespace, and somebody else may write the map.
const PERIOD: Duration = Duration::from_secs(10);

/// Has those sockets left alone that the newest plan says, for ever.
pub(super) async fn keep(
    keeper: Option<Keeper>,
    packets: Option<Arc<Mutex<Packets>>>,
    mut rounds: watch::Receiver<Option<Arc<Round>>>,
    told: watch::Sender<Seen>,
) {
    let Some(keeper) = keeper else { return std::future::pending().await };
    let mut known: Option<Arc<LeftAlone>> = None;
    let mut wait = SOON;
    loop {
        let newest = newest(&mut rounds);
        let mut back = BTreeSet::new();
        if newest != known {
            back = put_back(known.as_deref(), newest.as_deref());
            (known, wait) = (newest, SOON);
        }
        let next = match &known {
            Some(desired) => {
                let found = look(&keeper, desired).await;
                let is_whole = found.as_ref().is_some_and(|found| found.values().all(|is| *is));
                if let Some(packets) = packets.as_ref().filter(|_| !back.is_empty()) {
                    packets.lock().unwrap_or_else(PoisonError::into_inner).forget_closed(&back);
                }
                if let Some(found) = found {
                    tell(&told, found);
                }
                match (desired.pods.is_empty(), is_whole) {
                    (true, true) => Duration::MAX,
                    (false, true) => PERIOD,
                    (_, false) => wait,
                }
            }
            None => Duration::MAX,
        };
        wait = (wait * 2).min(PERIOD);
        // Either way it is time to look.
        _ = timeout(next, differs(&mut rounds, &known)).await;
    }
}

/// The addresses of pods that are left alone no more.
fn put_back(before: Option<&LeftAlone>, after: Option<&LeftAlone>) -> BTreeSet<IpAddr> {
    let of = |all: Option<&LeftAlone>| -> BTreeSet<IpAddr> {
        let pods = all.into_iter().flat_map(|all| all.pods.values());
        pods.flat_map(|pod| pod.addresses.iter().copied()).collect()
    };
    &of(before) - &of(after)
}

/// What the last plan says.
fn newest(rounds: &mut watch::Receiver<Option<Arc<Round>>>) -> Option<Arc<LeftAlone>> {
    rounds.borrow_and_update().as_ref().map(|round| Arc::clone(&round.plan.left_alone))
}

/// Waits until a plan says something else.
async fn differs(rounds: &mut watch::Receiver<Option<Arc<Round>>>, known: &Option<Arc<LeftAlone>>) {
    while rounds.changed().await.is_ok() {
        if newest(rounds) != *known {
            return;
        }
    }
    // The process is ending.
    std::future::pending::<()>().await;
}

async fn look(keeper: &Keeper, desired: &Arc<LeftAlone>) -> Option<Seen> {
    let (keeper, desired) = (keeper.clone(), Arc::clone(desired));
    let looked = spawn_blocking(move || keeper.keep(&desired)).await;
    looked.ok()?.inspect_err(|error| warn!("{error}; trying again")).ok()
}

fn tell(told: &watch::Sender<Seen>, found: Seen) {
    told.send_if_modified(|before| {
        let differs = *before != found;
        if differs {
            let n_found = found.values().filter(|is| **is).count();
            info!(n = found.len(), n_found, "sockets of pods are left alone");
            *before = found;
        }
        differs
    });
}

/// A line a pod.
pub(super) fn in_words(pods: &Seen) -> Vec<String> {
    let line = |(pod, is_found): (_, &bool)| match is_found {
        true => format!("Pod {pod}"),
        false => format!("Pod {pod} (no network namespace of this node is its)"),
    };
    pods.iter().map(line).collect()
}
