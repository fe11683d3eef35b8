//! Endpoints and the sets that they form.

use crate::addr::Addr;

/// Value of `ENDPOINTS`.
///
/// ```text
///  0        16      18      20           24   28      32
///  │ addr   │ port  │ 0     │ generation │ id │ flags │
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub addr: Addr,
    /// The port, network byte order.
    pub port: u16,
    /// Zero.
    pub pad: u16,
    /// The generation of its set; zero while the entry is being written or belongs to no set.
    pub generation: u32,
    /// Index into `ENDPOINT_COUNTS`, the same as long as the Service port has this endpoint; zero
    /// counts nowhere.
    pub id: u32,
    /// [`Endpoint::LOCAL`].
    pub flags: u32,
}

impl Endpoint {
    /// It is on this node.
    pub const LOCAL: u32 = 1;
}

/// Where new connections of one kind of source go, as one word, whose store is the publication.
///
/// ```text
///  63          44 43        26  25    24   23          0
///  │ generation │ │ length   │ │ m │ │ l │ │ base      │
/// ```
///
/// `m`: the source is rewritten ([`Head::masquerade`]); `l`: an endpoint is on this node
/// ([`Head::local`]). A set without endpoints is [`Head::REJECT`] or [`Head::DROP`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head(pub u64);

const BASE_BITS: u32 = 24;
const LOCAL: u64 = 1 << BASE_BITS;
const MASQUERADE: u64 = 1 << (BASE_BITS + 1);
const LENGTH_SHIFT: u32 = BASE_BITS + 2;
const LENGTH_BITS: u32 = 18;
const GENERATION_BITS: u32 = 20;

impl Head {
    /// There is no endpoint anywhere: connections are refused.
    pub const REJECT: Self = Self::new(0, 0, 0);
    /// There are endpoints, but none that may serve here: connections lead nowhere.
    pub const DROP: Self = Self::new(1, 0, 0);
    /// The largest index of an endpoint, plus one.
    pub const MAX_BASE: u32 = 1 << BASE_BITS;
    /// The most endpoints that one set can have.
    pub const MAX_LENGTH: u32 = (1 << LENGTH_BITS) - 1;
    /// Generations run from 1 to this, then start again.
    pub const MAX_GENERATION: u32 = (1 << GENERATION_BITS) - 1;

    /// A head; every part must be within its bound.
    #[inline(always)]
    pub const fn new(base: u32, length: u32, generation: u32) -> Self {
        Self(
            base as u64
                | (length as u64) << LENGTH_SHIFT
                | (generation as u64) << (LENGTH_SHIFT + LENGTH_BITS),
        )
    }

    /// The same set, for connections whose source is rewritten, or is not unless the endpoint
    /// chosen is the source itself.
    #[inline(always)]
    #[must_use]
    pub const fn with_masquerade(self, masquerade: bool) -> Self {
        Self(self.0 & !MASQUERADE | if masquerade { MASQUERADE } else { 0 })
    }

    /// Whether the source is rewritten, whichever endpoint is chosen.
    #[inline(always)]
    pub const fn masquerade(self) -> bool {
        self.0 & MASQUERADE != 0
    }

    /// The same set, of which an endpoint is on this node, or none.
    #[inline(always)]
    #[must_use]
    pub const fn with_local(self, local: bool) -> Self {
        Self(self.0 & !LOCAL | if local { LOCAL } else { 0 })
    }

    /// Whether one of its endpoints is on this node.
    #[inline(always)]
    pub const fn local(self) -> bool {
        self.0 & LOCAL != 0
    }

    /// Index of the first endpoint.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "24 bits")]
    pub const fn base(self) -> u32 {
        (self.0 & (Self::MAX_BASE as u64 - 1)) as u32
    }

    /// How many endpoints.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "18 bits")]
    pub const fn length(self) -> u32 {
        (self.0 >> LENGTH_SHIFT & Self::MAX_LENGTH as u64) as u32
    }

    /// What each endpoint of the set carries.
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.0 >> (LENGTH_SHIFT + LENGTH_BITS)) as u32
    }
}

/// Picks one of `length` by a random word, uniformly up to 2⁻¹⁴ of a share at the largest set.
#[inline(always)]
pub const fn pick(random: u32, length: u32) -> u32 {
    ((random as u64 * length as u64) >> 32) as u32
}

const _: () = assert!(size_of::<Endpoint>() == 32);
const _: () = assert!(size_of::<Head>() == 8);
const _: () = assert!(LENGTH_SHIFT + LENGTH_BITS + GENERATION_BITS == 64);

#[cfg(test)]
mod tests {
    use super::{Head, pick};

    #[test]
    fn a_head_keeps_its_parts() {
        for (base, length, generation) in [
            (0, 0, 0),
            (1, 2, 3),
            (Head::MAX_BASE - 1, Head::MAX_LENGTH, Head::MAX_GENERATION),
            (0, Head::MAX_LENGTH, 1),
        ] {
            let plain = Head::new(base, length, generation);
            for (masquerade, local) in [(false, false), (true, false), (false, true), (true, true)]
            {
                let head = plain.with_masquerade(masquerade).with_local(local);
                let parts = (head.base(), head.length(), head.generation());
                assert_eq!(parts, (base, length, generation));
                assert_eq!((head.masquerade(), head.local()), (masquerade, local));
                assert_eq!(head.with_masquerade(false).with_local(false), plain);
            }
        }
    }

    #[test]
    fn picks_stay_inside_and_reach_both_ends() {
        for length in [1, 2, 3, 10, Head::MAX_LENGTH] {
            assert_eq!(pick(0, length), 0);
            assert_eq!(pick(u32::MAX, length), length - 1);
        }
    }
}
