//! What a client addresses, and where its endpoints are found.

use crate::addr::Addr;

/// Key of `FRONTENDS`: address, port and protocol.
///
/// ```text
///  0        16      18  19  20
///  │ addr   │ port  │ p │ 0 │
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// The VIP; the unspecified address of the family for a node port.
    pub addr: Addr,
    /// The port, network byte order.
    pub port: u16,
    /// The IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

impl FrontendKey {
    /// A key; `port` in network byte order.
    #[inline(always)]
    pub const fn new(addr: Addr, port: u16, protocol: u8) -> Self {
        Self { addr, port, protocol, pad: 0 }
    }

    /// The key of the node port of that number, in the family of an address of the node.
    #[inline(always)]
    pub const fn node_port(addr: &Addr, port: u16, protocol: u8) -> Self {
        Self::new(addr.any(), port, protocol)
    }

    /// The check word that belongs to this key in that slot. A hash map's element may be reused for
    /// another key while a program still looks at it (measured: a few reads in a million under
    /// constant change); the check tells.
    #[inline(always)]
    pub const fn check(&self, slot: u32) -> u32 {
        let [a, b, c, d] = self.addr.words;
        let mut hash = mix(0x9e37_79b9_7f4a_7c15, a as u64 | (b as u64) << 32);
        hash = mix(hash, c as u64 | (d as u64) << 32);
        hash = mix(hash, self.port as u64 | (self.protocol as u64) << 16 | (slot as u64) << 32);
        (hash >> 32) as u32
    }
}

#[inline(always)]
pub(crate) const fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 32)
}

/// Value of `FRONTENDS`: the slot in `SLOTS`, in the low half, and [`FrontendKey::check`] in the
/// high half. One word, so that it is read whole.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendValue(pub u64);

impl FrontendValue {
    /// The value that leads this key to that slot.
    #[inline(always)]
    pub const fn new(key: &FrontendKey, slot: u32) -> Self {
        Self(slot as u64 | (key.check(slot) as u64) << 32)
    }

    /// The slot, if the value belongs to this key.
    #[inline(always)]
    pub const fn slot(self, key: &FrontendKey) -> Option<u32> {
        #[expect(clippy::cast_possible_truncation, reason = "the low half")]
        let slot = self.0 as u32;
        if self.0 == Self::new(key, slot).0 { Some(slot) } else { None }
    }
}

const _: () = assert!(size_of::<FrontendKey>() == 20);
const _: () = assert!(size_of::<FrontendValue>() == 8);

#[cfg(test)]
mod tests {
    use super::{FrontendKey, FrontendValue};
    use crate::addr::Addr;

    fn key(last: u8, port: u16) -> FrontendKey {
        let address = core::net::IpAddr::from([10, 96, 0, last]);
        FrontendKey::new(Addr::from(address), port.to_be(), 6)
    }

    #[test]
    fn a_value_belongs_to_its_key_only() {
        let value = FrontendValue::new(&key(10, 53), 7);
        assert_eq!(value.slot(&key(10, 53)), Some(7));
        assert_eq!(value.slot(&key(10, 54)), None);
        assert_eq!(value.slot(&key(11, 53)), None);
    }

    #[test]
    fn a_torn_value_belongs_to_no_key() {
        let old = FrontendValue::new(&key(10, 53), 7);
        let new = FrontendValue::new(&key(10, 53), 8);
        let torn = FrontendValue(old.0 & 0xffff_ffff | new.0 & !0xffff_ffff);
        assert_eq!(torn.slot(&key(10, 53)), None);
    }
}
