//! One format for addresses of both families.

/// An IPv6 address as four words in network byte order; an IPv4 address is mapped
/// (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2), so that an `AF_INET6` socket that talks IPv4 finds the
/// same Service as an `AF_INET` one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr {
    /// The words as they stand in `bpf_sock_addr.user_ip6`.
    pub words: [u32; 4],
}

/// The third word of a mapped IPv4 address, as it stands in memory.
pub const MAPPED: u32 = 0xffff_u32.to_be();

impl Addr {
    /// How many bits it has.
    pub const BITS: u32 = 128;
    /// The unspecified address of IPv4, `::ffff:0.0.0.0`: at it stand the node ports of IPv4.
    pub const ANY_V4: Self = Self::from_v4(0);
    /// The unspecified address of IPv6, `::`: at it stand the node ports of IPv6.
    pub const ANY_V6: Self = Self { words: [0; 4] };

    /// A mapped IPv4 address from the word that `bpf_sock_addr.user_ip4` holds.
    #[inline(always)]
    pub const fn from_v4(word: u32) -> Self {
        Self { words: [0, 0, MAPPED, word] }
    }

    /// An IPv6 address from its bytes.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self {
            words: [
                u32::from_ne_bytes([a, b, c, d]),
                u32::from_ne_bytes([e, f, g, h]),
                u32::from_ne_bytes([i, j, k, l]),
                u32::from_ne_bytes([m, n, o, p]),
            ],
        }
    }

    /// Its sixteen bytes.
    #[inline(always)]
    pub const fn bytes(&self) -> [u8; 16] {
        let [w, x, y, z] = self.words;
        let ([a, b, c, d], [e, f, g, h]) = (w.to_ne_bytes(), x.to_ne_bytes());
        let ([i, j, k, l], [m, n, o, p]) = (y.to_ne_bytes(), z.to_ne_bytes());
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// The lower eight bytes as one number, for comparisons.
    #[inline(always)]
    pub const fn low(&self) -> u64 {
        let [_, _, c, d] = self.words;
        c as u64 | (d as u64) << 32
    }

    /// The upper eight bytes as one number, for comparisons.
    #[inline(always)]
    pub const fn high(&self) -> u64 {
        let [a, b, _, _] = self.words;
        a as u64 | (b as u64) << 32
    }

    /// An address of its two halves ([`Addr::high`], [`Addr::low`]).
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the words of a half")]
    pub const fn from_halves(high: u64, low: u64) -> Self {
        Self { words: [high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32] }
    }

    /// The unspecified address of this one's family.
    #[inline(always)]
    #[must_use]
    pub const fn any(&self) -> Self {
        if self.is_v4() { Self::ANY_V4 } else { Self::ANY_V6 }
    }

    /// A client that is known by its network namespace, before it has an address: in `ff00::/8`,
    /// which is nobody's source.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the cookie")]
    pub const fn of_namespace(cookie: u64) -> Self {
        Self { words: [0xff00_0000_u32.to_be(), 0, cookie as u32, (cookie >> 32) as u32] }
    }

    /// Whether it is a mapped IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.words;
        a == 0 && b == 0 && c == MAPPED
    }

    /// Whether only the machine itself may use it: 127.0.0.0/8 or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.words;
        if self.is_v4() {
            d.to_ne_bytes()[0] == 127
        } else {
            a == 0 && b == 0 && c == 0 && d == 1u32.to_be()
        }
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(address: core::net::IpAddr) -> Self {
        let octets = match address {
            core::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            core::net::IpAddr::V6(v6) => v6.octets(),
        };
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self {
            words: [
                u32::from_ne_bytes([a, b, c, d]),
                u32::from_ne_bytes([e, f, g, h]),
                u32::from_ne_bytes([i, j, k, l]),
                u32::from_ne_bytes([m, n, o, p]),
            ],
        }
    }
}

impl From<Addr> for core::net::IpAddr {
    fn from(address: Addr) -> Self {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(address.words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        core::net::Ipv6Addr::from(octets).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::Addr;

    #[test]
    fn addresses_of_both_families_survive_the_round_trip() {
        for text in ["10.96.0.10", "0.0.0.0", "255.255.255.255", "::1", "fd00::a:1", "::"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(address)), address);
        }
    }

    #[test]
    fn only_loopback_addresses_are_loopback() {
        for (text, expected) in
            [("127.0.0.1", true), ("127.9.9.9", true), ("::1", true), ("10.0.0.127", false)]
        {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(Addr::from(address).is_loopback(), expected, "{text}");
        }
        assert!(!Addr::ANY_V6.is_loopback() && !Addr::from_v4(1).is_loopback());
    }

    #[test]
    fn a_namespace_is_no_address_of_a_client() {
        let namespace = IpAddr::from(Addr::of_namespace(u64::MAX));
        assert!(namespace.is_multicast());
        assert_ne!(Addr::of_namespace(1), Addr::of_namespace(1 << 32));
    }

    #[test]
    fn an_ipv4_word_equals_the_mapped_address() {
        let address: IpAddr = "10.96.0.10".parse().unwrap();
        assert_eq!(Addr::from_v4(u32::from_ne_bytes([10, 96, 0, 10])), Addr::from(address));
    }
}
