//! From the feed to the view that answers.

use std::collections::BTreeSet;

use model::cluster::Snapshot;
use model::feed::FeedReader;

use super::{Names, clock};
use crate::zone::Origin;

/// Answers from what the feed says, until it ends. What could not be taken is logged once.
pub async fn follow(mut feed: FeedReader, names: Names) {
    let mut told = BTreeSet::new();
    while let Some(update) = feed.next().await {
        let (before, now) = (names.view(), clock::serial());
        names.publish(before.update(&update.snapshot, &update.dirty, Origin::Watch, now));
        if before.origin() != Origin::Watch {
            let n_services = names.view().n_services();
            tracing::info!(n_services, "the cluster is listed");
        }
        if update.dirty.problems {
            tell(&update.snapshot, &mut told);
        }
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
