//! The decision without a kernel against the programs in it: random packets through both, and what
//! became of them compared, byte by byte; then every table.
//!
//! ```text
//!  seed ─▶ tables, packets ─▶ kernel ─┬─▶ packet, action, counters, maps ─┐
//!                             │ which endpoint, which port                ├─▶ the same?
//!                             └─▶ without it ─▶ the same of it ───────────┘
//! ```
//!
//! What the kernel draws at random is told to the other side. A difference is made as small as it
//! goes, and told as a case that can be put into `tests/cases/packet`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use abi::counter::Counter;
use abi::flow::{FragmentKey, Held, HeldKey, Name, Ports, Record, Tuple};
use load::test_run::{Bench, Pod, TestRunError};
use packet::decide::{self, Verdict};
use packet::memory::{Frame, Memory, Way};
use packet::parse::{Fragment, Parsed, parse};
use packet::tables::{Stage, Tables as _};

use crate::packet::frame::frame;
use crate::packet::given::Given;
use crate::packet::play::{is_headless, serve};
use crate::packet::random::{self, Random, Seen};
use crate::packet::{kernel, show};

/// Packets that are sent through one set of tables.
const EPISODE: u64 = 400;

/// Room for established connections and their names, in some of the episodes.
const ROOM: [usize; 2] = [3, 4];

/// Both sides.
#[expect(missing_debug_implementations, reason = "it holds a loaded program")]
pub struct Fuzz {
    bench: Bench,
    /// The same with room for more or fewer connections.
    other: Bench,
    small: bool,
    host: Memory<Given>,
    /// What the kernel had counted when this episode began.
    before: Vec<u64>,
    /// Packets come from a device that has summed them.
    summed: bool,
}

/// What was done without a difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Packets that both sides saw.
    pub packets: u64,
    /// What became of them: verdicts, and what was counted on the way.
    pub verdicts: BTreeMap<&'static str, u64>,
}

/// A difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The seed of its episode.
    pub seed: u64,
    /// Whether the packets were summed by their device.
    pub summed: bool,
    /// Whether there was room for a few connections only.
    pub small: bool,
    tables: Vec<String>,
    steps: Vec<String>,
    what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# seed {}, summed {}, small {}: {}",
            self.seed, self.summed, self.small, self.what
        )?;
        writeln!(f, "-- tables --\n{}\n-- packets --", self.tables.join("\n"))?;
        write!(f, "{}", self.steps.join("\n"))
    }
}

/// Either a difference, or something that keeps it from being looked for.
type Played<T> = Result<Result<T, String>, TestRunError>;

impl Fuzz {
    /// Loads the programs.
    ///
    /// # Errors
    /// The kernel refuses them.
    pub fn open() -> Result<Self, TestRunError> {
        let host = Memory::new(Given::default());
        let [flows, names] = ROOM.map(|room| u32::try_from(room).unwrap_or(u32::MAX));
        let other = Bench::open_with(&[("FLOWS", flows), ("NAMES", names)])?;
        let (before, bench) = (Vec::new(), Bench::open()?);
        Ok(Self { bench, other, small: false, host, before, summed: false })
    }

    /// Compares so many packets, and stops at so many differences.
    ///
    /// # Errors
    /// The kernel does not run a program, or a map is not as expected.
    pub fn run(
        &mut self,
        seed: u64,
        packets: u64,
        most: usize,
        mut tell: impl FnMut(&Done),
    ) -> Result<(Done, Vec<Difference>), TestRunError> {
        let (mut done, mut differences) = (Done::default(), Vec::new());
        let first = seed.wrapping_mul(1_000_000);
        for episode in 0.. {
            if done.packets >= packets || differences.len() >= most {
                break;
            }
            let difference = self.episode(first.wrapping_add(episode), &mut done)?;
            differences.extend(difference.err());
            tell(&done);
        }
        Ok((done, differences))
    }

    /// Plays one episode.
    fn episode(
        &mut self,
        seed: u64,
        done: &mut Done,
    ) -> Result<Result<(), Difference>, TestRunError> {
        let mut random = Random::new(seed);
        let tables = random::tables(&mut random);
        self.summed = seed % 2 == 1;
        if self.small != (seed % 3 == 1) {
            std::mem::swap(&mut self.bench, &mut self.other);
            self.small = !self.small;
        }
        self.begin(&tables)?;
        let (mut seen, mut steps) = (Seen::default(), Vec::new());
        let last = done.packets + EPISODE;
        let what = loop {
            if done.packets >= last {
                for counter in Counter::ALL.iter().filter(|it| !it.name().starts_with("drop_")) {
                    *done.verdicts.entry(counter.name()).or_default() +=
                        self.host.counted(*counter);
                }
                break self.states()?;
            }
            let step = self.next(&mut random, &seen);
            steps.push(step.clone());
            match self.step(&step)? {
                Err(what) => break Some(what),
                Ok(None) => {}
                Ok(Some(passed)) => {
                    done.packets += 1;
                    *done.verdicts.entry(passed.verdict).or_default() += 1;
                    let is_ours = matches!(passed.verdict, "pass" | "reroute");
                    if is_ours || random::is_change(&mut random) {
                        seen.note(&passed.before);
                        seen.note(&passed.after);
                    }
                }
            }
        };
        let Some(what) = what else { return Ok(Ok(())) };
        let steps = self.shrunk(&tables, steps)?;
        let what = self.replay(&tables, &steps)?.unwrap_or(what);
        let (summed, small) = (self.summed, self.small);
        Ok(Err(Difference { seed, summed, small, tables, steps, what }))
    }

    fn next(&self, random: &mut Random, seen: &Seen) -> String {
        let frontends = &self.host.services.frontends;
        if !frontends.is_empty() && random::is_change(random) {
            let slot = random::slot(random, frontends.len());
            let v6 = frontends.get(slot - 1).is_some_and(|frontend| frontend.v6);
            return random::serving(random, slot, v6);
        }
        random::packet(random, seen)
    }

    /// Leaves out steps as long as a difference remains.
    fn shrunk(
        &mut self,
        tables: &[String],
        mut steps: Vec<String>,
    ) -> Result<Vec<String>, TestRunError> {
        let mut n = steps.len() / 2;
        while n > 0 {
            let mut at = 0;
            while at < steps.len() {
                let mut fewer = steps.clone();
                fewer.drain(at..(at + n).min(steps.len()));
                if self.replay(tables, &fewer)?.is_some() {
                    steps = fewer;
                } else {
                    at += n;
                }
            }
            n /= 2;
        }
        Ok(steps)
    }

    /// Plays steps from the beginning; the first difference.
    ///
    /// # Errors
    /// As above.
    pub fn replay(
        &mut self,
        tables: &[String],
        steps: &[String],
    ) -> Result<Option<String>, TestRunError> {
        self.begin(tables)?;
        for step in steps {
            if let Err(what) = self.step(step)? {
                return Ok(Some(what));
            }
        }
        self.states()
    }

    fn begin(&mut self, tables: &[String]) -> Result<(), TestRunError> {
        let mut given = Given::default();
        for line in tables {
            given.line(line);
        }
        let slots = u32::try_from(given.frontends.len()).unwrap_or(0);
        given.generations = (0..=slots).map(|slot| slot + 1).collect();
        kernel::reset(&mut self.bench)?;
        kernel::give(&mut self.bench, &given)?;
        self.bench.forget_answers()?;
        self.before = self.bench.counters()?;
        self.host = Memory::new(given);
        if self.small {
            self.host.room = ROOM;
        }
        Ok(())
    }

    fn step(&mut self, step: &str) -> Played<Option<Passed>> {
        if let Some(change) = step.strip_prefix("serving ") {
            serve(&mut self.host.services, change);
            kernel::give(&mut self.bench, &self.host.services)?;
            return Ok(Ok(None));
        }
        let (way, text) = step.split_once(' ').unwrap_or((step, ""));
        let way = match way {
            "arrives" => Way::Arrives,
            "leaves" => Way::Leaves,
            _ => Way::MadeHere,
        };
        let before = frame(text);
        if is_headless(&before) {
            return Ok(Ok(None));
        }
        let mut passed = match self.packet(&before, way)? {
            Ok(passed) => passed,
            Err(what) => return Ok(Err(what)),
        };
        // What is sent again comes by the same way.
        for again in std::mem::take(&mut passed.again) {
            if let Err(what) = self.packet(&again, way)? {
                return Ok(Err(format!("sent again: {what}")));
            }
        }
        Ok(Ok(Some(passed)))
    }

    fn packet(&mut self, before: &[u8], way: Way) -> Played<Passed> {
        let ran = kernel::run(&mut self.bench, before, way, self.summed)?;
        let foreseen = self.drawn(before, way)?;
        self.host.foresee(foreseen);
        let mut own = Frame::new(before);
        let verdict = self.host.run(&mut own, way);
        let passed = |after| {
            let untouched = verdict == Verdict::PASS && after == before;
            let verdict = if untouched { "untouched" } else { told(verdict) };
            Passed { verdict, before: before.to_vec(), after, again: own.again.clone() }
        };
        let Some((action, after)) = ran else {
            // The kernel forgets the sum of a packet that is cut.
            return Ok(if verdict == Verdict::ANSWER || !own.again.is_empty() {
                Ok(passed(own.bytes.clone()))
            } else {
                Err("the device's sum of the packet is wrong afterwards".to_owned())
            });
        };
        if !is_action(verdict, action) {
            return Ok(Err(format!("the kernel says {action}, the code {}", told(verdict))));
        }
        if let Some(counter) = verdict.reason().and_then(Counter::at)
            && self.counted_since(counter as u32)? != self.host.counted(counter)
        {
            return Ok(Err(format!("the kernel does not say {}", counter.name())));
        }
        let is_seen = verdict.reason().is_none() || !own.again.is_empty();
        if is_seen && after != own.bytes {
            let at = after.iter().zip(&own.bytes).position(|(a, b)| a != b);
            let text =
                |bytes: &[u8]| format!("{} bytes, {}", bytes.len(), show::show(bytes, false));
            let (after, own) = (text(&after), text(&own.bytes));
            return Ok(Err(format!("from byte {at:?} on: kernel {after}; code {own}")));
        }
        Ok(Ok(passed(after)))
    }

    /// What the kernel drew at random for this packet: an endpoint's place, a port.
    fn drawn(&mut self, before: &[u8], way: Way) -> Result<Vec<u32>, TestRunError> {
        let mut parsed = Parsed::default();
        let bytes = Frame::new(before);
        let ethertype = before.get(12..14).and_then(|two| two.try_into().ok());
        let ethertype = ethertype.map_or(0, u16::from_ne_bytes);
        if parse(&bytes, 14, ethertype, &mut parsed).is_none() {
            return Ok(Vec::new());
        }
        if let Fragment::Later(id) = parsed.fragment {
            let leaves = u8::from(way != Way::Arrives);
            let (src, dst, protocol) = (parsed.src, parsed.dst, parsed.protocol);
            let key = FragmentKey { src, dst, id, protocol, leaves, pad: 0 };
            let [a, b, c, d] = self.host.ports(&key).map_or([0; 4], |it| it.ports.to_le_bytes());
            parsed.src_port = u16::from_le_bytes([a, b]);
            parsed.dst_port = u16::from_le_bytes([c, d]);
        }
        let seen = decide::tuple(&parsed);
        if way != Way::Arrives {
            let by_name = self.bench_name(&seen.leaving())?;
            if let Some(record) = match by_name {
                Some(sent) => self.bench_flow(&sent)?,
                None => None,
            } {
                return Ok(vec![u32::from(u16::from_be(record.snat_port))]);
            }
        }
        let Some(record) = self.bench_flow(&seen)? else { return Ok(Vec::new()) };
        let given = &self.host.services;
        let endpoint = SocketAddr::new(record.endpoint.into(), u16::from_be(record.endpoint_port));
        let route = given
            .at(record.slot)
            .map(|frontend| given.route(frontend, IpAddr::from(seen.src), way == Way::MadeHere));
        let place = route.and_then(|route| route.endpoints.iter().position(|it| *it == endpoint));
        let place = place.and_then(|place| u32::try_from(place).ok()).unwrap_or(0);
        Ok(vec![place, u32::from(u16::from_be(record.client_port))])
    }

    fn bench_flow(&mut self, sent: &Tuple) -> Result<Option<Record>, TestRunError> {
        for name in ["NEW_FLOWS", "FLOWS"] {
            if let Ok(record) = self.bench.hash::<Tuple, Record>(name)?.get(sent, 0) {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    fn bench_name(&mut self, name: &Tuple) -> Result<Option<Tuple>, TestRunError> {
        if let Ok(sent) = self.bench.hash::<Tuple, Tuple>("NEW_NAMES")?.get(name, 0) {
            return Ok(Some(sent));
        }
        let known = self.bench.hash::<Tuple, Name>("NAMES")?.get(name, 0);
        Ok(known.ok().map(|known| known.sent))
    }

    fn counted_since(&mut self, index: u32) -> Result<u64, TestRunError> {
        let before = self.before.get(index as usize).copied().unwrap_or(0);
        Ok(self.bench.counter(index)?.wrapping_sub(before))
    }

    /// Compares counters, connections, names and fragments.
    fn states(&mut self) -> Result<Option<String>, TestRunError> {
        for (index, counter) in (0..).zip(Counter::ALL) {
            let (counted, own) = (self.counted_since(index)?, self.host.counted(counter));
            // There is no route to anywhere where the programs are run by hand.
            if counted != own && counter != Counter::DroppedNoRoute {
                let name = counter.name();
                return Ok(Some(format!("the kernel counted {counted} {name}, the code {own}")));
            }
        }
        for (stage, flows, names) in
            [(Stage::Established, "FLOWS", "NAMES"), (Stage::New, "NEW_FLOWS", "NEW_NAMES")]
        {
            let own = self.host.connections(stage);
            let records = entries::<Tuple, Record>(&mut self.bench, flows)?;
            let kernels = match stage {
                Stage::Established => entries::<Tuple, Name>(&mut self.bench, names)?,
                Stage::New => entries::<Tuple, Tuple>(&mut self.bench, names)?
                    .into_iter()
                    .map(|(name, sent)| (name, Name::of(sent)))
                    .collect(),
            };
            let different = differing(summed_up(records, &kernels), summed_up(own.0, &own.1));
            let whose = |(name, known): (Tuple, Name)| (name, known.sent);
            let different = different.or_else(|| {
                differing(kernels.into_iter().map(whose), own.1.into_iter().map(whose))
            });
            if let Some(different) = different {
                return Ok(Some(format!("{flows} or {names}: {different}")));
            }
        }
        self.fragments()
    }

    fn fragments(&mut self) -> Result<Option<String>, TestRunError> {
        let timeless = |(key, noted): (FragmentKey, Ports)| (key, noted.ports);
        let kernels = entries::<FragmentKey, Ports>(&mut self.bench, "DATAGRAMS")?;
        let own = self.host.datagrams().into_iter().map(timeless);
        if let Some(different) = differing(kernels.into_iter().map(timeless), own) {
            return Ok(Some(different));
        }
        let bytes = |(key, held): (HeldKey, Held)| {
            (key, held.bytes.iter().copied().take(held.len as usize).collect::<Vec<u8>>())
        };
        let kernels = entries::<HeldKey, Held>(&mut self.bench, "HELD")?;
        Ok(differing(kernels.into_iter().map(bytes), self.host.held().into_iter()))
    }
}

/// A packet that both sides took alike.
#[derive(Clone)]
struct Passed {
    verdict: &'static str,
    before: Vec<u8>,
    after: Vec<u8>,
    again: Vec<Vec<u8>>,
}

/// Records without the time, and with what their names have yet to add: when they do depends on the
/// clock.
fn summed_up(
    records: Vec<(Tuple, Record)>,
    names: &[(Tuple, Name)],
) -> impl Iterator<Item = (Tuple, Record)> {
    records.into_iter().map(|(sent, record)| {
        let mut record = Record { seen: 0, ..record };
        for (_, known) in names.iter().filter(|(_, known)| known.sent == sent) {
            record.reply_packets = record.reply_packets.wrapping_add(known.packets);
            record.reply_bytes = record.reply_bytes.wrapping_add(known.bytes);
        }
        (sent, record)
    })
}

/// All of a map.
fn entries<K: Pod, V: Pod>(bench: &mut Bench, name: &str) -> Result<Vec<(K, V)>, TestRunError> {
    let map = bench.hash::<K, V>(name)?;
    let entries: Result<Vec<(K, V)>, _> = map.iter().collect();
    entries.map_err(|source| TestRunError::Map { name: name.to_owned(), source })
}

fn differing<K: Ord + Copy + fmt::Debug, V: PartialEq + fmt::Debug>(
    kernels: impl Iterator<Item = (K, V)>,
    own: impl Iterator<Item = (K, V)>,
) -> Option<String> {
    let (kernels, own): (BTreeMap<K, V>, BTreeMap<K, V>) = (kernels.collect(), own.collect());
    let key = kernels.keys().chain(own.keys()).find(|key| kernels.get(key) != own.get(key))?;
    Some(format!("{key:?}: kernel {:?}, code {:?}", kernels.get(key), own.get(key)))
}

/// Whether a program would return that.
fn is_action(verdict: Verdict, action: i32) -> bool {
    match verdict {
        Verdict::PASS => action == -1,
        Verdict::ANSWER => action == 7,
        // Redirected, or dropped since there is no route.
        Verdict::REROUTE => action == 7 || action == 2,
        _ => action == 2,
    }
}

fn told(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::PASS => "pass",
        Verdict::ANSWER => "answer",
        Verdict::REROUTE => "reroute",
        other => other.reason().and_then(Counter::at).map_or("nothing", Counter::name),
    }
}
