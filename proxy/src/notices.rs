//! What the owners of objects are told after a round: everything that is left out.

use std::collections::BTreeSet;

use model::notice::{Notice, Reason};
use model::problem::Problem;

use crate::sync::Round;

/// All problems that there are after a round, each with the reason that it goes by.
pub fn of(round: &Round) -> BTreeSet<Notice> {
    let notice = |reason| move |problem: &Problem| Notice { problem: problem.clone(), reason };
    let unread = round.snapshot.problems.values().flat_map(|problems| problems.iter());
    let refused = round.plan.services.values().flat_map(|service| service.problems.iter());
    unread
        .map(notice(Reason::InvalidObject))
        .chain(refused.chain(&round.dropped).map(notice(Reason::FailedToProxy)))
        .chain(round.plan.left_alone.problems.iter().map(notice(Reason::FailedToProxy)))
        .chain(round.plan.conflicts.values().map(notice(Reason::AddressConflict)))
        .collect()
}
