//! The one writer: runs transactions in order, commits what waits with one sync, then publishes.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::thread;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::disk::{Disk, Obsolete};
use super::{Event, Retention, Shared, State};
use crate::allocate::ServiceIndex;
use crate::object::{Key, Object};
use crate::status::{Result, Status};

/// Transactions committed with one sync, at most.
const BATCH: usize = 512;
/// Events that are compacted beside a write, at least, while there are any to compact.
const COMPACTED_BESIDE: usize = 32;

/// A transaction in the queue.
pub(super) struct Job(Box<dyn FnOnce(&mut Txn<'_>) -> Verdict + Send>);

/// What a transaction came to: whether to keep its changes, and how to answer it.
struct Verdict {
    keep: bool,
    answer: Answer,
}

/// Sends the answer, once the commit's outcome is known.
type Answer = Box<dyn FnOnce(Result<()>) + Send>;

/// What a transaction sees and does. It sees all earlier ones, committed or about to be.
pub(crate) struct Txn<'a> {
    committed: &'a State,
    /// Changes of earlier transactions in this batch: the latest of each object.
    batch: &'a HashMap<Key, Event>,
    staged: Vec<Event>,
    next_revision: u64,
    services: &'a ServiceIndex,
    discard: bool,
}

impl Job {
    pub(super) fn new<T: Send + 'static>(
        transaction: impl FnOnce(&mut Txn<'_>) -> Result<T> + Send + 'static,
        reply: oneshot::Sender<Result<T>>,
    ) -> Self {
        Self(Box::new(move |txn| {
            let result = transaction(txn);
            let keep = result.is_ok() && !txn.discard;
            let answer = Box::new(move |committed: Result<()>| {
                // A client that has gone away does not want its answer.
                drop(reply.send(committed.and(result)));
            });
            Verdict { keep, answer }
        }))
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

impl Txn<'_> {
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Object>> {
        let change = self.staged.iter().rev().find(|event| event.key == *key);
        match change.or_else(|| self.batch.get(key)) {
            Some(event) if event.deleted => None,
            Some(event) => Some(Arc::clone(&event.object)),
            None => self.committed.get(key),
        }
    }

    /// All objects of a kind, in a namespace or everywhere.
    pub(crate) fn list(&self, kind: usize, namespace: Option<&str>) -> Vec<(Key, Arc<Object>)> {
        let mut found: BTreeMap<Key, Arc<Object>> = self
            .committed
            .list(kind, namespace)
            .map(|((namespace, name), object)| {
                let key = Key { kind, namespace: Arc::clone(namespace), name: Arc::clone(name) };
                (key, Arc::clone(object))
            })
            .collect();
        for event in self.batch.values().chain(&self.staged) {
            let elsewhere = namespace.is_some_and(|wanted| wanted != &*event.key.namespace);
            if event.key.kind != kind || elsewhere {
                continue;
            }
            if event.deleted {
                found.remove(&event.key);
            } else {
                found.insert(event.key.clone(), Arc::clone(&event.object));
            }
        }
        found.into_iter().collect()
    }

    pub(crate) fn put(&mut self, key: Key, value: Value) -> Arc<Object> {
        self.stage(key, value, false)
    }

    pub(crate) fn delete(&mut self, key: Key, last: Value) -> Arc<Object> {
        self.stage(key, last, true)
    }

    fn stage(&mut self, key: Key, value: Value, deleted: bool) -> Arc<Object> {
        let previous = self.get(&key);
        let object = Arc::new(Object::seal(key.kind, value, self.next_revision));
        self.next_revision += 1;
        self.staged.push(Event { key, object: Arc::clone(&object), previous, deleted });
        object
    }

    /// What is committed, without what this batch is about to.
    pub(crate) fn committed(&self) -> &State {
        self.committed
    }

    /// Which node ports and load balancer addresses are taken.
    pub(crate) fn services(&self) -> &ServiceIndex {
        self.services
    }

    /// Answers as if written, and writes nothing (`dryRun=All`).
    pub(crate) fn discard(&mut self) {
        self.discard = true;
    }
}

/// Starts the writer's thread. It ends when the store is dropped.
pub(super) fn start(
    shared: Arc<Shared>,
    disk: Disk,
    queue: mpsc::Receiver<Job>,
    retention: Retention,
) -> io::Result<()> {
    let services = index(&shared);
    let mut writer = Writer { shared, disk, retention, services };
    thread::Builder::new().name("store-writer".into()).spawn(move || writer.run(queue))?;
    Ok(())
}

struct Writer {
    shared: Arc<Shared>,
    disk: Disk,
    retention: Retention,
    services: ServiceIndex,
}

impl Writer {
    fn run(&mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.blocking_recv() {
            let mut jobs = vec![first];
            while jobs.len() < BATCH
                && let Ok(job) = queue.try_recv()
            {
                jobs.push(job);
            }
            self.commit(jobs);
        }
    }

    fn commit(&mut self, jobs: Vec<Job>) {
        let (events, answers) = self.execute(jobs);
        let obsolete = if events.is_empty() { None } else { self.obsolete(events.len()) };
        let outcome = match events.as_slice() {
            [] => Ok(()),
            events => self.disk.append(events, obsolete.as_ref()),
        };
        match outcome {
            Ok(()) => {
                self.publish(events, obsolete.map(|obsolete| obsolete.revision));
                for answer in answers {
                    answer(Ok(()));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot write to the store");
                self.services = index(&self.shared);
                for answer in answers {
                    answer(Err(Status::internal(format!("write to the store: {error}"))));
                }
            }
        }
    }

    fn execute(&mut self, jobs: Vec<Job>) -> (Vec<Event>, Vec<Answer>) {
        let committed = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut next_revision = committed.revision + 1;
        let mut batch: HashMap<Key, Event> = HashMap::new();
        let mut events = Vec::new();
        let mut answers = Vec::with_capacity(jobs.len());
        for Job(job) in jobs {
            let mut txn = Txn {
                committed: &committed,
                batch: &batch,
                staged: Vec::new(),
                next_revision,
                services: &self.services,
                discard: false,
            };
            // A transaction that panics is a bug, and must not take the writer with it: its client
            // is told that there is no answer, and the others go on.
            let verdict = catch_unwind(AssertUnwindSafe(|| job(&mut txn)));
            let (staged, after) = (txn.staged, txn.next_revision);
            let Ok(verdict) = verdict else { continue };
            answers.push(verdict.answer);
            if verdict.keep {
                next_revision = after;
                for event in staged {
                    self.services.replace(&event);
                    batch.insert(event.key.clone(), event.clone());
                    events.push(event);
                }
            }
        }
        (events, answers)
    }

    fn publish(&self, events: Vec<Event>, compacted: Option<u64>) {
        let mut newest: BTreeMap<usize, u64> = BTreeMap::new();
        {
            let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
            for event in events {
                newest.insert(event.key.kind, event.object.revision);
                state.apply(event);
            }
            if let Some(revision) = compacted {
                state.history.compact(revision);
            }
        }
        for (kind, revision) in newest {
            if let Some(changed) = self.shared.changed.get(kind) {
                changed.send_replace(revision);
            }
        }
    }

    /// What has outgrown its retention. It goes with the sync of the writes that push it out, a
    /// little more than they are, so that nobody waits for it.
    fn obsolete(&self, n_events: usize) -> Option<Obsolete> {
        let Retention { age, bytes } = self.retention;
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        let revision = state.history.compactable(age, bytes, 2 * n_events + COMPACTED_BESIDE);
        let rows = state.history.obsolete_rows(revision);
        (revision > state.history.compacted).then_some(Obsolete { revision, rows })
    }
}

fn index(shared: &Shared) -> ServiceIndex {
    let state = shared.state.read().unwrap_or_else(PoisonError::into_inner);
    ServiceIndex::build(&state)
}
