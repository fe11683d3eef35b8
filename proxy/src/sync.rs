//! The loop: takes the newest snapshot, plans, compares, applies, and tries again what failed.
//!
//! ```text
//!            ┌────────────── update (snapshot, dirty) ──────────────┐
//!  waiting ──┤                                                      ├─▶ plan ─▶ delta ─▶ apply ─▶ report
//!            └────────────── retry, once the time has come ─────────┘             (first: activate)
//! ```
//!
//! An update is applied at once; whatever arrives meanwhile is merged by the feed and comes as one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::applied::{Applied, AppliedWriter, Routed};
use model::cluster::Snapshot;
use model::feed::{FeedReader, Update};
use model::name::{Family, Protocol};
use model::problem::Problem;
use thiserror::Error;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::backend::{ActivateError, ApplyErrorClass, Backend, Effect, PrepareError};
use crate::by_family::ByFamily;
use crate::config::NodeConfig;
use crate::delta::{Actual, Op, delta, delta_of};
use crate::observer::{Compared, Observer};
use crate::plan::planner::Supports;
use crate::plan::{At, FrontendKey, Plan, Planner};

/// Between two tries of what keeps failing, at most this long.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// So often what fails is tried again before a backend takes charge without it.
const TRIES_BEFORE_ACTIVATE: u32 = 3;
/// How soon a repair that was interfered with is tried again.
const REPAIR_AGAIN: Duration = Duration::from_secs(1);

/// One node's proxy: what it plans with, what it programs, and what the kernel holds.
pub struct Syncer<B> {
    backend: B,
    planner: Planner,
    actual: Actual,
    /// What could not be programmed, and is not tried again until it changes.
    dropped: BTreeMap<FrontendKey, Problem>,
    /// What others are told of the kernel's content.
    told: Option<Told>,
    /// Looks at the first plan before the backend takes charge, then is gone.
    before_activate: Option<BeforeActivate>,
    active: bool,
    failures: u32,
    /// What somebody else changed is not made good yet.
    repairing: bool,
    n_repairs: u64,
    observer: Observer,
}

/// What one round did.
#[derive(Clone, Debug)]
pub struct Round {
    /// The snapshot that it brought the kernel to.
    pub snapshot: Snapshot,
    /// The plan for it.
    pub plan: Plan,
    /// How many operations wrote something.
    pub n_written: usize,
    /// How many operations failed.
    pub n_failed: usize,
    /// What of the plan did not fit.
    pub dropped: Vec<Problem>,
    /// The families of which something is to be tried again.
    pub unfinished: ByFamily<bool>,
    /// When to try again, if something failed that may pass.
    pub retry_after: Option<Duration>,
    /// How long it took, from the update to the kernel.
    pub took: Duration,
    /// How often so far something was missing in the kernel that had been applied, and was
    /// applied again.
    pub n_repairs: u64,
    /// The backend is in charge of new connections.
    pub is_active: bool,
    /// Endpoints of UDP frontends may differ from those of the round before.
    pub udp_changed: bool,
    /// The same, or endpoints of TCP frontends whose connections are ended.
    pub sockets_changed: bool,
}

/// Why the loop cannot go on.
#[derive(Debug, Error)]
pub enum SyncError {
    /// The backend does not work on this node.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// It could not take charge.
    #[error(transparent)]
    Activate(#[from] ActivateError),
    /// It stopped working.
    #[error("{0}")]
    Fatal(String),
    /// A check before taking charge found something.
    #[error("{0}")]
    Refused(String),
}

/// Looks at the first plan before the backend takes charge.
pub type BeforeActivate = Box<dyn FnOnce(&Plan) -> Result<(), String> + Send>;

impl<B: Backend> Syncer<B> {
    /// Makes the backend ready. Nothing is planned or written before the first update.
    ///
    /// # Errors
    /// The backend does not work on this node.
    pub fn new(
        mut backend: B,
        config: NodeConfig,
        supports: Supports,
        before_activate: BeforeActivate,
    ) -> Result<Self, SyncError> {
        let actual = backend.prepare()?;
        info!(
            mode = backend.name(),
            adopted = actual.frontends.len(),
            "prepared; waiting for the first full list"
        );
        Ok(Self {
            backend,
            planner: Planner::new(config).supporting(supports),
            actual,
            dropped: BTreeMap::new(),
            told: None,
            before_activate: Some(before_activate),
            active: false,
            failures: 0,
            repairing: false,
            n_repairs: 0,
            observer: Observer::default(),
        })
    }

    /// Who can be asked how the loop does.
    pub fn observer(&self) -> Observer {
        self.observer.clone()
    }

    /// From now on, says what the kernel holds; at first, what a former process left there.
    pub fn tell(&mut self, teller: AppliedWriter) {
        let routed = self.actual.frontends.keys().filter_map(routed).collect();
        let told = Told { applied: Applied { routed }, teller, changed: true };
        self.told.insert(told).publish();
    }

    /// The backend.
    pub const fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Brings the kernel to an update.
    ///
    /// # Errors
    /// The backend cannot work here any more, or could not take charge after the first update.
    pub fn update(&mut self, update: &Update) -> Result<Round, SyncError> {
        let started = Instant::now();
        self.observer.told(update);
        let change = self.planner.replan(&update.snapshot, &update.dirty);
        let udp_changed =
            !self.active || change.frontends.keys().any(|key| key.protocol == Protocol::Udp);
        // Of one that has gone nobody knows any more what it asked for.
        let sockets_changed = udp_changed
            || change.frontends.iter().any(|(key, frontend)| {
                key.protocol == Protocol::Tcp
                    && frontend.as_ref().is_none_or(|frontend| frontend.ends_connections)
            });
        // After a failure the kernel may differ in more than what changed now.
        let compared = match self.active && self.failures == 0 {
            true => Compared::Change,
            false => Compared::Everything,
        };
        let ops = match compared {
            Compared::Change => delta_of(&self.actual, &change),
            Compared::Everything => delta(&self.actual, self.planner.plan()),
        };
        let round = self.round(&update.snapshot, ops, started)?;
        self.observer.ended(&round, compared);
        Ok(Round { udp_changed, sockets_changed, ..round })
    }

    /// Tries again what failed.
    ///
    /// # Errors
    /// As [`Syncer::update`].
    pub fn retry(&mut self, snapshot: &Snapshot) -> Result<Round, SyncError> {
        // A repair that did not end well was interfered with: more may be missing than it knew of.
        if !self.active
            && let Some(round) = self.audit(snapshot)?
        {
            return Ok(round);
        }
        let ops = delta(&self.actual, self.planner.plan());
        self.whole_round(snapshot, ops, Instant::now())
    }

    /// Looks whether the kernel still holds what was applied, and applies again what is missing.
    /// `None` if nothing is.
    ///
    /// # Errors
    /// As [`Syncer::update`].
    pub fn audit(&mut self, snapshot: &Snapshot) -> Result<Option<Round>, SyncError> {
        let started = Instant::now();
        let actual = match self.backend.audit() {
            Ok(None) => return Ok(None),
            Ok(Some(actual)) => actual,
            Err(error) => {
                warn!("{error}{}; looking again later", source_of(&error));
                return Ok(None);
            }
        };
        warn!(
            mode = self.backend.name(),
            "somebody else changed what was programmed; repairing it"
        );
        self.actual = actual;
        self.active = false;
        self.repairing = true;
        self.observer.lost();
        let ops = delta(&self.actual, self.planner.plan());
        self.whole_round(snapshot, ops, started).map(Some)
    }

    fn whole_round(
        &mut self,
        snapshot: &Snapshot,
        ops: Vec<Op>,
        started: Instant,
    ) -> Result<Round, SyncError> {
        let round = self.round(snapshot, ops, started)?;
        self.observer.ended(&round, Compared::Everything);
        Ok(round)
    }

    fn round(
        &mut self,
        snapshot: &Snapshot,
        ops: Vec<Op>,
        started: Instant,
    ) -> Result<Round, SyncError> {
        let mut outcome = self.apply(ops)?;
        // Who takes charge takes it over from somebody, and ought to have everything by then.
        let is_incomplete = outcome.retry_after.is_some() && self.failures <= TRIES_BEFORE_ACTIVATE;
        if !self.active && !is_incomplete {
            if let Some(check) = self.before_activate.take() {
                check(self.planner.plan()).map_err(SyncError::Refused)?;
            }
            match self.backend.activate() {
                Ok(()) => {
                    self.active = true;
                    info!(
                        mode = self.backend.name(),
                        frontends = self.planner.plan().frontends.len(),
                        written = outcome.n_written,
                        took = ?started.elapsed(),
                        "active"
                    );
                }
                // Whoever made the repair necessary may still be at it.
                Err(error) if self.repairing => {
                    warn!("{error}{}; repairing it again", source_of(&error));
                    outcome.n_failed += 1;
                    outcome.retry_after = outcome.retry_after.max(Some(REPAIR_AGAIN));
                    outcome.unfinished = ByFamily { v4: true, v6: true };
                }
                Err(error) => return Err(error.into()),
            }
        }
        if outcome.n_failed == 0 && std::mem::take(&mut self.repairing) {
            self.n_repairs += 1;
        }
        if let Some(told) = &mut self.told {
            told.publish();
        }
        Ok(Round {
            snapshot: snapshot.clone(),
            n_written: outcome.n_written,
            n_failed: outcome.n_failed,
            dropped: self.dropped.values().cloned().collect(),
            plan: self.planner.plan().clone(),
            unfinished: outcome.unfinished,
            retry_after: outcome.retry_after,
            took: started.elapsed(),
            n_repairs: self.n_repairs,
            is_active: self.active,
            udp_changed: true,
            sockets_changed: true,
        })
    }

    fn apply(&mut self, ops: Vec<Op>) -> Result<Outcome, SyncError> {
        let ops: Vec<Op> = ops.into_iter().filter(|op| !self.is_dropped(op)).collect();
        let mut outcome = Outcome::default();
        let mut may_pass = None;
        for (op, result) in ops.iter().zip(self.backend.apply(&ops).results) {
            match result {
                Ok(effect) => {
                    outcome.n_written += usize::from(effect == Effect::Written);
                    self.actual.done(op);
                    if let Some(told) = &mut self.told {
                        told.done(op);
                    }
                    self.forget_dropped(op);
                }
                Err(error) => {
                    outcome.n_failed += 1;
                    self.actual.failed(op);
                    warn!("{error}{}", cause(&error));
                    match error.class {
                        ApplyErrorClass::Retry { after } => {
                            may_pass = may_pass.max(Some(after));
                            unfinished(op, &mut outcome.unfinished);
                        }
                        ApplyErrorClass::Drop => self.drop_op(op, &error),
                        ApplyErrorClass::Fatal => {
                            return Err(SyncError::Fatal(format!("{error}{}", cause(&error))));
                        }
                    }
                }
            }
        }
        self.failures = if may_pass.is_some() { self.failures.saturating_add(1) } else { 0 };
        outcome.retry_after = may_pass
            .map(|after| (after * 2u32.saturating_pow(self.failures.min(6) - 1)).min(LONGEST_WAIT));
        Ok(outcome)
    }

    /// A frontend that does not fit is not tried again as long as it is the same.
    fn is_dropped(&self, op: &Op) -> bool {
        match op {
            Op::Put { key, frontend } => self
                .dropped
                .get(key)
                .is_some_and(|problem| *problem.object == object_of(&frontend.service.service)),
            _ => false,
        }
    }

    fn forget_dropped(&mut self, op: &Op) {
        if let Op::Put { key, .. } | Op::Remove { key } = op {
            let freed = matches!(op, Op::Remove { .. });
            self.dropped.remove(key);
            if freed {
                // There is room again: all of them are tried at the next full comparison.
                self.failures = self.failures.max(u32::from(!self.dropped.is_empty()));
                self.dropped.clear();
            }
        }
    }

    fn drop_op(&mut self, op: &Op, error: &crate::backend::ApplyError) {
        if let Op::Put { key, frontend } = op {
            let problem =
                Problem::new(object_of(&frontend.service.service), "", format_args!("{error}"));
            self.dropped.insert(*key, problem);
        }
    }
}

/// What others are told of the kernel's content.
#[derive(Debug)]
struct Told {
    applied: Applied,
    teller: AppliedWriter,
    /// Since it was last told.
    changed: bool,
}

impl Told {
    /// Takes note of an operation that succeeded.
    fn done(&mut self, op: &Op) {
        let routed_now = &mut self.applied.routed;
        self.changed |= match op {
            Op::Put { key, .. } => {
                routed(key).is_some_and(|routed| routed_now.insert(routed).is_none())
            }
            Op::Remove { key } => {
                routed(key).is_some_and(|routed| routed_now.remove(&routed).is_some())
            }
            Op::Settings(_) | Op::Own { .. } | Op::Disown { .. } => false,
        };
    }

    fn publish(&mut self) {
        if std::mem::take(&mut self.changed) {
            self.teller.publish(self.applied.clone());
        }
    }
}

#[derive(Debug, Default)]
struct Outcome {
    n_written: usize,
    n_failed: usize,
    unfinished: ByFamily<bool>,
    retry_after: Option<Duration>,
}

/// The families that an operation is about are not done.
const fn unfinished(op: &Op, families: &mut ByFamily<bool>) {
    match op {
        Op::Settings(_) => *families = ByFamily { v4: true, v6: true },
        Op::Put { key, .. } | Op::Remove { key } => *families.get_mut(key.at.family()) = true,
        Op::Own { address, .. } | Op::Disown { address } => {
            *families.get_mut(Family::of(address)) = true;
        }
    }
}

fn routed(key: &FrontendKey) -> Option<Routed> {
    match key.at {
        At::Address(address) => Some(Routed { address, port: key.port, protocol: key.protocol }),
        At::NodePort(_) => None,
    }
}

fn object_of(service: &model::name::NamespacedName) -> String {
    format!("Service {service}")
}

fn cause(error: &crate::backend::ApplyError) -> String {
    error.source.as_ref().map(|source| format!(": {source}")).unwrap_or_default()
}

fn source_of(error: &dyn std::error::Error) -> String {
    error.source().map(|source| format!(": {source}")).unwrap_or_default()
}

/// Everything that the loop reacts to.
#[derive(Debug)]
enum Event {
    /// The cluster differs.
    Update(Update),
    /// The time to try again has come.
    Retry,
    /// The time to look after what was programmed has come.
    Audit,
    /// The cluster's source or the process is ending.
    End,
}

/// Runs until the feed ends or `shutdown` is dropped or set; what is programmed stays. Looks every
/// `audit_period` whether somebody else changed it. Blocks the
/// thread while it writes, so it wants one of its own.
///
/// # Errors
/// The backend cannot work here any more.
pub async fn run<B: Backend>(
    mut syncer: Syncer<B>,
    mut feed: FeedReader,
    rounds: watch::Sender<Option<Arc<Round>>>,
    mut shutdown: watch::Receiver<bool>,
    audit_period: Duration,
) -> Result<(), SyncError> {
    let mut retry_at: Option<tokio::time::Instant> = None;
    let mut last: Option<Arc<Round>> = None;
    let mut audit_at: Option<tokio::time::Instant> = None;
    loop {
        let event = tokio::select! {
            biased;
            _ = shutdown.wait_for(|stop| *stop) => Event::End,
            update = feed.next() => update.map_or(Event::End, Event::Update),
            () = wait_until(retry_at) => Event::Retry,
            () = wait_until(audit_at) => Event::Audit,
        };
        let round = match (event, &last) {
            (Event::Update(update), _) => syncer.update(&update)?,
            (Event::Retry, Some(last)) => syncer.retry(&last.snapshot)?,
            (Event::Audit, Some(last)) => {
                audit_at = Some(tokio::time::Instant::now() + audit_period);
                match syncer.audit(&last.snapshot)? {
                    Some(round) => round,
                    None => continue,
                }
            }
            (Event::Retry | Event::Audit, None) => continue,
            (Event::End, _) => return Ok(()),
        };
        retry_at = round.retry_after.map(|after| tokio::time::Instant::now() + after);
        audit_at = audit_at.or_else(|| Some(tokio::time::Instant::now() + audit_period));
        let round = Arc::new(round);
        last = Some(Arc::clone(&round));
        rounds.send_replace(Some(round));
    }
}

async fn wait_until(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

impl<B: std::fmt::Debug> std::fmt::Debug for Syncer<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Syncer")
            .field("backend", &self.backend)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}
