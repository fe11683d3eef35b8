//! One source, one cluster, one feed: the task that keeps them together.
//!
//! ```text
//!  source ──batches of Change, bounded──▶ Cluster ──(in sync)──▶ FeedWriter ──▶ FeedReader …
//!     └── Health ──▶ status page
//! ```
//!
//! A change is published at once. A burst is published once: whatever has queued up while the
//! last batch was applied goes with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use crate::cluster::{Change, Cluster, Dirty};
use crate::feed::{FeedReader, FeedWriter, feed};
use crate::notice::Notice;
use crate::source::files::{Files, OpenFolderError};
use crate::source::kube::{Connection, Selection};
use crate::source::script::Script;

/// Batches that may wait for the cluster before the source does.
const QUEUED_BATCHES: usize = 64;

/// A watched cluster.
pub struct Watch {
    /// What the cluster looks like. Further readers come from [`FeedReader::subscribe`].
    pub feed: FeedReader,
    /// How the source is doing.
    pub health: watch::Receiver<Health>,
    /// Where to put what is wrong with objects, for their owners to be told.
    pub notices: Notices,
    /// Does all the work: spawn it where shutdown waits for it. Dropping it ends source, cluster
    /// and feed. It ends by itself only when the source does.
    pub task: BoxFuture<'static, ()>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("feed", &self.feed).finish_non_exhaustive()
    }
}

/// How a source is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// What is being watched: a folder, or an API server's URL.
    pub source: Arc<str>,
    /// Every kind was listed once.
    pub in_sync: bool,
    /// What does not work now, by the part of the source that it concerns.
    pub errors: BTreeMap<Arc<str>, Arc<str>>,
}

/// Where to put the problems that there are now; each set replaces the one before. A source that
/// has owners to tell (an API server) tells them, at its own pace; the others have none.
#[derive(Clone, Debug)]
pub struct Notices(Arc<watch::Sender<Arc<BTreeSet<Notice>>>>);

impl Notices {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Arc::default())))
    }

    /// These are all the problems that there are.
    pub fn set(&self, notices: BTreeSet<Notice>) {
        self.0.send_if_modified(|before| {
            let differs = **before != notices;
            if differs {
                *before = Arc::new(notices);
            }
            differs
        });
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<BTreeSet<Notice>>> {
        self.0.subscribe()
    }
}

/// Watches a folder of Kubernetes YAML and JSON, as seen from the node of that name.
///
/// # Errors
/// The folder cannot be watched.
pub fn files(dir: &Path, node_name: impl Into<Arc<str>>) -> Result<Watch, OpenFolderError> {
    let node_name = node_name.into();
    let folder = Files::open(dir)?;
    let name = dir.display().to_string();
    Ok(start(&name, Arc::clone(&node_name), move |_, out, health| {
        folder.run(node_name, out, health)
    }))
}

/// Watches an API server, as seen from the node of that name.
pub fn kube(connection: Connection, node_name: impl Into<Arc<str>>, selection: Selection) -> Watch {
    let node_name = node_name.into();
    let url = connection.url().to_owned();
    start(&url, Arc::clone(&node_name), move |notices, out, health| async move {
        tokio::select! {
            () = connection.clone().tell(Arc::clone(&node_name), notices) => {}
            () = connection.run(node_name, selection, out, health) => {}
        }
    })
}

/// A cluster that a script speaks for.
pub fn script(node_name: impl Into<Arc<str>>) -> (Script, Watch) {
    let (out, batches) = mpsc::channel(QUEUED_BATCHES);
    let watch = start_with("a script", node_name.into(), batches, |_, _| std::future::ready(()));
    (Script::new(out), watch)
}

fn start<F>(
    source: &str,
    node_name: Arc<str>,
    run: impl FnOnce(Notices, mpsc::Sender<Vec<Change>>, HealthReport) -> F,
) -> Watch
where
    F: Future<Output = ()> + Send + 'static,
{
    let (out, batches) = mpsc::channel(QUEUED_BATCHES);
    start_with(source, node_name, batches, |notices, health| run(notices, out, health))
}

fn start_with<F>(
    source: &str,
    node_name: Arc<str>,
    batches: mpsc::Receiver<Vec<Change>>,
    run: impl FnOnce(Notices, HealthReport) -> F,
) -> Watch
where
    F: Future<Output = ()> + Send + 'static,
{
    let (writer, reader) = feed();
    let health = HealthReport::new(source);
    let receiver = health.sender.subscribe();
    let notices = Notices::new();
    let source = run(notices.clone(), health.clone());
    let keeper = keep(Cluster::new(node_name), batches, writer, health);
    let task = async move { futures::join!(source, keeper) }.map(|((), ())| ()).boxed();
    Watch { feed: reader, health: receiver, notices, task }
}

/// Applies what the source says, and publishes once the cluster is in sync.
async fn keep(
    mut cluster: Cluster,
    mut batches: mpsc::Receiver<Vec<Change>>,
    writer: FeedWriter,
    health: HealthReport,
) {
    let mut unpublished = Dirty::default();
    let mut is_published = false;
    while let Some(batch) = batches.recv().await {
        let mut burst = batch;
        while let Ok(more) = batches.try_recv() {
            burst.extend(more);
            if burst.len() > MAX_BURST {
                break;
            }
        }
        unpublished.merge(cluster.apply_all(burst));
        if cluster.in_sync() && !(is_published && unpublished.is_empty()) {
            writer.publish(&cluster.snapshot(), &std::mem::take(&mut unpublished));
            is_published = true;
            health.in_sync();
        }
    }
}

/// Changes that are published together at most.
const MAX_BURST: usize = 4096;

/// The source's end of [`Health`].
#[derive(Clone, Debug)]
pub(crate) struct HealthReport {
    sender: Arc<watch::Sender<Health>>,
}

impl HealthReport {
    fn new(source: &str) -> Self {
        let health = Health { source: source.into(), ..Health::default() };
        Self { sender: Arc::new(watch::Sender::new(health)) }
    }

    /// A part of the source does not work. Told once, until it works again.
    pub(crate) fn failed(&self, part: &str, what: &str, remedy: &str) {
        self.sender.send_if_modified(|health| {
            let before = health.errors.insert(part.into(), what.into());
            if before.is_none() {
                tracing::warn!(source = &*health.source, part, "{what}; {remedy}");
            }
            before.as_deref() != Some(what)
        });
    }

    /// A part of the source works.
    pub(crate) fn well(&self, part: &str) {
        self.sender.send_if_modified(|health| {
            let before = health.errors.remove(part);
            if before.is_some() {
                tracing::info!(source = &*health.source, part, "works again");
            }
            before.is_some()
        });
    }

    fn in_sync(&self) {
        self.sender.send_if_modified(|health| !std::mem::replace(&mut health.in_sync, true));
    }
}
