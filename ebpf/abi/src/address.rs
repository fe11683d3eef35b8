//! What is known of single addresses, and of ranges.

use crate::addr::Addr;
use crate::frontend::mix;

/// Value of `ADDRESSES`, by [`Addr`]: flags in the low half, and in the high half a check over
/// address and flags, since a hash map's element may be reused while a program looks at it. One
/// word, so that it is read whole.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressValue(pub u64);

impl AddressValue {
    /// A Service owns it, and ports that no frontend has are rejected.
    pub const REJECT: u32 = 1;
    /// A Service owns it, and ports that no frontend has are left alone, node ports included.
    pub const LEAVE: u32 = 1 << 1;
    /// It is this node's.
    pub const LOCAL: u32 = 1 << 2;
    /// It is this node's and serves node ports.
    pub const NODE_PORTS: u32 = 1 << 3;
    /// The value of an address.
    #[inline(always)]
    pub const fn new(addr: &Addr, flags: u32) -> Self {
        let [a, b, c, d] = addr.words;
        let mut hash = mix(0x9e37_79b9_7f4a_7c15, a as u64 | (b as u64) << 32);
        hash = mix(hash, c as u64 | (d as u64) << 32);
        hash = mix(hash, flags as u64);
        Self(flags as u64 | (hash >> 32) << 32)
    }

    /// The flags, if the value belongs to this address.
    #[inline(always)]
    pub const fn flags(self, addr: &Addr) -> Option<u32> {
        #[expect(clippy::cast_possible_truncation, reason = "the low half")]
        let flags = self.0 as u32;
        if self.0 == Self::new(addr, flags).0 { Some(flags) } else { None }
    }
}

/// Value of `PREFIXES`, a trie of addresses (IPv4 ones mapped, so their prefixes are 96 bits
/// longer): what holds for an address by the ranges that it is in. Each entry bears the flags of the
/// wider ones around it, so one look tells all.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixFlags(pub u32);

impl PrefixFlags {
    /// Pods of this node.
    pub const POD: u32 = 1;
    /// Service addresses: what is not allocated is dropped.
    pub const SERVICE: u32 = 1 << 1;
    /// Loopback addresses that serve node ports.
    pub const NODE_PORTS: u32 = 1 << 2;
}

/// Key of `RANGES`, a trie: a slot, and an address that may use it. The first 32 bits of a prefix
/// are the slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RangeKey {
    /// The slot.
    pub slot: u32,
    /// The source.
    pub addr: Addr,
}

impl RangeKey {
    /// How many bits there are to match when the address is whole.
    pub const BITS: u32 = 32 + Addr::BITS;
}

const _: () = assert!(size_of::<AddressValue>() == 8);
const _: () = assert!(size_of::<RangeKey>() == 20);

#[cfg(test)]
mod tests {
    use super::AddressValue;
    use crate::addr::Addr;

    #[test]
    fn a_value_belongs_to_its_address_only() {
        let (one, other) = (Addr::from_v4(1), Addr::from_v4(2));
        for flags in [0, AddressValue::LOCAL, AddressValue::REJECT | AddressValue::LOCAL] {
            let value = AddressValue::new(&one, flags);
            assert_eq!(value.flags(&one), Some(flags));
            assert_eq!(value.flags(&other), None);
            assert_eq!(AddressValue(value.0 ^ 1).flags(&one), None, "half another");
        }
    }
}
