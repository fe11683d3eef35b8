//! Plays one case file on a stage.
//!
//! All packets of a section begin at once. Those that must arrive are waited for, and tried again
//! until every endpoint was met. That nothing else arrives is seen afterwards: when packets have
//! arrived that were sent later, the same way as far as the proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use libtest_mimic::Failed;
use model::name::{Family, Protocol};
use tests::actor::{IDS, Probe, Transport};
use tests::case::{Case, Expectation, Line, Step};
use tests::stage as cast;

use crate::crew::Told;
use crate::judge::{Affinity, Outcome, Scene};
use crate::mode::{Mode, unshown};
use crate::stage::Stage;

/// Source ports, each used once so that no connection meets what is remembered of another.
const PORTS: std::ops::Range<u16> = 33_000..60_000;
/// However often it is tried, an endpoint that is not met by then is never chosen: with four of
/// them, one in ten thousand million is missed by chance.
const MOST_TRIES: usize = 80;

/// Plays a file; says which expectations do not hold.
pub(crate) fn play(case: &Case, mode: &Mode) -> Result<(), Failed> {
    let mut play = Play::new(case, mode);
    for step in &case.steps {
        play.step(step);
    }
    println!(
        "{} in mode {}: {} expectations hold, {} packets sent; {} not shown",
        case.name,
        mode.name,
        play.n_held,
        play.n_sent,
        play.unshown.len()
    );
    for unshown in &play.unshown {
        println!("  not shown: {unshown}");
    }
    if play.faults.is_empty() {
        return Ok(());
    }
    let log = play.stage.proxy_log();
    Err(format!("{}\n\nthe proxy's log:\n{log}", play.faults.join("\n")).into())
}

/// A case being played.
struct Play<'a> {
    case: &'a Case,
    mode: &'a Mode,
    stage: Stage,
    objects: String,
    flags: Vec<String>,
    /// The proxy runs with these flags.
    started: Option<Vec<String>>,
    /// The flags name another mode.
    is_others: bool,
    ids: std::ops::Range<u16>,
    ports: std::ops::Range<u16>,
    n_sent: usize,
    n_held: usize,
    unshown: Vec<String>,
    faults: Vec<String>,
}

/// Which endpoint a client met first: one of these, and by which frontend if that matters.
type Kept = BTreeMap<(IpAddr, Vec<SocketAddr>, Option<SocketAddr>), SocketAddr>;

/// An expectation being tried.
struct Trial<'a> {
    expectation: &'a Expectation,
    outcome: Outcome,
    source: IpAddr,
    actor: String,
    /// What the sockets are bound to: nothing, if the kernel is to choose the source.
    bound: IpAddr,
    /// They are translated, and the node's.
    is_translated: bool,
    tries: Vec<(u16, SocketAddr)>,
}

impl<'a> Play<'a> {
    fn new(case: &'a Case, mode: &'a Mode) -> Self {
        let packets = case.steps.iter().filter_map(|step| match step {
            Step::Packets(packets) => Some(packets),
            _ => None,
        });
        let interfaces: BTreeSet<String> =
            packets.flatten().filter_map(|packet| packet.interface.clone()).collect();
        Self {
            case,
            mode,
            stage: Stage::new(mode, &interfaces),
            objects: String::new(),
            flags: flags(&[]),
            started: None,
            is_others: false,
            ids: IDS,
            ports: PORTS,
            n_sent: 0,
            n_held: 0,
            unshown: Vec::new(),
            faults: Vec::new(),
        }
    }

    fn step(&mut self, step: &'a Step) {
        match step {
            Step::Objects(yaml) => {
                let has_node = yaml.lines().any(|line| line.trim() == "kind: Node");
                self.objects = if has_node {
                    yaml.clone()
                } else {
                    format!("{yaml}\n---\n{}", cast::NODE_OBJECT)
                };
                self.stage.set_objects(&self.objects);
            }
            Step::Flags(lines) => {
                self.flags = flags(lines);
                self.is_others = lines.iter().any(|line| {
                    let mode = line.text.strip_prefix("--proxy-mode=");
                    mode.is_some_and(|mode| mode != self.mode.backend)
                });
            }
            Step::Host(lines) => {
                let addresses = lines.iter().map(|line| line.text.parse().unwrap());
                self.stage.set_host(addresses.collect());
            }
            Step::Packets(packets) if self.is_others => {
                self.unshown.extend(packets.iter().map(|packet| {
                    format!("{}:{}: the flags name another mode", self.case.name, packet.number)
                }));
            }
            Step::Packets(packets) => {
                if self.started.as_ref() != Some(&self.flags) {
                    self.stage.start_proxy(&self.flags);
                    self.started = Some(self.flags.clone());
                }
                self.packets(packets);
            }
            // What the plan says of itself the pure cases show.
            Step::Problems(_) | Step::Health(_) | Step::NoLocalEndpoints(_) => {}
        }
    }

    fn packets(&mut self, packets: &'a [Expectation]) {
        let mut together = Vec::new();
        let mut behind: BTreeMap<(&str, IpAddr), Vec<Trial<'a>>> = BTreeMap::new();
        let mut bound = BTreeSet::new();
        for expectation in packets {
            if let Some(reason) =
                unshown(self.mode, &self.case.name, expectation, self.stage.host())
            {
                let place = format!("{}:{}", self.case.name, expectation.number);
                self.unshown.push(format!("{place}: {reason}"));
                continue;
            }
            let trial = self.trial(expectation);
            match &expectation.interface {
                Some(interface) => {
                    behind.entry((interface, trial.source)).or_default().push(trial);
                }
                None => {
                    if trial.actor == "node-a" && !trial.source.is_loopback() {
                        bound.insert(trial.source);
                    }
                    together.push(trial);
                }
            }
        }
        let lacked = self.stage.bind(&bound);
        self.play_together(together);
        self.stage.unbind(&lacked);
        for ((interface, source), mut trials) in behind {
            let standing = self.stage.stand_behind(interface, source);
            for trial in &mut trials {
                trial.actor.clone_from(&standing.actor);
            }
            self.play_together(trials);
            self.stage.leave(&standing);
        }
    }

    fn trial(&self, expectation: &'a Expectation) -> Trial<'a> {
        let place = format!("{}:{}", self.case.name, expectation.number);
        let text = expectation.packets_in(&self.mode.backend);
        let outcome = Outcome::parse(text).unwrap_or_else(|| panic!("{place}: no outcome: {text}"));
        let family = Family::of(&expectation.to.ip());
        let source = cast::address(&expectation.from, family)
            .unwrap_or_else(|| panic!("{place}: no such source"));
        let actor = match expectation.from.as_str() {
            "far" => "node-b",
            name @ ("a1" | "a2" | "a3" | "b1" | "b2" | "b3" | "client" | "stranger") => name,
            _ => "node-a",
        };
        // A process that says "localhost" does not bind its socket: for loopback addresses the kernel
        // chooses such a source, for others another.
        let bound = match (&*expectation.from, family) {
            ("localhost", Family::V4) => Ipv4Addr::UNSPECIFIED.into(),
            ("localhost", Family::V6) => Ipv6Addr::UNSPECIFIED.into(),
            _ => source,
        };
        let is_translated = self.mode.at_sockets() && actor == "node-a";
        let (actor, tries) = (actor.to_owned(), Vec::new());
        Trial { expectation, outcome, source, actor, bound, is_translated, tries }
    }

    /// Plays what needs no change of the stage between.
    fn play_together(&mut self, trials: Vec<Trial<'a>>) {
        let (mut sticky, mut plain): (Vec<_>, Vec<_>) =
            trials.into_iter().partition(|trial| trial.affinity() != Affinity::No);
        let n_tries: Vec<usize> = plain.iter().map(|trial| trial.outcome.n_tries()).collect();
        self.send(plain.iter_mut().zip(n_tries));
        while self.wait_decided(&plain) {
            let told = self.stage.crew.told();
            let again: Vec<_> = plain
                .iter_mut()
                .filter(|trial| trial.misses(&told) && trial.tries.len() < MOST_TRIES)
                .map(|trial| (trial, MOST_TRIES / 4))
                .collect();
            if again.is_empty() {
                break;
            }
            self.send(again);
        }
        // Whom a client got is remembered once its first packet has arrived.
        for trial in &mut sticky {
            self.send([(&mut *trial, 1)]);
            self.wait_decided(std::slice::from_ref(trial));
            self.send([(&mut *trial, 8)]);
            self.wait_decided(std::slice::from_ref(trial));
        }
        self.send_after(&plain);
        self.judge(&plain, &sticky);
        self.stage.crew.close();
    }

    fn send<'t>(&mut self, trials: impl IntoIterator<Item = (&'t mut Trial<'a>, usize)>)
    where
        'a: 't,
    {
        let mut probes: BTreeMap<String, Vec<Probe>> = BTreeMap::new();
        for (trial, n_tries) in trials {
            for _ in 0..n_tries {
                let port = next(&mut self.ports, PORTS);
                let id = next(&mut self.ids, IDS);
                let protocol = Transport::from(trial.expectation.protocol);
                let from = SocketAddr::new(trial.bound, port);
                let probe = Probe { id, protocol, from, to: trial.expectation.to };
                probes.entry(trial.actor.clone()).or_default().push(probe);
                trial.tries.push((id, SocketAddr::new(trial.source, port)));
            }
        }
        for (actor, probes) in probes {
            self.n_sent += probes.len();
            self.stage.crew.send(&actor, probes);
        }
    }

    /// Waits until all that must be told has been told; says whether it was.
    fn wait_decided(&self, trials: &[Trial<'_>]) -> bool {
        let stage = &self.stage;
        self.stage.crew.wait(|told| {
            trials.iter().all(|trial| {
                let decided = |(id, scene): (u16, Scene<'_>)| scene.is_decided(told, id);
                trial.scenes(stage).all(decided)
            })
        })
    }

    /// Sends packets behind those that must not arrive, the same way up to the proxy, and waits
    /// for them.
    fn send_after(&mut self, trials: &[Trial<'_>]) {
        let quiet: BTreeSet<(&str, IpAddr)> = trials
            .iter()
            .filter(|trial| !trial.outcome.arrives())
            .map(|trial| (trial.actor.as_str(), trial.source))
            .collect();
        for _ in 0..3 {
            let mut sent = Vec::new();
            for (actor, source) in &quiet {
                let name = if *actor == "a1" { "a2" } else { "a1" };
                let to = cast::address(name, Family::of(source)).unwrap();
                let id = next(&mut self.ids, IDS);
                let from = SocketAddr::new(*source, next(&mut self.ports, PORTS));
                let to = SocketAddr::new(to, 9);
                let probe = Probe { id, protocol: Transport::Udp, from, to };
                self.stage.crew.send(actor, vec![probe]);
                sent.push(id);
            }
            let arrived = |told: &Told| sent.iter().all(|id| told.arrivals.contains_key(id));
            assert!(self.stage.crew.wait(arrived), "packets for pods do not arrive: {quiet:?}");
        }
    }

    fn judge(&mut self, plain: &[Trial<'_>], sticky: &[Trial<'_>]) {
        let told = self.stage.crew.told();
        let mut kept = Kept::new();
        let mut faults = Vec::new();
        for trial in plain.iter().chain(sticky) {
            let fault = trial
                .scenes(&self.stage)
                .find_map(|(id, scene)| scene.fault(&told, id))
                .or_else(|| trial.unfair(&told))
                .or_else(|| trial.strays(&told, &mut kept));
            match fault {
                None => self.n_held += 1,
                Some(fault) => faults.push(format!(
                    "{}:{}: {} -> {} ({:?}) = {}: it {fault}",
                    self.case.name,
                    trial.expectation.number,
                    trial.expectation.from,
                    cast::shown(trial.expectation.to),
                    trial.expectation.protocol,
                    trial.expectation.packets_in(&self.mode.backend),
                )),
            }
        }
        self.faults.extend(faults);
    }
}

impl Trial<'_> {
    fn scenes<'t>(&'t self, stage: &'t Stage) -> impl Iterator<Item = (u16, Scene<'t>)> {
        self.tries.iter().map(move |(id, from)| {
            let to = self.expectation.to;
            let is_answered = self.expectation.protocol != Protocol::Sctp;
            let scene = Scene {
                outcome: &self.outcome,
                from: *from,
                to,
                is_answered,
                keeps_source: self.is_translated && self.bound == self.source,
                place: stage,
            };
            (*id, scene)
        })
    }

    /// How often each endpoint was met.
    fn met(&self, told: &Told) -> BTreeMap<SocketAddr, usize> {
        let mut met = BTreeMap::new();
        for (_, arrival) in self.tries.iter().filter_map(|(id, _)| told.arrivals.get(id)) {
            *met.entry(arrival.to).or_default() += 1;
        }
        met
    }

    /// Whether some endpoint was not met yet.
    fn misses(&self, told: &Told) -> bool {
        let Outcome::Endpoints { set, affinity: Affinity::No, .. } = &self.outcome else {
            return false;
        };
        let met = self.met(told);
        set.keys().any(|endpoint| !met.contains_key(endpoint))
    }

    /// Whether an endpoint is never chosen, or not more often than one of less weight.
    fn unfair(&self, told: &Told) -> Option<String> {
        let Outcome::Endpoints { set, affinity: Affinity::No, .. } = &self.outcome else {
            return None;
        };
        let met = self.met(told);
        let n = |endpoint: &SocketAddr| met.get(endpoint).copied().unwrap_or_default();
        if let Some(missed) = set.keys().find(|endpoint| n(endpoint) == 0) {
            return Some(format!(
                "never met {} in {} tries",
                cast::shown(*missed),
                self.tries.len()
            ));
        }
        let heavier = |a: u16, b: u16| a > b;
        set.iter().find_map(|(one, weight)| {
            let (other, _) =
                set.iter().find(|(other, less)| heavier(*weight, **less) && n(one) <= n(other))?;
            Some(format!("met {one} no more often than {other}: {met:?}"))
        })
    }

    /// Whether a client that is to keep its endpoint met several.
    fn strays(&self, told: &Told, kept: &mut Kept) -> Option<String> {
        let Outcome::Endpoints { set, .. } = &self.outcome else { return None };
        let frontend = match self.affinity() {
            Affinity::No => return None,
            Affinity::ByService => None,
            Affinity::ByFrontend => Some(self.expectation.to),
        };
        let key = (self.source, set.keys().copied().collect(), frontend);
        self.met(told).into_keys().find_map(|endpoint| {
            let first = *kept.entry(key.clone()).or_insert(endpoint);
            (first != endpoint).then(|| format!("met {first} and then {endpoint}"))
        })
    }

    fn affinity(&self) -> Affinity {
        match self.outcome {
            Outcome::Endpoints { affinity, .. } => affinity,
            Outcome::Drop | Outcome::Reject | Outcome::NotOurs => Affinity::No,
        }
    }
}

/// The next number of a range, which begins anew when it is used up.
fn next(range: &mut std::ops::Range<u16>, all: std::ops::Range<u16>) -> u16 {
    range.next().unwrap_or_else(|| {
        *range = all;
        range.next().unwrap()
    })
}

/// The stage's flags with a case's, which come instead of those of the same name.
fn flags(lines: &[Line]) -> Vec<String> {
    let mut flags: BTreeMap<String, String> = BTreeMap::new();
    let all = cast::FLAGS.into_iter().chain(lines.iter().map(|line| line.text.as_str()));
    for flag in all.filter(|flag| !is_the_harness(flag)) {
        let name = flag.split('=').next().unwrap_or(flag);
        flags.insert(name.to_owned(), flag.to_owned());
    }
    flags.into_values().collect()
}

/// The name of the node and the mode are given anyway.
fn is_the_harness(flag: &str) -> bool {
    flag.starts_with("--hostname-override=") || flag.starts_with("--proxy-mode=")
}
