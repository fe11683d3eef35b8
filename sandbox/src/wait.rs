//! Waiting for a condition, with a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(5);

/// Looks until `condition` holds, and says whether it did before `timeout` was over.
pub fn until(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    value(timeout, || condition().then_some(())).is_some()
}

/// Looks until `look` finds something, or until `timeout` is over.
pub fn value<T>(timeout: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::park_timeout(INTERVAL);
    }
}
