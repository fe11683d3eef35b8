//! From a question and a view to an answer: which code, and which records in which section.
//!
//! An [`Answer`] borrows from the view and lists its records on demand, so that the common ones
//! are written to the wire without being held anywhere between.

mod find;
pub mod record;
mod srv;

use crate::config::Zone;
use crate::message::{Rcode, RecordType};
use crate::name::{LowerName, WireName};
use crate::query::Asked;
use crate::zone::{Origin, ZoneView};
use find::Found;
pub use find::{Body, Port};
use record::{Data, NameRef, Record};
pub use srv::Srv;

/// What is said to one question.
#[derive(Clone, Debug)]
pub struct Answer<'v> {
    /// The response code.
    pub rcode: Rcode,
    /// The zone that it speaks for; `None` speaks for nobody.
    pub zone: Option<&'v Zone>,
    /// The aliases on the way from the name asked for, in their order.
    pub aliases: Aliases<'v>,
    /// What was found at the end of them.
    pub body: Body<'v>,
    /// Why it is what it is.
    pub reason: Reason,
}

/// Why an answer is what it is; for people, as an extended error (RFC 8914) and in `fairlead dig`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// There are records of that type.
    Found,
    /// The name exists, records of that type do not.
    NoData,
    /// The name does not exist.
    NoName,
    /// The name is in no zone of ours, or fell through.
    Outside,
    /// An alias leads to a name that is not ours to resolve.
    AliasOutside,
    /// Aliases lead back to themselves, or on and on.
    AliasLoop,
    /// No full list of the cluster has been seen yet.
    NotReady,
    /// The address is not routed on this node yet.
    NotRouted,
    /// Zone transfers are not offered.
    Transfer,
    /// A class other than IN.
    Class,
    /// The client may not ask here.
    Prohibited,
}

impl Reason {
    /// The extended error (RFC 8914 §4) and a text for it, where the code alone is not enough.
    pub const fn extended_error(self) -> Option<(u16, &'static str)> {
        match self {
            Self::Found | Self::NoData | Self::NoName => None,
            Self::Outside => {
                Some((20, "not a name of this cluster, and nothing to ask is configured"))
            }
            Self::AliasOutside => {
                Some((22, "the alias leads out of this cluster, and nothing to ask is configured"))
            }
            Self::AliasLoop => Some((0, "aliases lead in a circle, or too far")),
            Self::NotReady => Some((14, "the cluster has not been listed yet")),
            Self::NotRouted => Some((14, "the address is not routed on this node yet")),
            Self::Transfer => Some((21, "zone transfers are not offered")),
            Self::Class => Some((21, "only class IN is served")),
            Self::Prohibited => Some((18, "this server answers its own node only")),
        }
    }
}

/// At most this many aliases are followed, as upstream does.
const MAX_ALIASES: usize = 10;

/// Aliases in the order in which they are followed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Aliases<'v> {
    targets: [Option<&'v WireName>; MAX_ALIASES],
    n: usize,
}

impl<'v> Aliases<'v> {
    /// Where each leads.
    pub fn targets(&self) -> impl Iterator<Item = &'v WireName> + use<'v> {
        self.targets.into_iter().flatten()
    }

    /// `None` when this leads in a circle, or too far.
    fn follow(&mut self, target: &'v WireName) -> Option<()> {
        if self.targets().any(|before| before.lower() == target.lower()) {
            return None;
        }
        *self.targets.get_mut(self.n)? = Some(target);
        self.n += 1;
        Some(())
    }

    fn last(&self) -> Option<&'v WireName> {
        self.targets.get(self.n.checked_sub(1)?).copied().flatten()
    }
}

impl<'v> Answer<'v> {
    /// Answers for a name and a type.
    pub fn of(view: &'v ZoneView, name: &LowerName, rtype: RecordType) -> Self {
        if matches!(rtype, RecordType::AXFR | RecordType::IXFR) {
            return Self::refused(Reason::Transfer);
        }
        let Some(asked) = Asked::parse(view.options(), name) else {
            return Self::refused(Reason::Outside);
        };
        if view.origin() == Origin::Nothing {
            return Self { rcode: Rcode::ServFail, ..Self::refused(Reason::NotReady) };
        }
        match Found::by(view, &asked, rtype) {
            Found::Here(body) => Self::found(asked.zone, Aliases::default(), body),
            Found::Absent => Self::absent(view, asked.zone, name),
            Found::Held => Self::failed(asked.zone, Aliases::default(), Reason::NotRouted),
            Found::Alias(target) => Self::aliased(view, asked.zone, target, rtype),
        }
    }

    /// Says that this is not answered here.
    pub const fn refused(reason: Reason) -> Self {
        Self {
            rcode: Rcode::Refused,
            zone: None,
            aliases: Aliases { targets: [None; MAX_ALIASES], n: 0 },
            body: Body::Nothing,
            reason,
        }
    }

    fn found(zone: &'v Zone, aliases: Aliases<'v>, body: Body<'v>) -> Self {
        let reason = match body {
            Body::Nothing => Reason::NoData,
            _ => Reason::Found,
        };
        Self { rcode: Rcode::NoError, zone: Some(zone), aliases, body, reason }
    }

    const fn failed(zone: &'v Zone, aliases: Aliases<'v>, reason: Reason) -> Self {
        Self { rcode: Rcode::ServFail, zone: Some(zone), aliases, body: Body::Nothing, reason }
    }

    fn absent(view: &'v ZoneView, zone: &'v Zone, name: &LowerName) -> Self {
        let falls = |through: &Zone| name.labels_before(through.lower.wire()).is_some();
        if view.options().fallthrough.iter().any(falls) {
            return Self::refused(Reason::Outside);
        }
        Self {
            rcode: Rcode::NxDomain,
            zone: Some(zone),
            aliases: Aliases::default(),
            body: Body::Nothing,
            reason: Reason::NoName,
        }
    }

    /// Follows an alias to where it leads. The code is that of the last name (RFC 6604 §3).
    fn aliased(
        view: &'v ZoneView,
        zone: &'v Zone,
        target: &'v WireName,
        rtype: RecordType,
    ) -> Self {
        let mut aliases = Aliases::default();
        let failed = |aliases, reason| Self::failed(zone, aliases, reason);
        let mut target = target;
        loop {
            if aliases.follow(target).is_none() {
                return failed(aliases, Reason::AliasLoop);
            }
            if rtype == RecordType::CNAME {
                return Self::found(zone, aliases, Body::Alias);
            }
            let Ok(name) = LowerName::parse(target.wire()) else {
                return failed(aliases, Reason::AliasOutside);
            };
            let Some(asked) = Asked::parse(view.options(), &name) else {
                return failed(aliases, Reason::AliasOutside);
            };
            match Found::by(view, &asked, rtype) {
                Found::Here(body) => return Self::found(asked.zone, aliases, body),
                Found::Alias(next) => target = next,
                Found::Held => return failed(aliases, Reason::NotRouted),
                Found::Absent => {
                    return match Self::absent(view, asked.zone, &name) {
                        outside @ Self { zone: None, .. } => {
                            failed(aliases, outside.alias_reason())
                        }
                        absent => Self { aliases, ..absent },
                    };
                }
            }
        }
    }

    const fn alias_reason(&self) -> Reason {
        match self.reason {
            Reason::Outside => Reason::AliasOutside,
            other => other,
        }
    }

    /// The answer section, beginning with record number `turn` where their order means nothing.
    /// Visits until told to stop.
    pub fn answers(
        &self,
        view: &'v ZoneView,
        turn: usize,
        visit: &mut impl FnMut(Record<'v>) -> Go,
    ) -> Go {
        let ttl = ttl(view);
        let mut owner = NameRef::Asked;
        for target in self.aliases.targets() {
            visit(Record { owner, ttl, data: Data::Cname(NameRef::Wire(target)) })?;
            owner = NameRef::Wire(target);
        }
        match self.zone {
            Some(zone) => self.body.records(view, zone, (owner, turn), visit),
            None => Go::Continue(()),
        }
    }

    /// The authority section: the SOA, where there is nothing (RFC 2308 §2).
    pub fn authorities(&self, view: &'v ZoneView, visit: &mut impl FnMut(Record<'v>) -> Go) -> Go {
        match (self.reason, self.zone) {
            (Reason::NoData | Reason::NoName, Some(zone)) => visit(soa(view, zone)),
            _ => Go::Continue(()),
        }
    }

    /// The additional section: addresses of the names in the answer.
    pub fn additionals(
        &self,
        view: &'v ZoneView,
        turn: usize,
        visit: &mut impl FnMut(Record<'v>) -> Go,
    ) -> Go {
        match (&self.body, self.zone) {
            (Body::Srv(srv), Some(zone)) => srv.additionals(view, zone, turn, visit),
            (Body::NameServers, Some(zone)) => find::glue(view, zone, visit),
            _ => Go::Continue(()),
        }
    }

    /// Whether this is the last word about the name asked for.
    pub fn is_authoritative(&self) -> bool {
        self.zone.is_some() && self.rcode != Rcode::ServFail
    }

    /// The name at the end of the aliases; `None` is the name asked for.
    pub fn last_name(&self) -> Option<&'v WireName> {
        self.aliases.last()
    }
}

/// Whether to visit on.
pub type Go = std::ops::ControlFlow<()>;

/// What clients are told to keep an answer for. What was saved by an earlier process may have
/// changed since.
fn ttl(view: &ZoneView) -> u32 {
    match view.origin() {
        Origin::Saved => view.options().ttl.min(5),
        Origin::Nothing | Origin::Watch => view.options().ttl,
    }
}

/// The start of a zone of authority; its last number is how long a client may believe in absence.
fn soa<'v>(view: &'v ZoneView, zone: &'v Zone) -> Record<'v> {
    let minimum = ttl(view);
    Record {
        owner: NameRef::Zone(zone),
        ttl: minimum.min(300),
        data: Data::Soa { zone, serial: view.serial(), minimum },
    }
}
