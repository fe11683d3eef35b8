//! Stories of pods as text, played against `decide`: `tests/cases/pod/*.txt`.
//!
//! A line of a story is a time and an event; below it, indented, is what was done and what was
//! said. `UPDATE_EXPECT=1` writes down what really was.

use std::fmt::Write;
use std::path::Path;

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;

struct Stage {
    pod: Pod,
    known: Known,
    now: Timestamp,
    gone: bool,
}

fn start() -> Timestamp {
    "2026-11-21T00:00:00Z".parse().unwrap()
}

impl Stage {
    fn container(&self, name: &str) -> Container {
        let spec = self.pod.spec.as_ref().unwrap();
        let mut all = init_containers(spec).iter().chain(&spec.containers);
        all.find(|one| one.name == name).unwrap_or_else(|| panic!("no container {name}")).clone()
    }

    fn happen(&mut self, event: &[&str]) {
        match event {
            ["look"] => {}
            ["sandbox", "ready"] => {
                let sandbox = Sandbox { addresses: vec!["10.244.0.5".parse().unwrap()] };
                self.known.sandbox = SandboxState::Ready(sandbox);
            }
            ["sandbox", "gone"] => self.known.sandbox = SandboxState::None,
            ["deleted", grace] => {
                let grace: i64 = grace.parse().unwrap();
                let time = self.now + SignedDuration::from_secs(grace);
                self.pod.metadata.deletion_timestamp = Some(Time(time));
                self.pod.metadata.deletion_grace_period_seconds = Some(grace);
            }
            ["forgotten"] => self.gone = true,
            [name, rest @ ..] => self.happen_to(name, rest),
            [] => panic!("a story's line has an event"),
        }
    }

    fn happen_to(&mut self, name: &str, event: &[&str]) {
        let container = self.container(name);
        let now = self.now;
        let seen = self.known.containers.entry(name.to_owned()).or_default();
        match event {
            ["runs"] => {
                seen.state = State::Running { since: now };
                seen.started = container.startup_probe.is_none();
                seen.ready = container.readiness_probe.is_none();
            }
            ["ends", code] => {
                let exit_code = code.parse().unwrap();
                seen.state = State::Ended(Ended {
                    exit_code,
                    signal: None,
                    reason: if exit_code == 0 { "Completed" } else { "Error" }.into(),
                    message: String::new(),
                    started_at: None,
                    finished_at: now,
                });
                (seen.started, seen.ready, seen.unhealthy) = (false, false, None);
            }
            ["fails", reason] => {
                let until = now + SignedDuration::from_secs(10);
                let (reason, message) = ((*reason).to_owned(), "why".to_owned());
                seen.state = State::Failed { reason, message, until };
            }
            ["started"] => seen.started = true,
            ["ready"] => seen.ready = true,
            ["unready"] => seen.ready = false,
            ["unhealthy"] => {
                seen.unhealthy = Some(Unhealthy { why: "unhealthy".into(), grace: None });
            }
            other => panic!("{other:?} is no event"),
        }
    }

    /// Decides, does what is decided, and tells of both.
    fn step(&mut self) -> String {
        let host_ips = ["172.18.0.1".parse().unwrap()];
        let facts =
            Facts { known: &self.known, host_ips: &host_ips, gone: self.gone, now: self.now };
        let decision = decide(&self.pod, &facts);
        let mut told = String::new();
        for action in &decision.actions {
            writeln!(told, "  => {}", self.act(action)).unwrap();
        }
        if let Some(wake) = decision.wake {
            let after = wake.duration_since(start()).as_secs();
            writeln!(told, "  .. looks again at {after}s").unwrap();
        }
        writeln!(told, "  {}", shown(&decision.status)).unwrap();
        self.pod.status = Some(decision.status);
        told
    }

    fn act(&mut self, action: &Action) -> String {
        let now = self.now;
        let seconds = |time: Timestamp| time.duration_since(start()).as_secs();
        match action {
            Action::MakeSandbox => {
                self.known.sandbox = SandboxState::Making;
                "make the sandbox".into()
            }
            Action::RemoveSandbox => {
                self.known.sandbox = SandboxState::Removing;
                "remove the sandbox".into()
            }
            Action::Start { name, attempt, backoff } => {
                let seen = self.known.containers.entry(name.clone()).or_default();
                let last = match &seen.state {
                    State::Ended(ended) => Some(ended.clone()),
                    _ => seen.last.clone(),
                };
                let (state, attempt) = (State::Starting, *attempt);
                *seen = Seen { state, attempt, last, backoff: *backoff, ..Seen::default() };
                format!("start {name}, attempt {attempt}")
            }
            Action::Stop { name, deadline, .. } => {
                let seen = self.known.containers.get_mut(name).unwrap();
                seen.state = State::Stopping { since: now, deadline: *deadline, killed: false };
                format!("stop {name} by {}s", seconds(*deadline))
            }
            Action::Kill { name } => {
                let seen = self.known.containers.get_mut(name).unwrap();
                if let State::Stopping { killed, .. } = &mut seen.state {
                    *killed = true;
                }
                format!("kill {name}")
            }
            Action::Finish => "finish".into(),
        }
    }
}

/// A status on a line: phase, conditions that hold, containers.
fn shown(status: &PodStatus) -> String {
    let mut text = status.phase.clone().unwrap();
    if let Some(reason) = &status.reason {
        write!(text, " ({reason})").unwrap();
    }
    let holding = status.conditions.iter().flatten().filter(|one| one.status == "True");
    let holding: Vec<&str> = holding.map(|one| one.type_.as_str()).collect();
    write!(text, " [{}]", holding.join(" ")).unwrap();
    let inits = status.init_container_statuses.iter().flatten();
    for one in inits.chain(status.container_statuses.iter().flatten()) {
        let state = one.state.clone().unwrap();
        let shown = if let Some(waiting) = state.waiting {
            waiting.reason.unwrap()
        } else if let Some(ended) = state.terminated {
            format!("ended {}", ended.exit_code)
        } else {
            "running".into()
        };
        let ready = if one.ready { ", ready" } else { "" };
        write!(text, " {}: {shown}{ready}", one.name).unwrap();
        if one.restart_count > 0 {
            write!(text, ", restarts {}", one.restart_count).unwrap();
        }
        text.push(';');
    }
    text
}

fn play(text: &str) -> String {
    let (head, rest) = text.split_once("-- pod.yaml --\n").expect("a pod");
    let (yaml, story) = rest.split_once("-- story --\n").expect("a story");
    let mut pod: Pod = serde_saphyr::from_str(yaml).expect("the pod is one");
    pod.metadata.name.get_or_insert_with(|| "p".into());
    let known = Known { start_time: Some(start()), ..Known::default() };
    let mut stage = Stage { pod, known, now: start(), gone: false };
    let mut played = format!("{head}-- pod.yaml --\n{yaml}-- story --\n");
    for line in story.lines().filter(|line| !line.starts_with("  ")) {
        played.push_str(line);
        played.push('\n');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let words: Vec<&str> = line.split(' ').collect();
        let seconds: i64 = words[0].strip_suffix('s').expect("a time").parse().unwrap();
        stage.now = start() + SignedDuration::from_secs(seconds);
        stage.happen(&words[1..]);
        played.push_str(&stage.step());
    }
    played
}

#[test]
fn pods_live_as_their_stories_tell() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/cases/pod");
    let mut n = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let played = play(&text);
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(&path, &played).unwrap();
        } else {
            assert_eq!(played, text, "{}", path.display());
        }
        n += 1;
    }
    assert!(n >= 8, "{n} stories are all there are");
}

#[test]
fn deciding_twice_is_deciding_once() {
    let pod: Pod =
        serde_saphyr::from_str("{metadata: {name: p}, spec: {containers: [{name: a}]}}").unwrap();
    let known = Known { start_time: Some(start()), ..Known::default() };
    let facts = Facts { known: &known, host_ips: &[], gone: false, now: start() };
    let (one, two) = (decide(&pod, &facts), decide(&pod, &facts));
    assert_eq!((one.actions, one.status), (two.actions, two.status));
}
