//! One kind on one API server, followed.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{ListParams, WatchParams};
use kube::core::{ObjectMeta, WatchEvent};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::cluster::{Change, Kind};
use crate::name::NamespacedName;
use crate::parse::{Names, Parsed};
use crate::source::kube::backoff::Backoff;
use crate::source::kube::{Selector, Watched};
use crate::watch::HealthReport;

/// Objects a page of a list.
const PAGE: u32 = 500;
/// Events that go on together when they arrive together.
const BATCH: usize = 256;
/// A page takes longer than this only if nobody is there.
const PAGE_WITHIN: Duration = Duration::from_secs(60);
/// The server ends a watch by itself after so many seconds, as kube-proxy asks it to.
const WATCH_SECONDS: u32 = 290;
/// API servers send a bookmark a minute; from one that is silent for longer the connection may be
/// gone, and asking again costs one request.
const SILENT_FOR: Duration = Duration::from_secs(120);
/// A watch that ends sooner than this has not worked, whatever it says.
const WORKED_AFTER: Duration = Duration::from_secs(1);
/// What fails after longer than this had worked until then.
const LONGEST_FAILURE: Duration = PAGE_WITHIN.saturating_add(Duration::from_secs(1));

/// A kind that is listed and watched.
pub(super) trait Followed:
    Resource + Clone + DeserializeOwned + fmt::Debug + 'static
{
    /// The kind.
    const KIND: Kind;
    /// The kind's name, as the API spells it.
    const TITLE: &'static str;

    /// The object, stripped.
    fn parse(&self, names: &mut Names) -> Parsed<Change>;

    /// That an object is gone.
    fn gone(name: NamespacedName) -> Change;
}

/// Follows one kind.
#[derive(Debug)]
pub(super) struct Follower {
    selector: Selector,
    out: mpsc::Sender<Vec<Change>>,
    health: HealthReport,
    url: Arc<str>,
    names: Names,
    /// The resourceVersion up to which everything is known; `None` asks for a list.
    version: Option<String>,
    /// Objects with problems, to be cleared when they are mended or go.
    faulty: BTreeSet<Arc<str>>,
    /// A server that refuses to list the kind is taken to have nothing of it.
    if_allowed: bool,
}

/// Why following cannot go on as it did.
enum Stop {
    /// Nobody listens any more.
    Unheard,
    /// The server no longer knows the version that we know.
    Forgotten,
    /// Anything else.
    Failed(String),
}

impl From<kube::Error> for Stop {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 410 => Self::Forgotten,
            kube::Error::Api(status) => {
                Self::Failed(format!("{} {}: {}", status.code, status.reason, status.message))
            }
            other => Self::Failed(chain(&other)),
        }
    }
}

/// An error with its sources, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

impl Follower {
    pub(super) fn new(
        selector: Selector,
        out: mpsc::Sender<Vec<Change>>,
        health: HealthReport,
        url: &Arc<str>,
    ) -> Self {
        Self {
            selector,
            out,
            health,
            url: Arc::clone(url),
            names: Names::default(),
            version: None,
            faulty: BTreeSet::new(),
            if_allowed: false,
        }
    }

    /// Does that if the kind is watched; says that there is nothing of it if it is not.
    pub(super) async fn run_if<K: Followed>(mut self, watched: Watched, api: Api<K>) {
        match watched {
            // Nobody listens only when the process is ending.
            Watched::No => drop(self.send(none(K::KIND)).await),
            Watched::IfAllowed | Watched::Yes => {
                self.if_allowed = watched == Watched::IfAllowed;
                self.run(api).await;
            }
        }
    }

    /// Lists and watches until nobody listens.
    pub(super) async fn run<K: Followed>(mut self, api: Api<K>) {
        let mut backoff = Backoff::default();
        loop {
            let started = Instant::now();
            let stop = match self.version.clone() {
                None => self.list(&api).await,
                Some(version) => self.watch(&api, &version).await,
            };
            match stop {
                // Only a watch that lasts shows that all is well.
                Ok(Step::Listed) => {}
                Ok(Step::Watched) if started.elapsed() >= WORKED_AFTER => backoff.reset(),
                Ok(Step::Watched) => sleep(backoff.next()).await,
                Err(Stop::Unheard) => return,
                Err(Stop::Forgotten) => {
                    tracing::debug!(kind = K::TITLE, "resourceVersion too old: listing again");
                    self.version = None;
                    sleep(backoff.next()).await;
                }
                Err(Stop::Failed(why)) => {
                    // What was listed before stays in force.
                    if is_refused(&why) && std::mem::take(&mut self.if_allowed) {
                        drop(self.send(none(K::KIND)).await);
                    }
                    let what = format!("{}s of {} cannot be watched: {why}", K::TITLE, self.url);
                    self.health.failed(K::TITLE, &what, remedy(&why));
                    if started.elapsed() >= LONGEST_FAILURE {
                        backoff.reset();
                    }
                    sleep(backoff.next()).await;
                }
            }
            if self.out.is_closed() {
                return;
            }
        }
    }

    async fn list<K: Followed>(&mut self, api: &Api<K>) -> Result<Step, Stop> {
        let mut params = ListParams::default().limit(PAGE);
        params.label_selector = some(&self.selector.labels);
        params.field_selector = some(&self.selector.fields);
        // What is listed again clears itself; what is not is gone.
        let mut unlisted = std::mem::take(&mut self.faulty);
        let mut changes = vec![Change::ListBegins(K::KIND)];
        loop {
            let page = match timeout(PAGE_WITHIN, api.list(&params)).await {
                Ok(Ok(page)) => page,
                Ok(Err(error)) => {
                    self.faulty.append(&mut unlisted);
                    return Err(error.into());
                }
                Err(_elapsed) => {
                    self.faulty.append(&mut unlisted);
                    return Err(Stop::Failed(format!("no answer within {PAGE_WITHIN:?}")));
                }
            };
            let metadata = page.metadata;
            for object in page.items {
                self.take(&object, &mut changes, &mut unlisted);
            }
            params.continue_token = metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_some() {
                self.send(std::mem::take(&mut changes)).await?;
                continue;
            }
            changes.extend(unlisted.into_iter().map(cleared));
            changes.push(Change::ListDone(K::KIND));
            self.send(changes).await?;
            self.if_allowed = false;
            self.health.well(K::TITLE);
            self.version = Some(version_of(metadata.resource_version)?);
            return Ok(Step::Listed);
        }
    }

    async fn watch<K: Followed>(&mut self, api: &Api<K>, version: &str) -> Result<Step, Stop> {
        let params = WatchParams {
            label_selector: some(&self.selector.labels),
            field_selector: some(&self.selector.fields),
            timeout: Some(WATCH_SECONDS),
            bookmarks: true,
            ..WatchParams::default()
        };
        let opened = timeout(PAGE_WITHIN, api.watch(&params, version)).await;
        let opened = opened.map_err(|_elapsed| {
            Stop::Failed(format!("no answer to a watch within {PAGE_WITHIN:?}"))
        })?;
        let mut events = std::pin::pin!(opened?.ready_chunks(BATCH));
        self.health.well(K::TITLE);
        loop {
            let heard = tokio::select! {
                heard = timeout(SILENT_FOR, events.next()) => heard,
                () = self.out.closed() => return Err(Stop::Unheard),
            };
            let Ok(Some(batch)) = heard else { return Ok(Step::Watched) };
            let mut changes = Vec::with_capacity(batch.len());
            let stop = batch
                .into_iter()
                .try_for_each(|event| self.hear(event.map_err(Stop::from)?, &mut changes));
            // What came before a failure counts.
            if !changes.is_empty() {
                self.send(changes).await?;
            }
            stop?;
        }
    }

    fn hear<K: Followed>(
        &mut self,
        event: WatchEvent<K>,
        changes: &mut Vec<Change>,
    ) -> Result<(), Stop> {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.take(&object, changes, &mut BTreeSet::new());
                self.version = Some(version_of(object.meta().resource_version.clone())?);
            }
            WatchEvent::Deleted(object) => {
                let title = title::<K>(object.meta());
                if self.faulty.remove(&title) {
                    changes.push(cleared(title));
                }
                changes.push(K::gone(self.name_of(object.meta())));
                self.version = Some(version_of(object.meta().resource_version.clone())?);
            }
            WatchEvent::Bookmark(bookmark) => {
                self.version = Some(version_of(Some(bookmark.metadata.resource_version))?);
            }
            WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
        }
        Ok(())
    }

    /// One object that exists.
    fn take<K: Followed>(
        &mut self,
        object: &K,
        changes: &mut Vec<Change>,
        unlisted: &mut BTreeSet<Arc<str>>,
    ) {
        let Parsed { object: change, problems } = object.parse(&mut self.names);
        // What is not for us, or can no longer be taken, is gone as far as we are concerned.
        changes.push(change.unwrap_or_else(|| K::gone(self.name_of(object.meta()))));
        let title = title::<K>(object.meta());
        let was_faulty = self.faulty.contains(&title) | unlisted.remove(&title);
        if problems.is_empty() && !was_faulty {
            return;
        }
        if problems.is_empty() {
            self.faulty.remove(&title);
        } else {
            self.faulty.insert(Arc::clone(&title));
        }
        changes.push(Change::Problems { origin: title, problems });
    }

    fn name_of(&mut self, metadata: &ObjectMeta) -> NamespacedName {
        NamespacedName {
            namespace: self.names.share(metadata.namespace.as_deref().unwrap_or_default()),
            name: self.names.share(metadata.name.as_deref().unwrap_or_default()),
        }
    }

    async fn send(&self, changes: Vec<Change>) -> Result<(), Stop> {
        self.out.send(changes).await.map_err(|_gone| Stop::Unheard)
    }
}

/// How far following came.
enum Step {
    Listed,
    /// A watch ended, as all do.
    Watched,
}

fn some(selector: &str) -> Option<String> {
    (!selector.is_empty()).then(|| selector.to_owned())
}

fn version_of(version: Option<String>) -> Result<String, Stop> {
    let version = version.filter(|version| !version.is_empty());
    version.ok_or_else(|| Stop::Failed("no resourceVersion in the answer".to_owned()))
}

fn title<K: Followed>(metadata: &ObjectMeta) -> Arc<str> {
    let name = metadata.name.as_deref().unwrap_or_default();
    match metadata.namespace.as_deref() {
        Some(namespace) => format!("{} {namespace}/{name}", K::TITLE),
        None => format!("{} {name}", K::TITLE),
    }
    .into()
}

const fn cleared(origin: Arc<str>) -> Change {
    Change::Problems { origin, problems: Vec::new() }
}

/// As far as anybody asks, there is nothing of a kind.
fn none(kind: Kind) -> Vec<Change> {
    [Change::ListBegins, Change::ListDone].map(|end| end(kind)).into()
}

fn is_refused(why: &str) -> bool {
    why.starts_with("401") || why.starts_with("403")
}

fn remedy(why: &str) -> &'static str {
    if is_refused(why) {
        "what was seen stays in force; give this identity get, list and watch on the kind"
    } else {
        "what was seen stays in force and it is tried again; check that the API server is reachable"
    }
}
