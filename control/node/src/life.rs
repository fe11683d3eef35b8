//! A pod's life: from what is asked for and what is there to what is to be done and what is said.
//! `[pure]`
//!
//! ```text
//!            ┌────────────── restart policy, back-off ──────────────┐
//!            ▼                                                      │
//!  New ─▶ Starting ─▶ Running ─▶ Stopping (preStop, SIGTERM) ─▶ Ended
//!            │                      └─ after the grace period: SIGKILL
//!            └▶ Failed (image, configuration): tried again with back-off
//! ```
//!
//! [`decide`] looks at a pod as a whole: sandbox, init containers in order, sidecars among them,
//! containers, the end. Called again with the same facts it decides the same, so that an agent may
//! be killed between any two steps.

mod backoff;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use serde_json::json;

use crate::runtime::{Ended, Sandbox};
pub(crate) use backoff::Backoff;

/// What is known about a pod on this node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) sandbox: SandboxState,
    pub(crate) containers: BTreeMap<String, Seen>,
    /// When the agent first saw it.
    pub(crate) start_time: Option<Timestamp>,
}

/// What is known about a pod's sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum SandboxState {
    #[default]
    None,
    Making,
    Failed {
        until: Timestamp,
    },
    Ready(Sandbox),
    Removing,
}

/// What is known about one container.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) state: State,
    /// Which attempt the state is about.
    pub(crate) attempt: u32,
    /// How the attempt before ended.
    pub(crate) last: Option<Ended>,
    pub(crate) backoff: Backoff,
    /// Whether its startup probe has succeeded.
    pub(crate) started: bool,
    /// Whether its readiness probe succeeds.
    pub(crate) ready: bool,
    /// Why a probe wants it to end.
    pub(crate) unhealthy: Option<Unhealthy>,
    pub(crate) image_id: String,
    pub(crate) container_id: String,
}

/// A probe's verdict that a container must end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unhealthy {
    pub(crate) why: String,
    /// The probe's own grace period, in seconds.
    pub(crate) grace: Option<i64>,
}

/// Where a container is in its life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    #[default]
    New,
    Starting,
    /// It could not be started; tried again at `until`.
    Failed {
        reason: String,
        message: String,
        until: Timestamp,
    },
    Running {
        since: Timestamp,
    },
    Stopping {
        since: Timestamp,
        deadline: Timestamp,
        killed: bool,
    },
    Ended(Ended),
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    MakeSandbox,
    Start {
        name: String,
        attempt: u32,
        backoff: Backoff,
    },
    /// Run the preStop hook, then SIGTERM.
    Stop {
        name: String,
        deadline: Timestamp,
        why: String,
    },
    /// SIGKILL: the grace period is over.
    Kill {
        name: String,
    },
    RemoveSandbox,
    /// Nothing is left: the API may forget the pod.
    Finish,
}

/// What is to be done now, what is to be said, and when to look again if nothing happens.
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    pub(crate) actions: Vec<Action>,
    pub(crate) status: PodStatus,
    pub(crate) wake: Option<Timestamp>,
}

/// The facts beside the pod itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) known: &'a Known,
    pub(crate) host_ips: &'a [IpAddr],
    /// The API has forgotten the pod already.
    pub(crate) gone: bool,
    pub(crate) now: Timestamp,
}

/// Decides what becomes of a pod.
pub(crate) fn decide(pod: &Pod, facts: &Facts<'_>) -> Decision {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let mut life = Life { pod, spec, facts, actions: Vec::new(), wake: None };
    let fate = life.fate();
    match &fate {
        Fate::Lives => life.go_on(),
        Fate::Ends { deadline, .. } => life.end(*deadline),
    }
    let status = status::build(pod, spec, facts, &fate);
    Decision { actions: life.actions, status, wake: life.wake }
}

/// Whether a pod is to live on.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Lives,
    /// By `deadline` at the latest.
    Ends {
        deadline: Timestamp,
        phase: Option<&'static str>,
        reason: Option<&'static str>,
    },
}

struct Life<'a> {
    pod: &'a Pod,
    spec: &'a PodSpec,
    facts: &'a Facts<'a>,
    actions: Vec<Action>,
    wake: Option<Timestamp>,
}

/// A grace period is never shorter, so that containers that end at once are not killed.
const LEAST_GRACE: i64 = 2;

impl Life<'_> {
    fn fate(&mut self) -> Fate {
        let now = self.facts.now;
        if self.facts.gone {
            let deadline = now + SignedDuration::from_secs(LEAST_GRACE);
            return Fate::Ends { deadline, phase: None, reason: None };
        }
        if let Some(time) = &self.pod.metadata.deletion_timestamp {
            // The API truncates times to seconds, in favour of nobody.
            let deadline = time.0 + SignedDuration::from_secs(1);
            return Fate::Ends { deadline, phase: None, reason: None };
        }
        let grace = SignedDuration::from_secs(self.grace());
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return Fate::Ends { deadline: now + grace, phase: None, reason: None };
        }
        if let (Some(limit), Some(start)) =
            (self.spec.active_deadline_seconds, self.facts.known.start_time)
        {
            let deadline = start + SignedDuration::from_secs(limit);
            if deadline <= now {
                let reason = Some("DeadlineExceeded");
                return Fate::Ends { deadline: now + grace, phase: Some("Failed"), reason };
            }
            self.wake_at(deadline);
        }
        if let Some(phase) = self.outcome() {
            return Fate::Ends { deadline: now + grace, phase: Some(phase), reason: None };
        }
        Fate::Lives
    }

    /// What the pod has come to, if none of its containers is to run again.
    fn outcome(&self) -> Option<&'static str> {
        let never = self.spec.restart_policy.as_deref() == Some("Never");
        let init_failed = init_containers(self.spec).iter().any(|one| {
            !is_sidecar(one) && self.ended(one).is_some_and(|ended| ended.exit_code != 0)
        });
        if never && init_failed && !self.any_main_began() {
            return Some("Failed");
        }
        let mut failed = false;
        for container in &self.spec.containers {
            let ended = self.ended(container)?;
            if restarts(self.spec, container, ended) {
                return None;
            }
            failed |= ended.exit_code != 0;
        }
        Some(if failed { "Failed" } else { "Succeeded" })
    }

    /// Brings a living pod one step on.
    fn go_on(&mut self) {
        match &self.facts.known.sandbox {
            SandboxState::Making | SandboxState::Removing => return,
            SandboxState::Failed { until } if *until > self.facts.now => {
                return self.wake_at(*until);
            }
            // What is left of a former sandbox ends first.
            SandboxState::None | SandboxState::Failed { .. } => {
                let now = self.facts.now;
                if self.stop_all(now) {
                    self.actions.push(Action::MakeSandbox);
                }
                return;
            }
            SandboxState::Ready(_) => {}
        }
        if self.initialize() {
            for container in &self.spec.containers {
                self.keep_running(container);
            }
        }
        for container in ephemeral_containers(self.spec) {
            self.keep_running(&container);
        }
    }

    /// Runs init containers in their order; whether all that must be done before is done.
    fn initialize(&mut self) -> bool {
        let began = self.any_main_began();
        for container in init_containers(self.spec) {
            let seen = self.seen(container);
            if is_sidecar(container) {
                self.keep_running(container);
                if !began && (!is_running(&seen.state) || !seen.started) {
                    return false;
                }
            } else if !began {
                match &seen.state {
                    State::Ended(ended) if ended.exit_code == 0 => {}
                    _ => {
                        self.keep_running(container);
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Starts a container that should run and does not; stops one that is unhealthy.
    fn keep_running(&mut self, container: &Container) {
        let seen = self.seen(container);
        let now = self.facts.now;
        match &seen.state {
            State::New => self.start(container, 0, seen.backoff),
            State::Failed { until, .. } if *until <= now => {
                self.start(container, seen.attempt, seen.backoff);
            }
            State::Failed { until, .. } => self.wake_at(*until),
            State::Ended(ended) if restarts(self.spec, container, ended) => {
                match seen.backoff.after(ended.finished_at, now) {
                    Ok(backoff) => self.start(container, seen.attempt + 1, backoff),
                    Err(until) => self.wake_at(until),
                }
            }
            State::Running { .. } => {
                if let Some(Unhealthy { why, grace }) = seen.unhealthy {
                    let grace = grace.unwrap_or_else(|| self.grace()).max(LEAST_GRACE);
                    self.stop(container, now + SignedDuration::from_secs(grace), why);
                }
            }
            State::Stopping { deadline, killed, .. } => {
                self.kill_when(container, *deadline, *killed);
            }
            State::Starting | State::Ended(_) => {}
        }
    }

    /// Ends a pod: containers first, then sidecars, the last first; then what is left of it.
    fn end(&mut self, deadline: Timestamp) {
        if !self.stop_all(deadline) {
            return;
        }
        match self.facts.known.sandbox {
            SandboxState::Making | SandboxState::Removing => {}
            SandboxState::Ready(_) | SandboxState::Failed { .. } => {
                self.actions.push(Action::RemoveSandbox);
            }
            SandboxState::None => {
                if self.pod.metadata.deletion_timestamp.is_some() || self.facts.gone {
                    self.actions.push(Action::Finish);
                }
            }
        }
    }

    /// Stops whatever runs; whether nothing does any more.
    fn stop_all(&mut self, deadline: Timestamp) -> bool {
        let (sidecars, inits): (Vec<&Container>, Vec<&Container>) =
            init_containers(self.spec).iter().partition(|one| is_sidecar(one));
        let ephemeral = ephemeral_containers(self.spec);
        let all = inits.into_iter().chain(&self.spec.containers).chain(&ephemeral);
        let all: Vec<&Container> = all.collect();
        let mut quiet = true;
        for container in all {
            quiet &= self.stop_one(container, deadline);
        }
        for container in sidecars.into_iter().rev() {
            if !quiet {
                return false;
            }
            quiet &= self.stop_one(container, deadline);
        }
        quiet
    }

    fn stop_one(&mut self, container: &Container, deadline: Timestamp) -> bool {
        match self.seen(container).state {
            State::New | State::Failed { .. } | State::Ended(_) => true,
            State::Starting => false,
            State::Running { .. } => {
                let least = self.facts.now + SignedDuration::from_secs(LEAST_GRACE);
                let why = format!("Stopping container {}", container.name);
                self.stop(container, deadline.max(least), why);
                false
            }
            State::Stopping { deadline: old, killed, .. } => {
                self.kill_when(container, old.min(deadline), killed);
                false
            }
        }
    }

    fn kill_when(&mut self, container: &Container, deadline: Timestamp, killed: bool) {
        if killed {
            return;
        }
        if deadline <= self.facts.now {
            self.actions.push(Action::Kill { name: container.name.clone() });
        } else {
            self.wake_at(deadline);
        }
    }

    fn start(&mut self, container: &Container, attempt: u32, backoff: Backoff) {
        self.actions.push(Action::Start { name: container.name.clone(), attempt, backoff });
    }

    fn stop(&mut self, container: &Container, deadline: Timestamp, why: String) {
        self.actions.push(Action::Stop { name: container.name.clone(), deadline, why });
        self.wake_at(deadline);
    }

    fn wake_at(&mut self, time: Timestamp) {
        self.wake = Some(self.wake.map_or(time, |wake| wake.min(time)));
    }

    fn grace(&self) -> i64 {
        self.spec.termination_grace_period_seconds.unwrap_or(30)
    }

    fn seen(&self, container: &Container) -> Seen {
        self.facts.known.containers.get(&container.name).cloned().unwrap_or_default()
    }

    fn ended(&self, container: &Container) -> Option<&Ended> {
        match &self.facts.known.containers.get(&container.name)?.state {
            State::Ended(ended) => Some(ended),
            _ => None,
        }
    }

    /// Whether a container has been started: from then on, init containers are done with.
    fn any_main_began(&self) -> bool {
        self.spec.containers.iter().any(|one| {
            self.facts.known.containers.get(&one.name).is_some_and(|seen| {
                seen.last.is_some() || !matches!(seen.state, State::New | State::Failed { .. })
            })
        })
    }
}

pub(crate) fn init_containers(spec: &PodSpec) -> &[Container] {
    spec.init_containers.as_deref().unwrap_or_default()
}

/// Containers that somebody has put into the pod to look into it. They run once.
pub(crate) fn ephemeral_containers(spec: &PodSpec) -> Vec<Container> {
    let all = spec.ephemeral_containers.iter().flatten();
    // The two have all fields in common that an agent asks for.
    all.filter_map(|one| serde_json::from_value(json!(one)).ok()).collect()
}

/// The container into which an ephemeral one of this name looks, if it names one.
pub(crate) fn target<'a>(spec: &'a PodSpec, name: &str) -> Option<&'a str> {
    let mut all = spec.ephemeral_containers.iter().flatten();
    let found = all.find(|one| one.name == name)?;
    found.target_container_name.as_deref().filter(|target| !target.is_empty())
}

fn is_ephemeral(spec: &PodSpec, container: &Container) -> bool {
    spec.ephemeral_containers.iter().flatten().any(|one| one.name == container.name)
}

/// An init container that goes on running beside the others (KEP-753).
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub(crate) fn is_running(state: &State) -> bool {
    matches!(state, State::Running { .. } | State::Stopping { .. })
}

/// Whether a container that has ended is started again.
fn restarts(spec: &PodSpec, container: &Container, ended: &Ended) -> bool {
    if is_sidecar(container) {
        return true;
    }
    if is_ephemeral(spec, container) {
        return false;
    }
    let is_init = init_containers(spec).iter().any(|one| one.name == container.name);
    match spec.restart_policy.as_deref() {
        Some("Never") => false,
        Some("OnFailure") => ended.exit_code != 0,
        _ => !is_init || ended.exit_code != 0,
    }
}
