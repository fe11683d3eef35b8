//! What becomes of new connections to one frontend.

use crate::endpoint::Head;

/// Value of `SLOTS`: one cache line for one frontend.
///
/// ```text
///  0         8          16            24            32      40        64
///  │ pod     │ node     │ outside     │ serving     │ rules │ 0       │
/// ```
///
/// Each head is stored whole, so whoever reads one sees what was so before a change or after it.
/// Rules do not change in place, except for the time of the affinity: a frontend with other rules
/// gets another slot. A slot that is in no use is all zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Where connections go, by [`Source`]; the last is the set of all that serve.
    pub heads: [Head; N_HEADS],
    /// What else holds.
    pub rules: Rules,
    /// Zero.
    pub pad: [u64; 3],
}

/// How many heads a slot has.
pub const N_HEADS: usize = 4;
/// Index of the head whose set has every endpoint that is serving, whatever the policies: a UDP flow
/// to any other endpoint is stale.
pub const SERVING: usize = 3;

/// Where a connection comes from; an index into [`Slot::heads`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A pod of this node.
    Pod = 0,
    /// The node itself.
    Node = 1,
    /// Anything else.
    Outside = 2,
}

/// Which field of a Service a frontend comes from.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A cluster IP.
    ClusterIp = 0,
    /// A load balancer's VIP.
    LoadBalancer = 1,
    /// An external IP.
    ExternalIp = 2,
    /// A node port.
    NodePort = 3,
}

/// What holds for a frontend whatever its sets.
///
/// ```text
///  63   54 53     52       51 50 49   48       32 31           0
///  │ 0   │ │ ends │ │ ranges │ │ kind │ │ affinity │ │ service   │
/// ```
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules(pub u64);

const AFFINITY_SHIFT: u32 = 32;
const AFFINITY_BITS: u32 = 17;
const KIND_SHIFT: u32 = AFFINITY_SHIFT + AFFINITY_BITS;
const HAS_RANGES: u64 = 1 << (KIND_SHIFT + 2);
const ENDS_CONNECTIONS: u64 = 1 << (KIND_SHIFT + 3);

impl Rules {
    /// The longest affinity in seconds; the API server allows a day.
    pub const MAX_AFFINITY: u32 = (1 << AFFINITY_BITS) - 1;

    /// Rules; `affinity` in seconds, zero for none.
    #[inline(always)]
    pub const fn new(service: u32, affinity: u32, kind: Kind, has_ranges: bool) -> Self {
        let affinity = if affinity > Self::MAX_AFFINITY { Self::MAX_AFFINITY } else { affinity };
        Self(
            service as u64
                | (affinity as u64) << AFFINITY_SHIFT
                | (kind as u64) << KIND_SHIFT
                | if has_ranges { HAS_RANGES } else { 0 },
        )
    }

    /// The same, and connections of sockets are noted, so that they can be ended, or they are not.
    #[inline(always)]
    #[must_use]
    pub const fn with_ends(self, ends: bool) -> Self {
        Self(self.0 & !ENDS_CONNECTIONS | if ends { ENDS_CONNECTIONS } else { 0 })
    }

    /// Whether connections of sockets are noted, so that they can be ended.
    #[inline(always)]
    pub const fn ends_connections(self) -> bool {
        self.0 & ENDS_CONNECTIONS != 0
    }

    /// The Service port, of one family: affinity and counts are kept by it. Never zero in a slot
    /// that is in use.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low half")]
    pub const fn service(self) -> u32 {
        self.0 as u32
    }

    /// `sessionAffinity: ClientIP`: for how many seconds a client is remembered; zero for none.
    #[inline(always)]
    pub const fn affinity(self) -> u32 {
        (self.0 >> AFFINITY_SHIFT) as u32 & Self::MAX_AFFINITY
    }

    /// Which field of a Service the frontend comes from.
    #[inline(always)]
    pub const fn kind(self) -> Kind {
        match self.0 >> KIND_SHIFT & 3 {
            0 => Kind::ClusterIp,
            1 => Kind::LoadBalancer,
            2 => Kind::ExternalIp,
            _ => Kind::NodePort,
        }
    }

    /// Whether only sources in this slot's `RANGES` may use it.
    #[inline(always)]
    pub const fn has_ranges(self) -> bool {
        self.0 & HAS_RANGES != 0
    }
}

const _: () = assert!(size_of::<Slot>() == 64);
const _: () = assert!(core::mem::offset_of!(Slot, rules) == N_HEADS * 8);

#[cfg(test)]
mod tests {
    use super::{Kind, Rules};

    #[test]
    fn rules_keep_their_parts() {
        for kind in [Kind::ClusterIp, Kind::LoadBalancer, Kind::ExternalIp, Kind::NodePort] {
            for (service, affinity) in [(1, 0), (u32::MAX, 86_400), (7, Rules::MAX_AFFINITY)] {
                for ranges in [false, true] {
                    let rules = Rules::new(service, affinity, kind, ranges);
                    assert_eq!((rules.service(), rules.affinity()), (service, affinity));
                    assert_eq!((rules.kind(), rules.has_ranges()), (kind, ranges));
                    let ends = rules.with_ends(true);
                    assert!(ends.ends_connections() && !rules.ends_connections());
                    assert_eq!(ends.with_ends(false), rules);
                }
            }
        }
    }

    #[test]
    fn an_affinity_that_is_too_long_is_the_longest() {
        let rules = Rules::new(1, u32::MAX, Kind::ClusterIp, false);
        assert_eq!(rules.affinity(), Rules::MAX_AFFINITY);
        assert!(!rules.has_ranges());
    }
}
