//! What an outcome looks like to those who send and those who receive.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use tests::actor::Answer;
use tests::stage;

use crate::crew::Told;
use crate::stage::Stage;

/// What must become of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It goes to one of these, with these weights.
    Endpoints {
        /// The endpoints, and how often each is chosen relative to the others.
        set: BTreeMap<SocketAddr, u16>,
        /// Whether its source is rewritten.
        masquerade: Masquerade,
        /// Whether the client keeps its endpoint.
        affinity: Affinity,
    },
    /// It is dropped.
    Drop,
    /// It is refused on the way.
    Reject,
    /// It goes where it was sent to.
    NotOurs,
}

/// Whether a client keeps its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Affinity {
    /// Each of its connections gets one of its own.
    No,
    /// It does, by whatever frontend it comes.
    ByService,
    /// By each frontend it keeps one.
    ByFrontend,
}

/// Whether the source is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Masquerade {
    /// Never.
    No,
    /// Always.
    Yes,
    /// If the endpoint is the source itself.
    IfItself,
}

/// What is looked at to judge a connection.
pub(crate) struct Scene<'a> {
    /// What must become of it.
    pub(crate) outcome: &'a Outcome,
    /// Who sends.
    pub(crate) from: SocketAddr,
    /// To whom.
    pub(crate) to: SocketAddr,
    /// Whether a host answers a first packet to a port where nobody listens: not where its kernel
    /// has no SCTP.
    pub(crate) is_answered: bool,
    /// Whether the sender's socket is translated and is one of the node's: bound to an address of
    /// the node, it keeps it, which is a source of the node's as good as any.
    pub(crate) keeps_source: bool,
    /// Where they are.
    pub(crate) place: &'a Stage,
}

impl Outcome {
    /// As a case file has it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "DROP" => return Some(Self::Drop),
            "REJECT" => return Some(Self::Reject),
            "not ours" => return Some(Self::NotOurs),
            _ => {}
        }
        let mut parts = text.split(", ");
        let set = parts.next()?.split_whitespace().map(|endpoint| {
            let (socket, weight) = endpoint.split_once('*').unwrap_or((endpoint, "1"));
            Some((stage::socket(socket)?, weight.parse().ok()?))
        });
        let set = set.collect::<Option<_>>()?;
        let (mut masquerade, mut affinity) = (Masquerade::No, Affinity::No);
        for part in parts {
            match part {
                "masquerade" => masquerade = Masquerade::Yes,
                "masquerade if itself" => masquerade = Masquerade::IfItself,
                _ if part.starts_with("affinity ") => {
                    let is_narrow = part.ends_with(" by frontend");
                    affinity = if is_narrow { Affinity::ByFrontend } else { Affinity::ByService };
                }
                _ => return None,
            }
        }
        Some(Self::Endpoints { set, masquerade, affinity })
    }

    /// Whether its packets arrive somewhere.
    pub(crate) const fn arrives(&self) -> bool {
        matches!(self, Self::Endpoints { .. } | Self::NotOurs)
    }

    /// How often it is tried at first.
    pub(crate) fn n_tries(&self) -> usize {
        match self {
            Self::Endpoints { set, .. } if set.len() == 1 => 3,
            // With one in four, more than half of so many is six deviations away.
            Self::Endpoints { set, .. } if set.values().any(|weight| *weight > 1) => 160,
            Self::Endpoints { set, .. } => 8 * set.len(),
            Self::Drop | Self::Reject | Self::NotOurs => 2,
        }
    }
}

impl Scene<'_> {
    /// Whether everything about one packet has been told that will be.
    pub(crate) fn is_decided(&self, told: &Told, id: u16) -> bool {
        let answered = told.answers.contains_key(&id);
        match self.outcome {
            Outcome::Drop => true,
            Outcome::Reject => answered,
            Outcome::NotOurs => told.arrivals.contains_key(&id),
            Outcome::Endpoints { .. } => {
                let arrival = told.arrivals.get(&id);
                arrival.is_some_and(|(_, arrival)| answered || !self.hears(arrival.to))
            }
        }
    }

    /// What is wrong about one packet; nothing, or a sentence.
    pub(crate) fn fault(&self, told: &Told, id: u16) -> Option<String> {
        let arrival = told.arrivals.get(&id);
        let answer = told.answers.get(&id);
        if let Some(Answer::Failed(why)) = answer {
            return Some(format!("was not sent: {why}"));
        }
        if answer == Some(&Answer::Accepted) {
            return Some("was accepted, though nobody listens".to_owned());
        }
        match (self.outcome, arrival) {
            (Outcome::Drop, None) if answer.is_none() => None,
            (Outcome::Drop, None) => Some("was refused".to_owned()),
            (Outcome::Reject, None) if answer.is_some() => None,
            (Outcome::Reject, None) => Some("was not refused".to_owned()),
            (Outcome::Drop | Outcome::Reject, Some((place, arrival))) => {
                Some(format!("arrived at {place}, for {}", stage::shown(arrival.to)))
            }
            (_, None) => Some("arrived nowhere".to_owned()),
            (Outcome::NotOurs, Some((place, arrival))) => {
                if arrival.to != self.to || place != self.place.owner(self.to.ip()) {
                    Some(format!("arrived at {place} for {}", stage::shown(arrival.to)))
                } else {
                    let to = arrival.to.ip();
                    self.wrong_source(arrival.from.ip(), self.place.masquerades(self.from.ip(), to))
                }
            }
            (Outcome::Endpoints { set, masquerade, .. }, Some((place, arrival))) => {
                if !set.contains_key(&arrival.to) || place != self.place.owner(arrival.to.ip()) {
                    return Some(format!("arrived at {place} for {}", stage::shown(arrival.to)));
                }
                let rewritten = match masquerade {
                    Masquerade::No => false,
                    Masquerade::Yes => true,
                    Masquerade::IfItself => arrival.to.ip() == self.from.ip(),
                } || self.place.masquerades(self.from.ip(), arrival.to.ip());
                self.wrong_source(arrival.from.ip(), rewritten).or_else(|| {
                    (self.hears(arrival.to) && answer.is_none())
                        .then(|| format!("reached {}, whose answer got lost", arrival.to))
                })
            }
        }
    }

    fn wrong_source(&self, seen: IpAddr, rewritten: bool) -> Option<String> {
        let keeps = seen == self.from.ip();
        let right = if rewritten {
            self.place.is_masqueraded(seen) || keeps && self.keeps_source
        } else {
            keeps
        };
        (!right).then(|| format!("arrived from {seen}"))
    }

    /// Whether the answer of an endpoint passes node-a, which alone can translate it back.
    fn hears(&self, endpoint: SocketAddr) -> bool {
        let Outcome::Endpoints { masquerade, .. } = self.outcome else { return false };
        if !self.is_answered {
            return false;
        }
        let is_here = |address| matches!(self.place.owner(address), "node-a" | "a1" | "a2" | "a3");
        *masquerade == Masquerade::Yes || is_here(endpoint.ip()) || is_here(self.from.ip())
    }
}
