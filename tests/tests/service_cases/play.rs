//! Plays the case files.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use model::cluster::{Cluster, Dirty, Kind};
use model::name::Family;
use model::problem::Problem;
use proxy::config::{NodeConfig, NodeFlags};
use proxy::plan::trace::{Decision, Masquerading, Packet, Verdict, View, trace};
use proxy::plan::{Planner, plan};
use tests::case::{Case, Expectation, Line, Step};
use tests::{objects, stage};

#[test]
fn every_case_holds() {
    let mut failures = Vec::new();
    let mut n_packets = 0;
    for path in case_files() {
        let case = Case::read(&path).unwrap_or_else(|error| panic!("{error}"));
        for mode in MODES {
            let mut play = Play::new(&case.name, mode);
            for step in &case.steps {
                play.step(step);
            }
            n_packets += play.n_packets;
            if update() && mode == MODES[0] {
                play.rewrite(&path);
            } else {
                failures.extend(play.failures.into_iter().map(|(_, _, message)| message));
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} of the cases fail:\n\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(n_packets >= 400, "only {n_packets} packets: some cases were not found");
}

fn case_files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/service");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    files
}

/// Whether to write what came out into the files, for a person to review.
fn update() -> bool {
    std::env::var_os("UPDATE_EXPECT").is_some()
}

/// What the cases are played for. A plan depends on it where a mode cannot do what others can;
/// the case names the mode then.
const MODES: [&str; 4] = ["ebpf", "nftables", "iptables", "ipvs"];

/// A case being played.
struct Play {
    name: String,
    mode: &'static str,
    /// A section of the flags names another mode: it is that one's to play.
    is_others: bool,
    cluster: Cluster,
    planner: Planner,
    dirty: Dirty,
    read_problems: Vec<Problem>,
    host: BTreeSet<IpAddr>,
    n_packets: usize,
    /// Line number, what it ought to be, and the message.
    failures: Vec<(usize, String, String)>,
}

impl Play {
    fn new(name: &str, mode: &'static str) -> Self {
        let config = config(&[], mode).unwrap();
        Self {
            name: name.to_owned(),
            mode,
            is_others: false,
            cluster: Cluster::new(stage::NODE),
            planner: Planner::new(config),
            dirty: Dirty::everything(),
            read_problems: Vec::new(),
            host: stage::host().collect(),
            n_packets: 0,
            failures: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Objects(yaml) => self.set_objects(yaml),
            Step::Flags(lines) => {
                let config = config(lines, self.mode)
                    .unwrap_or_else(|error| panic!("{}: {error}", self.name));
                self.is_others = lines.iter().any(|line| {
                    line.text.strip_prefix("--proxy-mode=").is_some_and(|mode| mode != self.mode)
                });
                self.planner.set_config(config);
                self.dirty = Dirty::everything();
            }
            Step::Host(lines) => {
                let more = lines.iter().map(|line| line.text.parse::<IpAddr>().unwrap());
                self.host = stage::host().chain(more).collect();
            }
            Step::Packets(packets) => {
                self.replan();
                for packet in packets {
                    self.packet(packet);
                }
            }
            Step::Problems(lines) => {
                self.replan();
                let problems = self.read_problems.iter().chain(self.planner.plan().problems());
                self.lines(lines, &problems.map(ToString::to_string).collect::<Vec<_>>());
            }
            Step::Health(lines) => {
                self.replan();
                let shown = |(service, check): (_, &proxy::plan::HealthCheck)| {
                    let count = check.local_endpoints;
                    format!("{service} {} IPv4 {} IPv6 {}", check.port, count.v4, count.v6)
                };
                let checks: Vec<String> =
                    self.planner.plan().health_checks.iter().map(shown).collect();
                self.lines(lines, &checks);
            }
            Step::NoLocalEndpoints(lines) => {
                self.replan();
                let counts = self.planner.plan().services.iter().filter_map(|(name, service)| {
                    let (internal, external) =
                        (service.no_local_endpoints.internal, service.no_local_endpoints.external);
                    let sum = internal.v4 + internal.v6 + external.v4 + external.v6;
                    (sum > 0).then(|| {
                        format!(
                            "{name} internal IPv4 {} IPv6 {}, external IPv4 {} IPv6 {}",
                            internal.v4, internal.v6, external.v4, external.v6
                        )
                    })
                });
                self.lines(lines, &counts.collect::<Vec<_>>());
            }
        }
    }

    fn set_objects(&mut self, yaml: &str) {
        let read = |yaml: &str| {
            objects::read(yaml).unwrap_or_else(|error| panic!("{}: {error}", self.name))
        };
        let mut objects = read(yaml);
        if !objects.has(Kind::Node) {
            objects = read(&format!("{yaml}\n---\n{}", stage::NODE_OBJECT));
        }
        self.read_problems = std::mem::take(&mut objects.problems);
        self.dirty.merge(self.cluster.apply_all(objects.into_list()));
    }

    /// Brings the plan up to the objects, which must be no different from planning anew.
    fn replan(&mut self) {
        let snapshot = self.cluster.snapshot();
        self.planner.replan(&snapshot, &std::mem::take(&mut self.dirty));
        let anew = plan(&snapshot, self.planner.config());
        assert_eq!(*self.planner.plan(), anew, "{}: replanning differs from planning", self.name);
    }

    fn packet(&mut self, expectation: &Expectation) {
        if self.is_others {
            return;
        }
        self.n_packets += 1;
        let family = Family::of(&expectation.to.ip());
        let source = stage::address(&expectation.from, family)
            .unwrap_or_else(|| panic!("{}:{}: no such source", self.name, expectation.number));
        let packet = Packet {
            source,
            interface: expectation.interface.as_deref().map(Into::into),
            destination: expectation.to,
            protocol: expectation.protocol,
        };
        let snapshot = self.cluster.snapshot();
        let view = View {
            plan: self.planner.plan(),
            snapshot: &snapshot,
            config: self.planner.config(),
            host: &self.host,
        };
        let decision = trace(&view, &packet);
        let outcome = outcome(&decision);
        let expected = expectation.outcome_in(self.mode);
        if outcome != expected {
            let why = decision.why.join("\n    ");
            let (name, number, mode) = (&self.name, expectation.number, self.mode);
            let message = format!(
                "{name}:{number} ({mode}):\n  expected {expected}\n  got      {outcome}\n    {why}\n",
            );
            self.failures.push((number, outcome, message));
        }
    }

    fn lines(&mut self, expected: &[Line], got: &[String]) {
        let texts: Vec<&str> = expected.iter().map(|line| line.text.as_str()).collect();
        if texts != got {
            let message = format!(
                "{}:{}:\n  expected\n    {}\n  got\n    {}\n",
                self.name,
                expected.first().map_or(0, |line| line.number),
                texts.join("\n    "),
                got.join("\n    ")
            );
            self.failures.push((0, String::new(), message));
        }
    }

    /// Puts what came out in the place of what was expected.
    fn rewrite(&self, path: &Path) {
        let text = std::fs::read_to_string(path).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for (number, outcome, message) in &self.failures {
            let Some(line) = number.checked_sub(1).and_then(|idx| lines.get_mut(idx)) else {
                println!("{message}");
                continue;
            };
            let (packet, outcomes) = line.split_once(" = ").unwrap();
            let deviations = outcomes.split_once('|').map(|(_, deviations)| deviations);
            let deviations = deviations.map(|text| format!(" |{text}")).unwrap_or_default();
            *line = format!("{packet} = {outcome}{deviations}");
        }
        std::fs::write(path, lines.join("\n") + "\n").unwrap();
    }
}

fn config(lines: &[Line], mode: &str) -> Result<NodeConfig, String> {
    let mut flags = NodeFlags { proxy_mode: mode.to_owned(), ..NodeFlags::default() };
    for text in stage::FLAGS.into_iter().chain(lines.iter().map(|line| line.text.as_str())) {
        let (name, value) = text.split_once('=').unwrap_or((text, "true"));
        let known = flags.set(name.trim_start_matches("--"), value);
        known.map_err(|error| error.to_string())?;
    }
    flags.meant().map_err(|error| error.to_string())
}

fn outcome(decision: &Decision) -> String {
    let mut outcome = match &decision.verdict {
        Verdict::Drop => return "DROP".to_owned(),
        Verdict::Reject => return "REJECT".to_owned(),
        Verdict::NotOurs => return "not ours".to_owned(),
        Verdict::Endpoints(set) => {
            let shown = set.iter().map(|endpoint| {
                let weight =
                    if set.is_uniform() { String::new() } else { format!("*{}", endpoint.weight) };
                format!("{}{weight}", stage::shown(endpoint.address))
            });
            shown.collect::<Vec<_>>().join(" ")
        }
    };
    match decision.masquerade {
        Masquerading::No => {}
        Masquerading::Yes => outcome.push_str(", masquerade"),
        Masquerading::IfItself => outcome.push_str(", masquerade if itself"),
    }
    let affinity = decision.frontend.as_ref().and_then(|(_, frontend)| frontend.affinity);
    if let Some(affinity) = affinity {
        outcome.push_str(&format!(", affinity {}", affinity.as_secs()));
    }
    outcome
}
