//! The store: one revision counter, every write durable before it is answered.
//!
//! Reads come from memory. Writes run one after another on one thread, which commits as many as
//! are waiting with one `fsync`, and only then shows them to readers and watchers and answers
//! them. What is on disk is a log: the newest version of every object, and whatever history has
//! not been compacted.

mod disk;
mod history;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::kinds::KINDS;
use crate::object::{Key, Object};
use crate::status::{Result, Status};

pub(crate) use history::{Event, History};
pub(crate) use writer::Txn;

/// How much history is kept for watchers that resume.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Events older than this are dropped.
    pub age: Duration,
    /// At most this many bytes of superseded and deleted objects are kept.
    pub bytes: usize,
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// The data directory cannot be made.
    #[error("make the data directory {path}")]
    MakeDirectory {
        /// The directory.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The database does not open, or does not answer.
    #[error("open the database (is another server using this data directory?)")]
    Database(#[from] rusqlite::Error),
    /// A stored row cannot be read back.
    #[error("read the object stored at revision {revision}: {reason}")]
    Corrupt {
        /// Which row.
        revision: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The writer's thread cannot be started.
    #[error("start the writer thread")]
    StartWriter(#[source] std::io::Error),
}

/// The objects, their history, and the door to the writer.
#[derive(Debug)]
pub(crate) struct Store {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<writer::Job>,
}

/// What the writer publishes and everybody reads.
#[derive(Debug)]
struct Shared {
    state: RwLock<State>,
    /// The newest revision of each kind, for its watchers to wait on.
    changed: Vec<watch::Sender<u64>>,
}

/// Namespace and name, as the objects of one kind are ordered.
pub(crate) type ObjectName = (Arc<str>, Arc<str>);

/// Namespace, the value of the indexed label, name.
type Labelled = (Arc<str>, Box<str>, Arc<str>);

/// Everything that is committed, at one revision.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) revision: u64,
    objects: Vec<BTreeMap<ObjectName, Arc<Object>>>,
    /// Of the kinds that have an indexed label.
    by_label: Vec<BTreeSet<Labelled>>,
    history: History,
}

impl Store {
    /// Opens (or makes) the store in a directory.
    pub(crate) fn open(directory: &Path, retention: Retention) -> Result<Self, OpenStoreError> {
        std::fs::create_dir_all(directory).map_err(|source| OpenStoreError::MakeDirectory {
            path: directory.to_owned(),
            source,
        })?;
        let disk = disk::Disk::open(&directory.join("control.db"))?;
        let state = disk.load()?;
        let revision = state.revision;
        let changed = KINDS.iter().map(|_| watch::Sender::new(revision)).collect();
        let shared = Arc::new(Shared { state: RwLock::new(state), changed });
        let (jobs, queue) = mpsc::channel(1024);
        writer::start(Arc::clone(&shared), disk, queue, retention)
            .map_err(OpenStoreError::StartWriter)?;
        Ok(Self { shared, jobs })
    }

    /// What is committed now.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.shared.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something of the kind has changed.
    pub(crate) fn changes(&self, kind: usize) -> Option<watch::Receiver<u64>> {
        self.shared.changed.get(kind).map(watch::Sender::subscribe)
    }

    /// Runs a transaction. It is durable when this returns `Ok`; it left nothing behind when this
    /// returns an error.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        transaction: impl FnOnce(&mut Txn<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let job = writer::Job::new(transaction, answer);
        let stopped = || Status::unavailable("the store is shutting down");
        self.jobs.send(job).await.map_err(|_stopped| stopped())?;
        answered.await.map_err(|_stopped| stopped())?
    }
}

impl State {
    fn empty() -> Self {
        Self {
            revision: 0,
            objects: KINDS.iter().map(|_| BTreeMap::new()).collect(),
            by_label: KINDS.iter().map(|_| BTreeSet::new()).collect(),
            history: History::default(),
        }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Object>> {
        let name = (Arc::clone(&key.namespace), Arc::clone(&key.name));
        self.objects.get(key.kind)?.get(&name).cloned()
    }

    pub(crate) fn history(&self) -> &History {
        &self.history
    }

    /// The objects of a kind in order, of one namespace or of all.
    pub(crate) fn list<'a>(
        &'a self,
        kind: usize,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a ObjectName, &'a Arc<Object>)> {
        let first: ObjectName = (namespace.unwrap_or_default().into(), "".into());
        let of_kind =
            self.objects.get(kind).into_iter().flat_map(move |map| map.range(first.clone()..));
        of_kind.take_while(move |((ns, _), _)| namespace.is_none_or(|wanted| wanted == &**ns))
    }

    /// The objects of a namespace whose indexed label has this value.
    pub(crate) fn labelled<'a>(
        &'a self,
        kind: usize,
        namespace: &'a str,
        value: &'a str,
    ) -> impl Iterator<Item = (&'a ObjectName, &'a Arc<Object>)> {
        let first = (namespace.into(), value.into(), "".into());
        let of_kind =
            self.by_label.get(kind).into_iter().flat_map(move |set| set.range(first.clone()..));
        of_kind
            .take_while(move |(ns, label, _)| (&**ns, &**label) == (namespace, value))
            .filter_map(move |(ns, _, name)| {
                self.objects.get(kind)?.get_key_value(&(Arc::clone(ns), Arc::clone(name)))
            })
    }

    /// The objects of a kind as they were at an earlier revision that history still reaches.
    pub(crate) fn list_at(
        &self,
        kind: usize,
        namespace: Option<&str>,
        revision: u64,
    ) -> Result<BTreeMap<ObjectName, Arc<Object>>> {
        let mut objects: BTreeMap<_, _> = self
            .list(kind, namespace)
            .map(|(name, object)| (name.clone(), Arc::clone(object)))
            .collect();
        for event in self.history.after(kind, revision)?.rev() {
            if namespace.is_some_and(|wanted| wanted != &*event.key.namespace) {
                continue;
            }
            let name = (Arc::clone(&event.key.namespace), Arc::clone(&event.key.name));
            match &event.previous {
                Some(previous) => objects.insert(name, Arc::clone(previous)),
                None => objects.remove(&name),
            };
        }
        Ok(objects)
    }

    /// Takes up one committed change.
    fn apply(&mut self, event: Event) {
        self.revision = event.object.revision;
        self.index(&event);
        let name = (Arc::clone(&event.key.namespace), Arc::clone(&event.key.name));
        if let Some(objects) = self.objects.get_mut(event.key.kind) {
            if event.deleted {
                objects.remove(&name);
            } else {
                objects.insert(name, Arc::clone(&event.object));
            }
        }
        self.history.push(event);
    }

    fn index(&mut self, event: &Event) {
        let Some(label) = KINDS.get(event.key.kind).and_then(|kind| kind.indexed) else { return };
        let Some(by_label) = self.by_label.get_mut(event.key.kind) else { return };
        let entry = |object: &Object| {
            let (namespace, name) = (Arc::clone(&event.key.namespace), Arc::clone(&event.key.name));
            object.label(label).map(|value| (namespace, value.into(), name))
        };
        if let Some(old) = event.previous.as_deref().and_then(entry) {
            by_label.remove(&old);
        }
        if !event.deleted {
            by_label.extend(entry(&event.object));
        }
    }
}

#[cfg(test)]
mod tests;
