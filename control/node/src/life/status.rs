//! What is said about a pod: phase, conditions, and a status for each container. `[pure]`

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    Facts, Fate, SandboxState, Seen, State, ephemeral_containers, init_containers, is_running,
    is_sidecar, restarts,
};
use crate::runtime::Ended;

pub(super) fn build(pod: &Pod, spec: &PodSpec, facts: &Facts<'_>, fate: &Fate) -> PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    let said = Said { pod, spec, facts, old: &old, lives: *fate == Fate::Lives };
    let inits = said.statuses(init_containers(spec), true);
    let mains = said.statuses(&spec.containers, false);
    let ephemeral = said.statuses(&ephemeral_containers(spec), false);
    let (reason, message) = match fate {
        Fate::Ends { reason: Some(reason), .. } => (
            Some((*reason).to_owned()),
            Some("Pod was active on the node longer than the specified deadline".to_owned()),
        ),
        _ => (old.reason.clone(), old.message.clone()),
    };
    let phase = said.phase(fate, &inits, &mains);
    let mut status = PodStatus {
        conditions: Some(said.conditions(phase, &inits, &mains)),
        phase: Some(phase.to_owned()),
        reason,
        message,
        init_container_statuses: (!inits.is_empty()).then_some(inits),
        container_statuses: Some(mains),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        start_time: facts.known.start_time.map(Time),
        observed_generation: pod.metadata.generation,
        ..old.clone()
    };
    said.addresses(&mut status);
    status
}

struct Said<'a> {
    pod: &'a Pod,
    spec: &'a PodSpec,
    facts: &'a Facts<'a>,
    old: &'a PodStatus,
    lives: bool,
}

impl Said<'_> {
    fn statuses(&self, containers: &[Container], init: bool) -> Vec<ContainerStatus> {
        containers.iter().map(|one| self.container(one, init)).collect()
    }

    fn seen(&self, container: &Container) -> Seen {
        self.facts.known.containers.get(&container.name).cloned().unwrap_or_default()
    }

    fn container(&self, container: &Container, init: bool) -> ContainerStatus {
        let seen = self.seen(container);
        let running = is_running(&seen.state);
        let state = self.state(container, &seen);
        // The same end is not told twice: what is waited for is told instead.
        let last = match (&seen.state, &state.waiting) {
            (State::Ended(ended), Some(_)) => Some(ended.clone()),
            _ => seen.last.clone(),
        };
        let ready = if init && !is_sidecar(container) {
            matches!(&seen.state, State::Ended(ended) if ended.exit_code == 0)
        } else {
            running && seen.started && seen.ready
        };
        ContainerStatus {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            image_id: seen.image_id.clone(),
            container_id: (!seen.container_id.is_empty()).then(|| seen.container_id.clone()),
            ready,
            started: Some(running && seen.started),
            restart_count: i32::try_from(seen.attempt).unwrap_or(i32::MAX),
            state: Some(state),
            last_state: Some(ContainerState {
                terminated: last.map(|ended| terminated(&ended, "")),
                ..ContainerState::default()
            }),
            ..ContainerStatus::default()
        }
    }

    fn state(&self, container: &Container, seen: &Seen) -> ContainerState {
        let waiting = |reason: &str, message: String| ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(reason.to_owned()),
                message: (!message.is_empty()).then_some(message),
            }),
            ..ContainerState::default()
        };
        match &seen.state {
            State::New | State::Starting if seen.last.is_none() => {
                let init = self.is_waiting_for_init(container);
                waiting(if init { "PodInitializing" } else { "ContainerCreating" }, String::new())
            }
            State::New | State::Starting => waiting("ContainerCreating", String::new()),
            State::Failed { reason, message, .. } => waiting(reason, message.clone()),
            State::Running { since } | State::Stopping { since, .. } => ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(Time(*since)) }),
                ..ContainerState::default()
            },
            State::Ended(ended)
                if self.lives
                    && restarts(self.spec, container, ended)
                    && seen.backoff.after(ended.finished_at, self.facts.now).is_err() =>
            {
                let pod = &self.pod.metadata;
                let message = format!(
                    "back-off {} restarting failed container={} pod={}_{}({})",
                    seen.backoff.text(),
                    container.name,
                    pod.name.as_deref().unwrap_or_default(),
                    pod.namespace.as_deref().unwrap_or_default(),
                    pod.uid.as_deref().unwrap_or_default(),
                );
                waiting("CrashLoopBackOff", message)
            }
            State::Ended(ended) => ContainerState {
                terminated: Some(terminated(ended, &seen.container_id)),
                ..ContainerState::default()
            },
        }
    }

    fn is_waiting_for_init(&self, container: &Container) -> bool {
        let is_main = self.spec.containers.iter().any(|one| one.name == container.name);
        let has_inits = !init_containers(self.spec).is_empty();
        let later = init_containers(self.spec)
            .iter()
            .take_while(|one| one.name != container.name)
            .any(|one| !self.is_done(one));
        has_inits && (later || is_main && !self.uninitialized().is_empty())
    }

    /// Whether an init container holds nobody up.
    fn is_done(&self, init: &Container) -> bool {
        let seen = self.seen(init);
        if is_sidecar(init) {
            return is_running(&seen.state) && seen.started || seen.last.is_some();
        }
        matches!(&seen.state, State::Ended(ended) if ended.exit_code == 0)
    }

    fn uninitialized(&self) -> Vec<&str> {
        let began = self.spec.containers.iter().any(|one| {
            let seen = self.seen(one);
            seen.last.is_some() || !matches!(seen.state, State::New | State::Failed { .. })
        });
        if began {
            return Vec::new();
        }
        let inits = init_containers(self.spec).iter();
        inits.filter(|one| !self.is_done(one)).map(|one| one.name.as_str()).collect()
    }

    fn phase(
        &self,
        fate: &Fate,
        inits: &[ContainerStatus],
        mains: &[ContainerStatus],
    ) -> &'static str {
        match self.old.phase.as_deref() {
            Some("Succeeded") => return "Succeeded",
            Some("Failed") => return "Failed",
            _ => {}
        }
        let runs = |all: &[ContainerStatus]| {
            all.iter().any(|one| one.state.as_ref().is_some_and(|state| state.running.is_some()))
        };
        let quiet = !runs(inits) && !runs(mains);
        if let Fate::Ends { phase: Some(phase), reason, .. } = fate
            && (quiet || reason.is_some())
        {
            return phase;
        }
        // A deleted pod says what it came to, once nothing of it runs.
        let began = |one: &ContainerStatus| {
            one.state.as_ref().is_some_and(|state| state.waiting.is_none()) || {
                one.last_state.as_ref().is_some_and(|last| last.terminated.is_some())
            }
        };
        if matches!(fate, Fate::Ends { .. }) && quiet && mains.iter().any(began) {
            let well = |one: &ContainerStatus| {
                let ended = one.state.as_ref().and_then(|state| state.terminated.as_ref());
                ended.is_some_and(|ended| ended.exit_code == 0)
            };
            return if mains.iter().all(well) { "Succeeded" } else { "Failed" };
        }
        if self.uninitialized().is_empty() && mains.iter().all(began) {
            "Running"
        } else {
            "Pending"
        }
    }

    fn conditions(
        &self,
        phase: &str,
        inits: &[ContainerStatus],
        mains: &[ContainerStatus],
    ) -> Vec<PodCondition> {
        let sandboxed = matches!(self.facts.known.sandbox, SandboxState::Ready(_));
        let sidecar = |one: &&ContainerStatus| {
            init_containers(self.spec).iter().any(|c| c.name == one.name && is_sidecar(c))
        };
        let unready: Vec<&str> = inits
            .iter()
            .filter(sidecar)
            .chain(mains)
            .filter(|one| !one.ready)
            .map(|one| one.name.as_str())
            .collect();
        let uninitialized = self.uninitialized();
        let initialized = match phase {
            "Succeeded" => Verdict::yes_because("PodCompleted"),
            _ if uninitialized.is_empty() => Verdict::yes(),
            _ => Verdict::no("ContainersNotInitialized", "incomplete", &uninitialized),
        };
        let containers_ready = match phase {
            "Succeeded" => Verdict::because("PodCompleted"),
            "Failed" => Verdict::because("PodFailed"),
            _ if unready.is_empty() => Verdict::yes(),
            _ => Verdict::no("ContainersNotReady", "unready", &unready),
        };
        let ready = match self.closed_gate() {
            Some(gate) if containers_ready.holds => Verdict {
                holds: false,
                reason: Some("ReadinessGatesNotReady".into()),
                message: Some(format!(
                    "corresponding condition of pod readiness gate \"{gate}\" does not exist or \
                     is not \"True\"."
                )),
            },
            _ => containers_ready.clone(),
        };
        let plain = |holds| Verdict { holds, reason: None, message: None };
        let new = [
            ("PodReadyToStartContainers", plain(sandboxed)),
            ("Initialized", initialized),
            ("Ready", ready),
            ("ContainersReady", containers_ready),
        ];
        self.merge(&new)
    }

    fn closed_gate(&self) -> Option<&str> {
        let gates = self.spec.readiness_gates.iter().flatten();
        gates.map(|gate| gate.condition_type.as_str()).find(|gate| {
            let conditions = self.old.conditions.iter().flatten();
            !conditions.clone().any(|one| one.type_ == *gate && one.status == "True")
        })
    }

    /// The new conditions among those that others have set; times change with the status.
    fn merge(&self, new: &[(&str, Verdict); 4]) -> Vec<PodCondition> {
        let old: BTreeMap<&str, &PodCondition> =
            self.old.conditions.iter().flatten().map(|one| (one.type_.as_str(), one)).collect();
        let mut all: Vec<PodCondition> = new
            .iter()
            .map(|(form, verdict)| {
                let status = if verdict.holds { "True" } else { "False" };
                let before = old.get(form).filter(|before| before.status == status);
                PodCondition {
                    type_: (*form).to_owned(),
                    status: status.to_owned(),
                    reason: verdict.reason.clone(),
                    message: verdict.message.clone(),
                    last_transition_time: before
                        .and_then(|before| before.last_transition_time.clone())
                        .or(Some(Time(self.facts.now))),
                    ..PodCondition::default()
                }
            })
            .collect();
        let ours = |one: &&PodCondition| new.iter().any(|(form, _)| *form == one.type_);
        all.extend(self.old.conditions.iter().flatten().filter(|one| !ours(one)).cloned());
        all
    }

    fn addresses(&self, status: &mut PodStatus) {
        let text: Vec<String> = self.facts.host_ips.iter().map(ToString::to_string).collect();
        status.host_ip = text.first().cloned();
        status.host_ips = Some(text.iter().map(|ip| HostIP { ip: ip.clone() }).collect());
        let SandboxState::Ready(sandbox) = &self.facts.known.sandbox else { return };
        let host = self.spec.host_network == Some(true);
        let own = if host { self.facts.host_ips } else { &sandbox.addresses };
        let text: Vec<String> = own.iter().map(ToString::to_string).collect();
        status.pod_ip = text.first().cloned();
        status.pod_ips = Some(text.into_iter().map(|ip| PodIP { ip }).collect());
    }
}

#[derive(Clone)]
struct Verdict {
    holds: bool,
    reason: Option<String>,
    message: Option<String>,
}

impl Verdict {
    fn yes() -> Self {
        Self { holds: true, reason: None, message: None }
    }

    fn yes_because(reason: &str) -> Self {
        Self { holds: true, reason: Some(reason.to_owned()), message: None }
    }

    fn because(reason: &str) -> Self {
        Self { holds: false, reason: Some(reason.to_owned()), message: None }
    }

    fn no(reason: &str, what: &str, names: &[&str]) -> Self {
        let message = format!("containers with {what} status: [{}]", names.join(" "));
        Self { holds: false, reason: Some(reason.to_owned()), message: Some(message) }
    }
}

fn terminated(ended: &Ended, container_id: &str) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: (!container_id.is_empty()).then(|| container_id.to_owned()),
        exit_code: ended.exit_code,
        signal: ended.signal,
        reason: Some(ended.reason.clone()),
        message: (!ended.message.is_empty()).then(|| ended.message.clone()),
        started_at: ended.started_at.map(Time),
        finished_at: Some(Time(ended.finished_at)),
    }
}
