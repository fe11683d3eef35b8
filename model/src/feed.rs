//! From one cluster to its readers: each takes the newest snapshot and what differs since its last
//! look, at its own pace. A slow reader costs nothing but its own delay: what it has not looked at
//! yet is merged, so there is no queue.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

use crate::cluster::{Dirty, Snapshot};

/// Makes a feed with one reader.
pub fn feed() -> (FeedWriter, FeedReader) {
    let hub = Arc::new(Hub::default());
    let reader = subscribe(&hub);
    (FeedWriter { hub }, reader)
}

/// The cluster's end of a feed. Dropping it ends the readers.
#[derive(Debug)]
pub struct FeedWriter {
    hub: Arc<Hub>,
}

/// One reader's end of a feed.
#[derive(Debug)]
pub struct FeedReader {
    hub: Arc<Hub>,
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

/// What the writer and all readers share. Readers that are gone fall out at the next publication.
#[derive(Debug, Default)]
struct Hub {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    newest: Option<Snapshot>,
    slots: Vec<Weak<Slot>>,
    ended: bool,
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
    /// One more reader; its first update says that everything differs, and is there at once when
    /// something was published before.
    pub fn subscribe(&self) -> FeedReader {
        subscribe(&self.hub)
    }

    /// Hands a snapshot to every reader.
    pub fn publish(&self, snapshot: &Snapshot, dirty: &Dirty) {
        let mut state = self.hub.lock();
        state.newest = Some(snapshot.clone());
        state
            .slots
            .retain(|slot| slot.upgrade().inspect(|slot| slot.publish(snapshot, dirty)).is_some());
    }
}

impl Drop for FeedWriter {
    fn drop(&mut self) {
        let mut state = self.hub.lock();
        state.ended = true;
        for slot in state.slots.iter().filter_map(Weak::upgrade) {
            slot.end();
        }
    }
}

impl FeedReader {
    /// One more reader of the same feed, as [`FeedWriter::subscribe`] makes it.
    pub fn subscribe(&self) -> Self {
        subscribe(&self.hub)
    }

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
        let mut pending = self.slot.lock();
        match pending.update.take() {
            Some(update) => Some(Some(update)),
            None => pending.ended.then_some(None),
        }
    }
}

fn subscribe(hub: &Arc<Hub>) -> FeedReader {
    let slot = Arc::new(Slot::default());
    let mut state = hub.lock();
    if let Some(newest) = &state.newest {
        slot.publish(newest, &Dirty::everything());
    }
    if state.ended {
        slot.end();
    }
    state.slots.push(Arc::downgrade(&slot));
    drop(state);
    FeedReader { hub: Arc::clone(hub), slot }
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, snapshot: &Snapshot, dirty: &Dirty) {
        let mut pending = self.lock();
        let dirty = if pending.started { dirty.clone() } else { Dirty::everything() };
        pending.started = true;
        match &mut pending.update {
            Some(update) => {
                update.snapshot = snapshot.clone();
                update.dirty.merge(dirty);
            }
            None => pending.update = Some(Update { snapshot: snapshot.clone(), dirty }),
        }
        drop(pending);
        self.changed.notify_one();
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use crate::name::NamespacedName;

    use super::*;

    fn dirty(name: &str) -> Dirty {
        Dirty { services: [NamespacedName::new("a", name)].into(), ..Dirty::default() }
    }

    #[tokio::test]
    async fn what_a_reader_did_not_look_at_is_merged() {
        let (writer, mut reader) = feed();
        writer.publish(&Snapshot::default(), &dirty("first"));
        assert!(reader.next().await.unwrap().dirty.all, "the first update is everything");
        writer.publish(&Snapshot::default(), &dirty("one"));
        writer.publish(&Snapshot::default(), &dirty("two"));
        let mut both = dirty("one");
        both.merge(dirty("two"));
        assert_eq!(reader.next().await.unwrap().dirty, both);
    }

    #[tokio::test]
    async fn a_late_reader_gets_the_newest_snapshot_at_once() {
        let (writer, first) = feed();
        writer.publish(&Snapshot::default(), &dirty("one"));
        let mut late = first.subscribe();
        assert!(late.next().await.unwrap().dirty.all);
        drop(writer);
        assert!(late.next().await.is_none());
        assert!(first.subscribe().next().await.is_some(), "what was published stays readable");
    }
}
