//! One pod's worker: sees what happens, asks `life` what to do, does it, and says how it went.

mod steps;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::api::Happened;
use crate::life::{self, Action, Backoff, Facts, Known, SandboxState, Seen, State, Unhealthy};
use crate::probe::{self, Finding, Purpose, Target};
use crate::runtime::{ContainerId, Ended, FoundPod, FoundState, Sandbox};
pub(crate) use steps::Node;
use steps::{NotStarted, Start};

/// What the API says of a pod.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) pod: Arc<Pod>,
    /// It is no longer there.
    pub(crate) gone: bool,
}

/// Something that happened to a pod.
#[derive(Debug)]
enum Event {
    SandboxMade(Result<Sandbox, String>),
    SandboxRemoved(Result<(), String>),
    SandboxEnded,
    Started { name: String, attempt: u32, outcome: Result<Begun, NotStarted> },
    Ended { name: String, attempt: u32, ended: Ended },
    Probed { id: ContainerId, purpose: Purpose, finding: Finding },
}

/// A container that was started.
#[derive(Debug)]
struct Begun {
    image_id: String,
    state: FoundState,
}

/// A pod's worker.
#[derive(Debug)]
pub(crate) struct Worker {
    node: Arc<Node>,
    asked: watch::Receiver<Asked>,
    /// As last read or written.
    pod: Arc<Pod>,
    gone: bool,
    known: Known,
    /// Of starts that could not be made, by container.
    failures: BTreeMap<String, Backoff>,
    probes: BTreeMap<(String, Purpose), AbortHandle>,
    events: mpsc::Receiver<Event>,
    sender: mpsc::Sender<Event>,
    tasks: JoinSet<()>,
    unwritten: bool,
    sandbox_failures: Backoff,
}

/// How long a write may take, and how soon it is tried again.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_secs(1);
/// Events that wait to be looked at.
const QUEUE: usize = 64;

impl Worker {
    /// A worker for a pod, with what the runtime knows of it already.
    pub(crate) fn new(
        node: Arc<Node>,
        asked: watch::Receiver<Asked>,
        found: Option<FoundPod>,
    ) -> Self {
        let first = asked.borrow().clone();
        let (sender, events) = mpsc::channel(QUEUE);
        let mut worker = Self {
            node,
            asked,
            pod: first.pod,
            gone: first.gone,
            known: Known::default(),
            failures: BTreeMap::new(),
            probes: BTreeMap::new(),
            events,
            sender,
            tasks: JoinSet::new(),
            unwritten: false,
            sandbox_failures: Backoff::default(),
        };
        let said = worker.pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        worker.known.start_time = Some(said.map_or_else(Timestamp::now, |time| time.0));
        if let Some(found) = found {
            worker.adopt(found);
        }
        worker
    }

    /// Works until the pod is no more.
    pub(crate) async fn run(mut self) {
        loop {
            let asked = self.asked.borrow_and_update().clone();
            self.take(asked);
            let facts = Facts {
                known: &self.known,
                host_ips: &self.node.addresses,
                gone: self.gone,
                now: Timestamp::now(),
            };
            let decision = life::decide(&self.pod, &facts);
            let is_finished = decision.actions.contains(&Action::Finish);
            // First, because nothing of it waits for the API to hear of how things were.
            for action in decision.actions {
                self.carry_out(action);
            }
            self.write(decision.status).await;
            if is_finished && self.finish().await {
                return;
            }
            let mut wait = decision.wake.map(|wake| {
                Duration::try_from(wake.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
            });
            if self.unwritten {
                wait = Some(wait.map_or(AGAIN, |wait| wait.min(AGAIN)));
            }
            let timer = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(event) = self.events.recv() => self.learn(event),
                changed = self.asked.changed() => if changed.is_err() { return },
                () = timer => {}
            }
            while let Ok(event) = self.events.try_recv() {
                self.learn(event);
            }
            while self.tasks.try_join_next().is_some() {}
        }
    }

    /// The newest of what was read and what was written.
    fn take(&mut self, asked: Asked) {
        let revision = |pod: &Pod| -> u64 {
            let text = pod.metadata.resource_version.as_deref().unwrap_or_default();
            text.parse().unwrap_or(0)
        };
        if asked.gone {
            self.gone = true;
        } else if revision(&asked.pod) >= revision(&self.pod) {
            self.pod = asked.pod;
        }
    }

    /// Takes over what a former agent left running.
    fn adopt(&mut self, found: FoundPod) {
        if let Some(sandbox) = found.sandbox {
            self.known.sandbox = SandboxState::Ready(sandbox);
            self.watch_sandbox();
        }
        for one in found.containers {
            let seen = self.known.containers.entry(one.id.name.clone()).or_default();
            if let State::Ended(before) = &seen.state {
                seen.last = Some(before.clone());
            }
            seen.attempt = one.id.attempt;
            seen.container_id = self.node.runtime.url(&one.id);
            seen.state = match one.state {
                FoundState::Ended(ended) => State::Ended(ended),
                FoundState::Running { since } => State::Running { since },
            };
        }
        let names: Vec<String> = self.known.containers.keys().cloned().collect();
        for name in names {
            self.trust_what_was_said(&name);
            self.follow(&name);
        }
    }

    /// What was ready is held to be so until a probe says otherwise: traffic goes on.
    fn trust_what_was_said(&mut self, name: &str) {
        let status = self.pod.status.clone().unwrap_or_default();
        let inits = status.init_container_statuses.into_iter().flatten();
        let all = inits.chain(status.container_statuses.into_iter().flatten());
        let mut all = all.chain(status.ephemeral_container_statuses.into_iter().flatten());
        let said = all.find(|one| one.name == name);
        let Some(seen) = self.known.containers.get_mut(name) else { return };
        let same = said.filter(|one| one.container_id.as_deref() == Some(&seen.container_id));
        if let Some(said) = same {
            seen.started = said.started == Some(true);
            seen.ready = said.ready;
            seen.image_id = said.image_id;
        }
    }

    /// Watches a container that runs, and begins its probes.
    fn follow(&mut self, name: &str) {
        let Some(container) = self.container(name) else { return };
        let id = {
            let Some(seen) = self.known.containers.get_mut(name) else { return };
            if !matches!(seen.state, State::Running { .. }) {
                return;
            }
            seen.started |= container.startup_probe.is_none();
            seen.ready |= container.readiness_probe.is_none();
            self.node.id(&self.pod, name, seen.attempt)
        };
        let (sender, ending) = (self.sender.clone(), self.node.runtime.ended(&id));
        self.tasks.spawn(async move {
            let ended = ending.await;
            // Nobody listens only when the worker has ended.
            _ = sender.send(Event::Ended { name: id.name, attempt: id.attempt, ended }).await;
        });
        self.probe(name, &container);
    }

    /// Begins the probes that are due: the others wait for the startup probe.
    fn probe(&mut self, name: &str, container: &Container) {
        let Some(seen) = self.known.containers.get(name) else { return };
        let State::Running { since } = seen.state else { return };
        let due: &[Purpose] = if seen.started {
            &[Purpose::Readiness, Purpose::Liveness]
        } else {
            &[Purpose::Startup]
        };
        for purpose in due.iter().filter(|purpose| purpose.of(container).is_some()) {
            let target = Target {
                id: self.node.id(&self.pod, name, seen.attempt),
                container: container.clone(),
                address: self.node.probe_address(&self.pod, &self.known.sandbox),
                since,
                runtime: Arc::clone(&self.node.runtime),
            };
            let (found, mut findings) = mpsc::channel(4);
            let (sender, purpose) = (self.sender.clone(), *purpose);
            let handle = self.tasks.spawn(async move {
                let forward = async {
                    while let Some((id, purpose, finding)) = findings.recv().await {
                        if sender.send(Event::Probed { id, purpose, finding }).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::join!(probe::run(target, purpose, found), forward);
            });
            if let Some(old) = self.probes.insert((name.to_owned(), purpose), handle) {
                old.abort();
            }
        }
    }

    fn stop_probes(&mut self, name: &str, purposes: &[Purpose]) {
        for purpose in purposes {
            if let Some(probe) = self.probes.remove(&(name.to_owned(), *purpose)) {
                probe.abort();
            }
        }
    }

    fn watch_sandbox(&mut self) {
        let ending = self.node.runtime.sandbox_ended(self.node.uid(&self.pod));
        let sender = self.sender.clone();
        self.tasks.spawn(async move {
            ending.await;
            _ = sender.send(Event::SandboxEnded).await;
        });
    }

    /// Writes the status, if it differs from what is there.
    async fn write(&mut self, status: PodStatus) {
        if self.gone || json!(self.pod.status) == json!(status) {
            self.unwritten = false;
            return;
        }
        self.tell_of_waiting(&status);
        let written = self.node.cluster.write_status(&self.pod, &status);
        self.unwritten = match tokio::time::timeout(WRITE_TIMEOUT, written).await {
            Ok(Ok(Some(pod))) => {
                self.pod = Arc::new(pod);
                false
            }
            // It is gone; the watch will say so.
            Ok(Ok(None)) => false,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a status will be written again");
                true
            }
            Err(_elapsed) => true,
        };
    }

    /// Records when a container begins to wait for its next start.
    fn tell_of_waiting(&mut self, status: &PodStatus) {
        let reasons = |status: &PodStatus| -> BTreeMap<String, String> {
            let all = status.init_container_statuses.iter().flatten();
            let all = all.chain(status.container_statuses.iter().flatten());
            let reason = |one: &k8s_openapi::api::core::v1::ContainerStatus| {
                let waiting = one.state.as_ref()?.waiting.as_ref()?;
                Some((one.name.clone(), waiting.reason.clone()?))
            };
            all.filter_map(reason).collect()
        };
        let before = self.pod.status.as_ref().map(reasons).unwrap_or_default();
        for (name, reason) in reasons(status) {
            if before.get(&name) == Some(&reason) {
                continue;
            }
            let pod = self.pod.metadata.name.as_deref().unwrap_or_default();
            let what = match reason.as_str() {
                "CrashLoopBackOff" => {
                    format!("Back-off restarting failed container {name} in pod {pod}")
                }
                "ImagePullBackOff" => {
                    let image = self.container(&name).and_then(|one| one.image).unwrap_or_default();
                    format!("Back-off pulling image {image:?}")
                }
                _ => continue,
            };
            let happened = Happened::ill("BackOff", what);
            self.tell(Some(&name), happened);
        }
    }

    fn tell(&self, container: Option<&str>, happened: Happened) {
        let about = steps::reference(&self.pod, container);
        self.node.cluster.event(&about, happened);
    }

    fn container(&self, name: &str) -> Option<Container> {
        let spec: &PodSpec = self.pod.spec.as_ref()?;
        let mut all = life::init_containers(spec).iter().chain(&spec.containers);
        let found = all.find(|one| one.name == name).cloned();
        found.or_else(|| life::ephemeral_containers(spec).into_iter().find(|one| one.name == name))
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::MakeSandbox => {
                self.known.sandbox = SandboxState::Making;
                let (node, pod) = (Arc::clone(&self.node), Arc::clone(&self.pod));
                self.step(async move { Event::SandboxMade(node.make_sandbox(&pod).await) });
            }
            Action::RemoveSandbox => {
                self.known.sandbox = SandboxState::Removing;
                let (node, pod) = (Arc::clone(&self.node), Arc::clone(&self.pod));
                self.step(async move { Event::SandboxRemoved(node.remove_sandbox(&pod).await) });
            }
            Action::Start { name, attempt, backoff } => self.start(name, attempt, backoff),
            Action::Stop { name, deadline, why } => {
                let Some(seen) = self.known.containers.get_mut(&name) else { return };
                let State::Running { since } = seen.state else { return };
                seen.state = State::Stopping { since, deadline, killed: false };
                let id = self.node.id(&self.pod, &name, seen.attempt);
                self.stop_probes(&name, &[Purpose::Liveness, Purpose::Startup]);
                self.tell(Some(&name), Happened::well("Killing", why));
                let Some(container) = self.container(&name) else { return };
                let address = self.node.probe_address(&self.pod, &self.known.sandbox);
                let (node, pod) = (Arc::clone(&self.node), Arc::clone(&self.pod));
                self.tasks.spawn(async move { node.stop(&pod, &id, &container, address).await });
            }
            Action::Kill { name } => {
                let Some(seen) = self.known.containers.get_mut(&name) else { return };
                if let State::Stopping { killed, .. } = &mut seen.state {
                    *killed = true;
                }
                let id = self.node.id(&self.pod, &name, seen.attempt);
                let node = Arc::clone(&self.node);
                self.tasks.spawn(async move { node.kill(id).await });
            }
            Action::Finish => {}
        }
    }

    fn start(&mut self, name: String, attempt: u32, backoff: Backoff) {
        let Some(container) = self.container(&name) else { return };
        let seen = self.known.containers.entry(name.clone()).or_default();
        if let State::Ended(ended) = &seen.state {
            seen.last = Some(ended.clone());
        }
        let fresh = Seen {
            state: State::Starting,
            attempt,
            last: seen.last.take(),
            backoff,
            image_id: std::mem::take(&mut seen.image_id),
            container_id: std::mem::take(&mut seen.container_id),
            ..Seen::default()
        };
        *seen = fresh;
        let SandboxState::Ready(sandbox) = self.known.sandbox.clone() else { return };
        let start = Start { container, attempt, target: self.target(&name) };
        let (node, pod) = (Arc::clone(&self.node), Arc::clone(&self.pod));
        self.step(async move {
            let outcome = node.start(&pod, start, &sandbox).await;
            Event::Started { name, attempt, outcome }
        });
    }

    /// The container that an ephemeral one is to look into; it must run.
    fn target(&self, name: &str) -> Result<Option<ContainerId>, String> {
        let Some(target) = self.pod.spec.as_ref().and_then(|spec| life::target(spec, name)) else {
            return Ok(None);
        };
        let seen = self.known.containers.get(target).filter(|seen| life::is_running(&seen.state));
        let seen = seen.ok_or_else(|| format!("unable to find target container {target}"))?;
        Ok(Some(self.node.id(&self.pod, target, seen.attempt)))
    }

    fn step(&mut self, step: impl Future<Output = Event> + Send + 'static) {
        let sender = self.sender.clone();
        self.tasks.spawn(async move {
            let event = step.await;
            // Nobody listens only when the worker has ended.
            _ = sender.send(event).await;
        });
    }

    /// Takes in what happened.
    fn learn(&mut self, event: Event) {
        match event {
            Event::SandboxMade(Ok(sandbox)) => {
                self.known.sandbox = SandboxState::Ready(sandbox);
                self.watch_sandbox();
            }
            Event::SandboxMade(Err(why)) => {
                let now = Timestamp::now();
                let until = match self.sandbox_failures.after(now, now) {
                    Ok(backoff) => {
                        self.sandbox_failures = backoff;
                        now + jiff::SignedDuration::from_secs(1)
                    }
                    Err(until) => until,
                };
                self.known.sandbox = SandboxState::Failed { until };
                self.tell(None, Happened::ill("FailedCreatePodSandBox", why));
            }
            Event::SandboxRemoved(Ok(())) => self.known.sandbox = SandboxState::None,
            Event::SandboxRemoved(Err(why)) => {
                self.known.sandbox = SandboxState::Failed { until: Timestamp::now() };
                self.tell(None, Happened::ill("FailedKillPod", why));
            }
            Event::SandboxEnded => {
                if matches!(self.known.sandbox, SandboxState::Ready(_)) {
                    self.known.sandbox = SandboxState::None;
                    let what = "Pod sandbox changed, it will be killed and re-created.";
                    self.tell(None, Happened::well("SandboxChanged", what));
                }
            }
            Event::Started { name, attempt, outcome } => self.learn_start(&name, attempt, outcome),
            Event::Ended { name, attempt, ended } => {
                self.stop_probes(&name, &[Purpose::Startup, Purpose::Readiness, Purpose::Liveness]);
                let Some(seen) = self.known.containers.get_mut(&name) else { return };
                if seen.attempt == attempt {
                    seen.state = State::Ended(ended);
                    (seen.started, seen.ready, seen.unhealthy) = (false, false, None);
                }
            }
            Event::Probed { id, purpose, finding } => self.learn_probe(&id, purpose, finding),
        }
    }

    fn learn_start(&mut self, name: &str, attempt: u32, outcome: Result<Begun, NotStarted>) {
        let url = self.node.runtime.url(&self.node.id(&self.pod, name, attempt));
        let Some(seen) = self.known.containers.get_mut(name) else { return };
        match outcome {
            Ok(begun) => {
                self.failures.remove(name);
                seen.image_id = begun.image_id;
                seen.container_id = url;
                match begun.state {
                    FoundState::Running { since } => {
                        seen.state = State::Running { since };
                        let what = format!("Started container {name}");
                        self.tell(Some(name), Happened::well("Started", what));
                        self.follow(name);
                    }
                    FoundState::Ended(ended) => {
                        let happened = (ended.reason == "StartError")
                            .then(|| Happened::ill("Failed", format!("Error: {}", ended.message)));
                        seen.state = State::Ended(ended);
                        if let Some(happened) = happened {
                            self.tell(Some(name), happened);
                        }
                    }
                }
            }
            Err(failed) => self.learn_failure(name, &failed),
        }
    }

    /// A start that could not be made is made again: images with back-off, the rest soon.
    fn learn_failure(&mut self, name: &str, failed: &NotStarted) {
        let now = Timestamp::now();
        let backoff = self.failures.entry(name.to_owned()).or_default();
        // Tried and failed; once a wait has begun, what is waited for is said.
        let (reason, message, until) = match backoff.after(now, now) {
            Ok(next) => {
                *backoff = next;
                let soon = now + jiff::SignedDuration::from_secs(1);
                (failed.reason.to_owned(), failed.message.clone(), soon)
            }
            Err(until) => {
                let (reason, message) = failed.while_waiting();
                (reason, message, until)
            }
        };
        let pulled = matches!(reason.as_str(), "ErrImagePull");
        if let Some(seen) = self.known.containers.get_mut(name) {
            seen.state = State::Failed { reason, message: message.clone(), until };
        }
        if pulled || !failed.is_image() {
            self.tell(
                Some(name),
                Happened::ill(failed.event, format!("{}{message}", failed.prefix)),
            );
        }
    }

    fn learn_probe(&mut self, id: &ContainerId, purpose: Purpose, finding: Finding) {
        let container = self.container(&id.name);
        let Some(seen) = self.known.containers.get_mut(&id.name) else { return };
        if seen.attempt != id.attempt {
            return;
        }
        let (healthy, why) = match finding {
            Finding::Failed(why) => {
                let what = format!("{} probe failed: {why}", purpose.name());
                return self.tell(Some(&id.name), Happened::ill("Unhealthy", what));
            }
            Finding::Verdict { healthy, why } => (healthy, why),
        };
        match purpose {
            Purpose::Readiness => seen.ready = healthy,
            Purpose::Startup if healthy => {
                seen.started = true;
                self.stop_probes(&id.name, &[Purpose::Startup]);
                if let Some(container) = container {
                    self.probe(&id.name, &container);
                }
            }
            Purpose::Liveness if healthy => {}
            Purpose::Startup | Purpose::Liveness => {
                tracing::debug!(container = id.name, why, "unhealthy");
                let probe = container.as_ref().and_then(|one| purpose.of(one));
                let grace = probe.and_then(|probe| probe.termination_grace_period_seconds);
                let form = purpose.name().to_lowercase();
                let why = format!("Container {} failed {form} probe, will be restarted", id.name);
                seen.unhealthy = Some(Unhealthy { why, grace });
            }
        }
    }

    /// Removes the last of a pod, and lets the API forget it; whether that is done.
    async fn finish(&mut self) -> bool {
        if let Err(why) = self.node.forget(&self.pod).await {
            tracing::warn!(why, "removing what a pod left failed");
            self.unwritten = true;
            return false;
        }
        if self.gone {
            return true;
        }
        match self.node.cluster.forget(&self.pod).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "a pod will be deleted again");
                self.unwritten = true;
                false
            }
        }
    }
}
