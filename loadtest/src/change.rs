//! What clients notice of endpoints that come and go. `[pure]`

use serde::{Deserialize, Serialize};

use crate::tally::GRAIN;

/// An endpoint came or went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When the objects said so, on the monotonic clock.
    pub at: u64,
    /// Which endpoint, as it answers.
    pub endpoint: String,
    /// Whether it came.
    pub is_added: bool,
}

/// What clients noticed of a change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// The change.
    pub change: Change,
    /// Nanoseconds until requests follow: to the last that a removed endpoint answered, or to the
    /// first that an added one did. Nothing when that did not come before the slice ended.
    pub took: Option<u64>,
    /// The share of requests that an added endpoint gets from then on.
    pub share: Option<f64>,
}

/// What was noticed of each change before `until`, the end of the slice. `hits` are those of
/// [`crate::tally::Tally::hits`].
#[must_use]
pub fn effects(changes: &[Change], hits: &[(u64, String, u64)], until: u64) -> Vec<Effect> {
    changes
        .iter()
        .enumerate()
        .map(|(idx, change)| {
            let later = changes.iter().skip(idx + 1).find(|it| it.endpoint == change.endpoint);
            let until = later.map_or(until, |later| later.at);
            // A hit is known to its grain: those of the change's own grain may come before it.
            let after = |hit: &&(u64, String, u64)| change.at <= hit.0 && hit.0 < until;
            let own = |hit: &&(u64, String, u64)| hit.1 == change.endpoint;
            let times = hits.iter().filter(after).filter(own).map(|(at, ..)| *at - change.at);
            if !change.is_added {
                let took = times.max().map_or(0, |took| took + GRAIN);
                return Effect { change: change.clone(), took: Some(took), share: None };
            }
            let took = times.min();
            let share = took.map(|took| {
                let since = |hit: &&(u64, String, u64)| hit.0 >= change.at + took;
                let sum = |hits: &mut dyn Iterator<Item = &(u64, String, u64)>| {
                    hits.map(|(.., n)| *n).sum::<u64>()
                };
                let all = sum(&mut hits.iter().filter(after).filter(since));
                let own = sum(&mut hits.iter().filter(after).filter(since).filter(own));
                own as f64 / all.max(1) as f64
            });
            Effect { change: change.clone(), took, share }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MILLISECOND;

    fn change(millis: u64, is_added: bool) -> Change {
        Change { at: millis * MILLISECOND, endpoint: "b".to_owned(), is_added }
    }

    /// Requests to `a` and `b` in turn, each millisecond one, save `b`'s from `gone` to `back`.
    fn hits(gone: u64, back: u64) -> Vec<(u64, String, u64)> {
        (0..1000)
            .filter(|ms| ms % 2 == 0 || *ms < gone || *ms >= back)
            .map(|ms| (ms * MILLISECOND, if ms % 2 == 0 { "a" } else { "b" }.to_owned(), 1))
            .collect()
    }

    #[test]
    fn a_removal_took_until_the_last_answer_and_an_addition_to_the_first() {
        let changes = [change(100, false), change(500, true)];
        let effects = effects(&changes, &hits(106, 511), 1000 * MILLISECOND);
        assert_eq!(effects[0].took, Some(5 * MILLISECOND + GRAIN));
        assert_eq!(effects[1].took, Some(11 * MILLISECOND));
        let share = effects[1].share.unwrap();
        assert!((share - 0.5).abs() < 0.01, "{share}");
    }

    #[test]
    fn an_endpoint_that_never_comes_is_told_as_such() {
        let effects = effects(&[change(100, true)], &hits(0, 1000), 1000 * MILLISECOND);
        assert_eq!((effects[0].took, effects[0].share), (None, None));
    }

    #[test]
    fn a_removal_that_nobody_noticed_took_no_time() {
        let effects = effects(&[change(100, false)], &hits(90, 1000), 1000 * MILLISECOND);
        assert_eq!(effects[0].took, Some(0));
    }
}
