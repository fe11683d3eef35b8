//! The recent past: what watchers resume from, and lists at an older revision are made of.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kinds::KINDS;
use crate::object::{Key, Object};
use crate::status::{Result, Status};

/// One committed change.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) key: Key,
    /// The new version; of a deleted object the last one, at the revision of its deletion.
    pub(crate) object: Arc<Object>,
    pub(crate) previous: Option<Arc<Object>>,
    pub(crate) deleted: bool,
}

/// The events that are kept, by kind, each in order of revision.
#[derive(Debug)]
pub(crate) struct History {
    of_kind: Vec<OfKind>,
    /// All kinds' events, oldest first: revision, kind and when it was committed.
    order: VecDeque<(u64, usize, Instant)>,
    /// Everything up to this revision has been compacted.
    pub(crate) compacted: u64,
    bytes: usize,
}

#[derive(Debug, Default)]
struct OfKind {
    events: VecDeque<Event>,
    /// The newest event of this kind that has been compacted.
    compacted: u64,
}

impl Default for History {
    fn default() -> Self {
        let of_kind = KINDS.iter().map(|_| OfKind::default()).collect();
        Self { of_kind, order: VecDeque::new(), compacted: 0, bytes: 0 }
    }
}

impl History {
    pub(super) fn push(&mut self, event: Event) {
        let (revision, kind) = (event.object.revision, event.key.kind);
        self.bytes += cost(&event);
        if let Some(of_kind) = self.of_kind.get_mut(kind) {
            of_kind.events.push_back(event);
        }
        self.order.push_back((revision, kind, Instant::now()));
    }

    /// The events of a kind after a revision.
    ///
    /// # Errors
    /// `Expired` when some of them have been compacted.
    pub(crate) fn after(
        &self,
        kind: usize,
        revision: u64,
    ) -> Result<impl DoubleEndedIterator<Item = &Event>> {
        let of_kind = self.of_kind.get(kind).ok_or_else(Status::no_such_path)?;
        if revision < of_kind.compacted {
            let message = format!("too old resource version: {revision} ({})", self.compacted);
            return Err(Status::expired(message));
        }
        let first = of_kind.events.partition_point(|event| event.object.revision <= revision);
        Ok(of_kind.events.range(first..))
    }

    /// The revision up to which history should go now, so many events of it at most.
    pub(super) fn compactable(&self, age: Duration, bytes: usize, most: usize) -> u64 {
        let mut kept = self.bytes;
        let mut revision = self.compacted;
        let mut seen: Vec<usize> = vec![0; self.of_kind.len()];
        for (event_revision, kind, at) in self.order.iter().take(most) {
            if kept <= bytes && at.elapsed() <= age {
                break;
            }
            let Some(nth) = seen.get_mut(*kind) else { break };
            let event = self.of_kind.get(*kind).and_then(|of_kind| of_kind.events.get(*nth));
            kept -= event.map_or(0, cost);
            *nth += 1;
            revision = *event_revision;
        }
        revision
    }

    /// The rows on disk that nothing needs once history up to `revision` is gone.
    pub(super) fn obsolete_rows(&self, revision: u64) -> Vec<u64> {
        let mut rows = Vec::new();
        for of_kind in &self.of_kind {
            let old = of_kind.events.iter().take_while(|event| event.object.revision <= revision);
            for event in old {
                rows.extend(event.previous.as_ref().map(|previous| previous.revision));
                rows.extend(event.deleted.then_some(event.object.revision));
            }
        }
        rows
    }

    /// Forgets the events up to `revision`.
    pub(super) fn compact(&mut self, revision: u64) {
        while let Some((event_revision, kind, _)) = self.order.front().copied() {
            if event_revision > revision {
                break;
            }
            self.order.pop_front();
            let Some(of_kind) = self.of_kind.get_mut(kind) else { continue };
            self.bytes -= of_kind.events.pop_front().as_ref().map_or(0, cost);
            of_kind.compacted = event_revision;
        }
        self.compacted = self.compacted.max(revision);
    }

    /// After a restart, nothing is known of any kind before the compacted revision.
    pub(super) fn begin_at(&mut self, revision: u64) {
        self.compacted = revision;
        for of_kind in &mut self.of_kind {
            of_kind.compacted = revision;
        }
    }
}

/// What keeping an event costs beyond the current objects.
fn cost(event: &Event) -> usize {
    const OVERHEAD: usize = 256;
    let deleted = if event.deleted { event.object.json.len() } else { 0 };
    OVERHEAD + deleted + event.previous.as_ref().map_or(0, |previous| previous.json.len())
}
