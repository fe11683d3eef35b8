//! From the feed to the view that answers.

use std::collections::BTreeSet;
use std::thread;

use model::applied::{Applied, AppliedReader};
use model::cluster::Snapshot;
use model::feed::{FeedReader, Update};
use tokio::time::{Instant, sleep_until};

use super::gate::Waiting;
use super::{Names, clock, pages};
use crate::zone::Origin;

/// What the loop reacts to.
enum Event {
    /// The cluster differs.
    Update(Update),
    /// The kernel holds something else, or a name has waited long enough.
    Look,
    /// The cluster's source is ending.
    End,
}

/// Answers from what the feed says, until it ends. What could not be taken is logged once. With
/// `applied`, a name is told once the kernel routes its address.
pub async fn follow(mut feed: FeedReader, names: Names, mut applied: Option<AppliedReader>) {
    let mut told = BTreeSet::new();
    let mut waiting = Waiting::default();
    loop {
        let event = tokio::select! {
            biased;
            update = feed.next() => update.map_or(Event::End, Event::Update),
            () = changed(applied.as_mut()) => Event::Look,
            () = due(waiting.deadline()) => Event::Look,
        };
        let holds = applied.as_ref().map(AppliedReader::now);
        match event {
            Event::Update(update) => {
                take(&names, &update, holds.as_ref(), &mut waiting);
                if update.dirty.problems {
                    tell(&update.snapshot, &mut told);
                }
            }
            Event::Look => {
                if let Some(holds) = holds {
                    look(&names, &holds, &mut waiting);
                }
            }
            Event::End => return,
        }
    }
}

/// Answers from an update on; what is new in it waits for its address to be routed.
fn take(names: &Names, update: &Update, applied: Option<&Applied>, waiting: &mut Waiting) {
    let before = names.view();
    let view = before.update(&update.snapshot, &update.dirty, Origin::Watch, clock::serial());
    match applied {
        Some(applied) => {
            let after = (&update.snapshot, &update.dirty);
            let n = waiting.add(before.snapshot(), after, applied, Instant::now());
            names.shared.metrics.held.add(n as u64);
            names.publish(view.holding(waiting.names()));
        }
        None => names.publish(view),
    }
    if before.origin() != Origin::Watch {
        let n_services = names.view().n_services();
        tracing::info!(n_services, "the cluster is listed");
    }
    if update.dirty.all {
        // Not on this thread, which has changes to take up meanwhile.
        let thread = thread::Builder::new().name("huge-pages".to_owned());
        if let Err(error) = thread.spawn(pages::ask_for_huge_ones) {
            tracing::debug!("names stay on small pages: {error}");
        }
    }
}

/// Tells the names that need not wait any longer.
fn look(names: &Names, applied: &Applied, waiting: &mut Waiting) {
    let view = names.view();
    let settled = waiting.settle(view.snapshot(), applied, Instant::now());
    if settled.n_overdue > 0 {
        let n = settled.n_overdue;
        tracing::warn!(n, "telling names whose addresses are not routed, after a second's wait");
        names.shared.metrics.overdue.add(n as u64);
    }
    if settled.n > 0 {
        names.publish(view.holding(waiting.names()));
    }
}

async fn changed(applied: Option<&mut AppliedReader>) {
    match applied {
        Some(applied) => applied.changed().await,
        None => std::future::pending().await,
    }
}

async fn due(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn tell(snapshot: &Snapshot, told: &mut BTreeSet<String>) {
    let problems = snapshot.problems.values().flat_map(|problems| problems.iter());
    let now: BTreeSet<String> = problems.map(ToString::to_string).collect();
    for problem in now.difference(told) {
        tracing::warn!("{problem}");
    }
    *told = now;
}
