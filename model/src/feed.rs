//! From one cluster to its readers: each takes the newest snapshot and what differs since its last
//! look, at its own pace. A slow reader costs nothing but its own delay: what it has not looked at
//! yet is merged, so there is no queue.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::cluster::{Dirty, Snapshot};

/// Makes a feed with one reader.
pub fn feed() -> (FeedWriter, FeedReader) {
    let slot = Arc::new(Slot::default());
    (FeedWriter { slots: vec![Arc::clone(&slot)] }, FeedReader { slot })
}

/// The cluster's end of a feed. Dropping it ends the readers.
#[derive(Debug)]
pub struct FeedWriter {
    slots: Vec<Arc<Slot>>,
}

/// One reader's end of a feed.
#[derive(Debug)]
pub struct FeedReader {
    slot: Arc<Slot>,
}

/// What one look at a feed finds.
#[derive(Debug, Clone)]
pub struct Update {
    /// The newest snapshot.
    pub snapshot: Snapshot,
    /// What differs from the last one that this reader took.
    pub dirty: Dirty,
}

#[derive(Debug, Default)]
struct Slot {
    pending: Mutex<Pending>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    update: Option<Update>,
    /// Something was published before, so the next update is a difference.
    started: bool,
    ended: bool,
}

impl FeedWriter {
    /// One more reader; its first update says that everything differs.
    pub fn subscribe(&mut self) -> FeedReader {
        let slot = Arc::new(Slot::default());
        self.slots.push(Arc::clone(&slot));
        FeedReader { slot }
    }

    /// Hands a snapshot to every reader.
    pub fn publish(&self, snapshot: &Snapshot, dirty: &Dirty) {
        for slot in &self.slots {
            let mut pending = slot.pending.lock().unwrap_or_else(PoisonError::into_inner);
            let dirty = if pending.started { dirty.clone() } else { Dirty::everything() };
            pending.started = true;
            match &mut pending.update {
                Some(update) => {
                    update.snapshot = snapshot.clone();
                    update.dirty.merge(dirty);
                }
                None => {
                    pending.update = Some(Update { snapshot: snapshot.clone(), dirty });
                }
            }
            drop(pending);
            slot.changed.notify_one();
        }
    }
}

impl Drop for FeedWriter {
    fn drop(&mut self) {
        for slot in &self.slots {
            slot.pending.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
            slot.changed.notify_one();
        }
    }
}

impl FeedReader {
    /// Waits for the next update; `None` once the cluster has gone. Safe to cancel: an update
    /// that was not returned stays.
    pub async fn next(&mut self) -> Option<Update> {
        loop {
            if let Some(found) = self.take() {
                return found;
            }
            self.slot.changed.notified().await;
        }
    }

    /// `Some(None)` when the feed has ended, `None` when there is nothing yet.
    #[expect(clippy::option_option, reason = "nothing yet, or the end, or an update")]
    fn take(&mut self) -> Option<Option<Update>> {
        let mut pending = self.slot.pending.lock().unwrap_or_else(PoisonError::into_inner);
        match pending.update.take() {
            Some(update) => Some(Some(update)),
            None => pending.ended.then_some(None),
        }
    }
}
