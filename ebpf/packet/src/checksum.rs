//! Incremental checksums (RFC 1624) and SCTP's `CRC32c`. `[pure]`

use abi::addr::Addr;

/// The ones' complement difference that replacing one address by another makes.
#[inline(always)]
pub fn address_difference(old: &Addr, new: &Addr) -> u32 {
    if old.is_v4() {
        let ([_, _, _, old], [_, _, _, new]) = (old.words, new.words);
        return word_difference(old, new);
    }
    let [a, b, c, d] = old.words;
    let [e, f, g, h] = new.words;
    fold64(wide(!a) + wide(!b) + wide(!c) + wide(!d) + wide(e) + wide(f) + wide(g) + wide(h))
}

/// The difference that replacing one word, as it stands in memory, makes.
#[inline(always)]
pub fn word_difference(old: u32, new: u32) -> u32 {
    fold64(wide(!old) + wide(new))
}

/// The difference that replacing one port, as it stands in memory, makes.
#[inline(always)]
pub fn port_difference(old: u16, new: u16) -> u32 {
    wide_to_32(wide(u32::from(!old)) + wide(u32::from(new)))
}

/// Both differences in one.
#[inline(always)]
pub fn both(a: u32, b: u32) -> u32 {
    fold64(wide(a) + wide(b))
}

/// The ones' complement sum of an address.
#[inline(always)]
pub fn address_sum(address: &Addr) -> u32 {
    let [a, b, c, d] = address.words;
    if address.is_v4() { d } else { fold64(wide(a) + wide(b) + wide(c) + wide(d)) }
}

/// A checksum field after a change by that difference.
#[inline(always)]
pub fn mended(check: u16, difference: u32) -> u16 {
    finish(both(u32::from(!check), difference))
}

/// The checksum field of a ones' complement sum.
#[inline(always)]
pub fn finish(sum: u32) -> u16 {
    !fold16(sum)
}

/// A sum in sixteen bits.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "folded twice")]
pub const fn fold16(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// The sum of the header that a transport checksum covers and no packet has, of the addresses' sum and the
/// length of what follows them: what stands in the checksum's place while a device has yet to complete it.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "folded until it fits")]
pub const fn pseudo(addresses: u64, protocol: u8, len: u32) -> u16 {
    let sum = addresses + wide((protocol as u32).to_be()) + wide(len.to_be());
    let once = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let twice = (once & 0xffff) + (once >> 16);
    ((twice & 0xffff) + (twice >> 16)) as u16
}

/// The sum of two addresses, for [`pseudo`].
#[inline(always)]
pub fn addresses_sum(src: &Addr, dst: &Addr) -> u64 {
    wide(address_sum(src)) + wide(address_sum(dst))
}

#[inline(always)]
const fn wide(word: u32) -> u64 {
    word as u64
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "folded twice")]
const fn fold64(sum: u64) -> u32 {
    let once = (sum & 0xffff_ffff) + (sum >> 32);
    ((once & 0xffff_ffff) + (once >> 32)) as u32
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the sum of two numbers of sixteen bits")]
const fn wide_to_32(sum: u64) -> u32 {
    sum as u32
}

/// The `CRC32c`'s polynomial (RFC 9260 appendix A), lowest bit first.
const CASTAGNOLI: u32 = 0x82f6_3b78;

/// How an SCTP checksum changes when the ports change, in a packet of `len` bytes from its ports on.
///
/// The CRC is linear: the change of the result is the CRC of the change, which is four bytes and
/// then zeros. Each byte multiplies by x⁸, so all of them are one power, whose factors for 1, 2, 4 …
/// bytes stand in a table. No byte of the packet is read.
#[inline(always)]
pub fn sctp_difference(old_ports: u32, new_ports: u32, len: u32) -> u32 {
    let mut crc = u32::from_le(old_ports ^ new_ports);
    for (bit, power) in POWERS.iter().enumerate() {
        if len >> bit & 1 == 1 {
            let mut product = 0;
            for (nibble, products) in power.iter().enumerate() {
                let value = (crc >> (4 * nibble) & 0xf) as usize;
                product ^= products.get(value).copied().unwrap_or(0);
            }
            crc = product;
        }
    }
    crc
}

/// For 1, 2, 4 … bytes and each nibble of a polynomial: the product of that nibble and the power of
/// x that so many bytes multiply by.
static POWERS: [[[u32; 16]; 8]; 16] = powers();

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const fn powers() -> [[[u32; 16]; 8]; 16] {
    // x⁸ stands with bit 31 - 8, since bit 31 is x⁰.
    let mut power = 1 << 23;
    let mut powers = [[[0; 16]; 8]; 16];
    let mut i = 0;
    while i < 16 {
        let mut nibble = 0;
        while nibble < 8 {
            let mut value = 0;
            while value < 16 {
                powers[i][nibble][value as usize] = times(value << (4 * nibble), power);
                value += 1;
            }
            nibble += 1;
        }
        power = times(power, power);
        i += 1;
    }
    powers
}

/// The product of two polynomials modulo the CRC's.
const fn times(mut a: u32, b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        // x⁰ is the highest bit.
        if b >> (31 - bit) & 1 == 1 {
            product ^= a;
        }
        a = times_x(a);
        bit += 1;
    }
    product
}

const fn times_x(a: u32) -> u32 {
    if a & 1 == 1 { a >> 1 ^ CASTAGNOLI } else { a >> 1 }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use core::net::IpAddr;

    use super::{
        addresses_sum, fold16, mended, port_difference, pseudo, sctp_difference, word_difference,
    };
    use crate::parse::{TCP, UDP};

    fn sum(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|pair| {
            u32::from(u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
        });
        !fold16(words.sum())
    }

    fn crc32c(bytes: &[u8]) -> u32 {
        let mut crc = !0u32;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = super::times_x(crc);
            }
        }
        !crc
    }

    #[test]
    fn the_checksum_of_a_change_is_the_change_of_the_checksum() {
        let mut bytes = [0x45u8, 0, 0, 40, 1, 2, 0x40, 0, 64, 6, 10, 0, 0, 1, 10, 96, 0, 10];
        let before = sum(&bytes);
        let old = u32::from_ne_bytes([bytes[14], bytes[15], bytes[16], bytes[17]]);
        bytes[14..18].copy_from_slice(&[10, 244, 255, 255]);
        let new = u32::from_ne_bytes([10, 244, 255, 255]);
        assert_eq!(mended(before, word_difference(old, new)), sum(&bytes));

        let before = sum(&bytes);
        let old = u16::from_ne_bytes([bytes[2], bytes[3]]);
        bytes[2..4].copy_from_slice(&8080u16.to_be_bytes());
        let new = 8080u16.to_be();
        assert_eq!(mended(before, port_difference(old, new)), sum(&bytes));
    }

    #[test]
    fn a_device_that_completes_a_checksum_begins_with_the_sum_of_the_pseudo_header() {
        for (src, dst) in [
            ("10.0.0.1", "10.96.0.10"),
            ("192.0.2.1", "255.255.255.255"),
            ("fd00::ffff:1", "fd01:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            let [src, dst] = [src, dst].map(|text| text.parse::<IpAddr>().unwrap());
            let addresses = addresses_sum(&src.into(), &dst.into());
            let mut header = Vec::new();
            for address in [src, dst] {
                match address {
                    IpAddr::V4(address) => header.extend(address.octets()),
                    IpAddr::V6(address) => header.extend(address.octets()),
                }
            }
            for protocol in [TCP, UDP] {
                for len in (8..2048_u32).chain([0xfffb, 0xffff, 0x1_00fb]) {
                    let rest = [u32::from(protocol).to_be_bytes(), len.to_be_bytes()].concat();
                    let whole = !sum(&[header.as_slice(), &rest].concat());
                    assert_eq!(pseudo(addresses, protocol, len), whole, "{src} {dst} {len}");
                }
            }
        }
    }

    #[test]
    fn the_crc_is_known() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn sctp_ports_change_without_a_look_at_the_packet() {
        for len in [12usize, 13, 16, 100, 1472, 9000, 65_000] {
            let mut bytes: Vec<u8> = (0..len).map(|i| (i * 7 + 3).to_le_bytes()[0]).collect();
            let before = crc32c(&bytes);
            let old = u32::from_ne_bytes(bytes[..4].try_into().unwrap());
            bytes[..4].copy_from_slice(&[0x12, 0x34, 0xab, 0xcd]);
            let new = u32::from_ne_bytes(bytes[..4].try_into().unwrap());
            let n = u32::try_from(len).unwrap();
            assert_eq!(before ^ sctp_difference(old, new, n), crc32c(&bytes), "{len} bytes");
        }
    }
}
