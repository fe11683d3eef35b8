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
    /// A mapped IPv4 address from the word that `bpf_sock_addr.user_ip4` holds.
    #[inline(always)]
    pub const fn from_v4(word: u32) -> Self {
        Self { words: [0, 0, MAPPED, word] }
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
    fn an_ipv4_word_equals_the_mapped_address() {
        let address: IpAddr = "10.96.0.10".parse().unwrap();
        assert_eq!(Addr::from_v4(u32::from_ne_bytes([10, 96, 0, 10])), Addr::from(address));
    }
}
