//! Keys to reconcile: each waits at most once, and is never run twice at the same time.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::Key;

/// A queue of one controller. It holds no more than there are keys.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Key>,
    waiting: HashSet<Key>,
    running: HashSet<Key>,
    /// Added while running: to be run again.
    dirty: HashSet<Key>,
    delayed: BTreeSet<(Instant, Key)>,
    failures: HashMap<Key, u32>,
}

/// How long a key that failed once waits; each further failure doubles it.
const FIRST_RETRY: Duration = Duration::from_millis(10);
const LAST_RETRY: Duration = Duration::from_secs(30);

impl Queue {
    pub(crate) fn add(&self, key: Key) {
        self.lock().add(key);
        self.changed.notify_one();
    }

    pub(crate) fn add_after(&self, key: Key, delay: Duration) {
        self.lock().delayed.insert((Instant::now() + delay, key));
        self.changed.notify_one();
    }

    /// The next key, when there is one.
    pub(crate) async fn next(&self) -> Key {
        loop {
            let changed = self.changed.notified();
            let due = {
                let mut state = self.lock();
                state.promote();
                if let Some(key) = state.ready.pop_front() {
                    state.waiting.remove(&key);
                    state.running.insert(key.clone());
                    if !state.ready.is_empty() {
                        self.changed.notify_one();
                    }
                    return key;
                }
                state.delayed.first().map(|(due, _)| *due)
            };
            match due {
                Some(due) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(due) => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    /// The key has been run: well, or it is to be tried again.
    pub(crate) fn done(&self, key: &Key, well: bool) {
        let mut state = self.lock();
        state.running.remove(key);
        if well {
            state.failures.remove(key);
        } else {
            let failures = state.failures.entry(key.clone()).or_default();
            let delay = FIRST_RETRY.saturating_mul(1 << (*failures).min(12)).min(LAST_RETRY);
            *failures += 1;
            state.delayed.insert((Instant::now() + delay, key.clone()));
        }
        if state.dirty.remove(key) {
            state.add(key.clone());
        }
        drop(state);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, key: Key) {
        if self.running.contains(&key) {
            self.dirty.insert(key);
        } else if self.waiting.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn promote(&mut self) {
        let now = Instant::now();
        while let Some((due, _)) = self.delayed.first()
            && *due <= now
        {
            if let Some((_, key)) = self.delayed.pop_first() {
                self.add(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_runs_again_when_it_changed_meanwhile() {
        let queue = Queue::default();
        let key = Key::new("a", "b");
        queue.add(key.clone());
        queue.add(key.clone());
        assert_eq!(queue.next().await, key);
        tokio::time::timeout(Duration::from_secs(1), queue.next()).await.unwrap_err();
        queue.add(key.clone());
        tokio::time::timeout(Duration::from_secs(1), queue.next()).await.unwrap_err();
        queue.done(&key, true);
        assert_eq!(queue.next().await, key);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_failed_comes_back_later_each_time() {
        let queue = Queue::default();
        let key = Key::new("a", "b");
        queue.add(key.clone());
        let mut last = Duration::ZERO;
        for _ in 0..5 {
            let from = Instant::now();
            assert_eq!(queue.next().await, key);
            let waited = from.elapsed();
            assert!(waited >= last, "{waited:?} after {last:?}");
            last = waited;
            queue.done(&key, false);
        }
        assert!(last >= FIRST_RETRY * 8, "{last:?}");
    }
}
