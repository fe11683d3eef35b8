//! One file of cases: objects, flags, packets, and what must become of them. The format is told
//! in `tests/cases/service/README.md`.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use model::name::Protocol;

use crate::stage;

/// A file of cases, to be played from top to bottom.
#[derive(Clone, Debug)]
pub struct Case {
    /// The file's name.
    pub name: String,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// One section of a file.
#[derive(Clone, Debug)]
pub enum Step {
    /// The cluster's objects, instead of those before: YAML.
    Objects(String),
    /// The flags besides [`stage::FLAGS`], instead of those before.
    Flags(Vec<Line>),
    /// Addresses that the node has besides its own, instead of those before.
    Host(Vec<Line>),
    /// New connections.
    Packets(Vec<Expectation>),
    /// All problems there are.
    Problems(Vec<Line>),
    /// All health check node ports there are.
    Health(Vec<Line>),
    /// All Services that a `Local` policy leaves without an endpoint here.
    NoLocalEndpoints(Vec<Line>),
}

/// A line of a file that is not a comment.
#[derive(Clone, Debug)]
pub struct Line {
    /// Counted from 1.
    pub number: usize,
    /// The line, trimmed.
    pub text: String,
}

/// A new connection and what must become of it.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// Counted from 1.
    pub number: usize,
    /// Who connects: a name of the stage or an address.
    pub from: String,
    /// The interface that its packet arrives on, where the case says.
    pub interface: Option<String>,
    /// To where.
    pub to: SocketAddr,
    /// By which protocol.
    pub protocol: Protocol,
    /// What must become of it.
    pub outcome: String,
    /// What becomes of it in modes that cannot do that, by the mode's name.
    pub deviations: Vec<(String, String)>,
    /// Where a mode's kernel deviates from what is planned for it.
    pub kernels: Vec<KernelDeviation>,
}

/// A mode does otherwise than planned, because its kernel cannot do that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelDeviation {
    /// The mode.
    pub mode: String,
    /// What becomes of the connection.
    pub outcome: String,
    /// Why.
    pub reason: String,
}

impl Expectation {
    /// What must become of it in a mode.
    pub fn outcome_in(&self, mode: &str) -> &str {
        let deviation = self.deviations.iter().find(|(other, _)| other == mode);
        deviation.map_or(&self.outcome, |(_, outcome)| outcome)
    }

    /// What must become of its packets in a mode.
    pub fn packets_in(&self, mode: &str) -> &str {
        let deviation = self.kernels.iter().find(|it| it.mode == mode);
        deviation.map_or_else(|| self.outcome_in(mode), |it| &it.outcome)
    }
}

/// A file that is no case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadCaseError {
    place: String,
    reason: String,
}

impl fmt::Display for ReadCaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

impl Case {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or is no case; says where.
    pub fn read(path: &Path) -> Result<Self, ReadCaseError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ReadCaseError { place: name.clone(), reason: error.to_string() })?;
        Self::parse(&name, &text)
    }

    /// Parses a file's text.
    ///
    /// # Errors
    /// It is no case; says where.
    pub fn parse(name: &str, text: &str) -> Result<Self, ReadCaseError> {
        let error = |number: usize, reason: &str| ReadCaseError {
            place: format!("{name}:{number}"),
            reason: reason.to_owned(),
        };
        let mut sections: Vec<(usize, &str, Vec<Line>)> = Vec::new();
        for (idx, line) in text.lines().enumerate() {
            let title = line.strip_prefix("-- ").and_then(|rest| rest.strip_suffix(" --"));
            match (title, sections.last_mut()) {
                (Some(title), _) => sections.push((idx + 1, title, Vec::new())),
                (None, Some((_, _, lines))) => {
                    lines.push(Line { number: idx + 1, text: line.to_owned() });
                }
                (None, None) if line.is_empty() || line.starts_with('#') => {}
                (None, None) => return Err(error(idx + 1, "before any section")),
            }
        }
        let mut steps = Vec::new();
        for (number, title, lines) in sections {
            steps.push(match title {
                "objects.yaml" => Step::Objects(joined(&lines)),
                "flags" => Step::Flags(content(lines)),
                "host" => Step::Host(content(lines)),
                "problems" => Step::Problems(content(lines)),
                "health" => Step::Health(content(lines)),
                "no local endpoints" => Step::NoLocalEndpoints(content(lines)),
                "packets" => Step::Packets(
                    content(lines)
                        .iter()
                        .map(|line| {
                            expectation(line).ok_or_else(|| {
                                error(line.number, "is no `FROM -> TO:PORT/PROTO = OUTCOME`")
                            })
                        })
                        .collect::<Result<_, _>>()?,
                ),
                _ => return Err(error(number, "is no section")),
            });
        }
        Ok(Self { name: name.to_owned(), steps })
    }
}

fn joined(lines: &[Line]) -> String {
    lines.iter().map(|line| format!("{}\n", line.text)).collect()
}

fn content(lines: Vec<Line>) -> Vec<Line> {
    lines
        .into_iter()
        .map(|line| Line { text: line.text.trim().to_owned(), ..line })
        .filter(|line| !line.text.is_empty() && !line.text.starts_with('#'))
        .collect()
}

fn expectation(line: &Line) -> Option<Expectation> {
    let (packet, outcomes) = line.text.split_once(" = ")?;
    let (outcome, deviations) = outcomes.split_once('|').unwrap_or((outcomes, ""));
    let (deviations, kernels) = self::deviations(deviations)?;
    let (from, to) = packet.split_once("->")?;
    let (from, interface) = match from.trim().split_once(" on ") {
        Some((from, interface)) => (from, Some(interface.trim().to_owned())),
        None => (from.trim(), None),
    };
    let (to, protocol) = to.trim().rsplit_once('/')?;
    Some(Expectation {
        number: line.number,
        from: from.trim().to_owned(),
        interface,
        to: stage::socket(to)?,
        protocol: Protocol::parse(&protocol.to_uppercase()).ok()?,
        outcome: outcome.trim().to_owned(),
        deviations,
        kernels,
    })
}

/// Modes, and what becomes of a connection in each.
type Deviations = Vec<(String, String)>;

/// `MODE…: OUTCOME` or `MODE deviates: OUTCOME (REASON)`, separated by `|`.
fn deviations(text: &str) -> Option<(Deviations, Vec<KernelDeviation>)> {
    let (mut deviations, mut kernels) = (Vec::new(), Vec::new());
    for deviation in text.split('|').filter(|deviation| !deviation.trim().is_empty()) {
        let (modes, outcome) = deviation.split_once(": ")?;
        let outcome = outcome.trim();
        if let Some(mode) = modes.trim().strip_suffix(" deviates") {
            let (outcome, reason) = outcome.strip_suffix(')')?.split_once(" (")?;
            let [mode, outcome, reason] = [mode, outcome, reason].map(str::to_owned);
            kernels.push(KernelDeviation { mode, outcome, reason });
            continue;
        }
        deviations
            .extend(modes.split_whitespace().map(|mode| (mode.to_owned(), outcome.to_owned())));
    }
    Some((deviations, kernels))
}
