//! Frames from their text: `tcp 10.0.0.1:4711 > 10.96.0.10:80 syn len=10`.
#![expect(clippy::indexing_slicing, reason = "a test fails loudly")]

use std::net::{IpAddr, SocketAddr};

use packet::checksum::{both, finish};

use crate::packet::given::{parse, protocol_number};

/// The link-layer header of what arrives.
const LINK: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];

/// A frame.
pub fn frame(text: &str) -> Vec<u8> {
    let mut words = text.split_whitespace().peekable();
    let words: Vec<&str> = words.by_ref().collect();
    let network = network(&words);
    let v6 = network.first().is_some_and(|byte| byte >> 4 == 6);
    let ethertype: [u8; 2] = if has(&words, "arp") {
        [0x08, 0x06]
    } else if v6 {
        [0x86, 0xdd]
    } else {
        [0x08, 0x00]
    };
    let mut bytes: Vec<u8> = LINK.into_iter().chain(ethertype).chain(network).collect();
    if let Some(n) = number(&words, "pad") {
        bytes.extend(std::iter::repeat_n(0xee, n));
    }
    if let Some(n) = number(&words, "cut") {
        bytes.truncate(14 + n);
    }
    for patch in words.iter().filter_map(|word| word.strip_prefix("set=")) {
        let (at, byte) = patch.split_once(':').unwrap_or((patch, "0"));
        // Some packets are shorter than that.
        if let Some(old) = bytes.get_mut(14 + parse::<usize>(at)) {
            *old = parse(byte);
        }
    }
    bytes
}

fn has(words: &[&str], word: &str) -> bool {
    words.contains(&word)
}

fn value<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn number(words: &[&str], name: &str) -> Option<usize> {
    value(words, name).map(parse)
}

/// The network header and what follows it.
fn network(words: &[&str]) -> Vec<u8> {
    let about = words.iter().position(|word| *word == "about");
    let (own, quoted) = match about {
        Some(at) => (&words[..at], Some(&words[at + 1..])),
        None => (words, None),
    };
    let [kind, src, _, dst, more @ ..] = own else { return Vec::new() };
    let (protocol, src, dst, mut body) = if *kind == "icmp" {
        let (src, dst): (IpAddr, IpAddr) = (parse(src), parse(dst));
        let quoted = quoted.map(|quoted| {
            let mut packet = network(quoted);
            let n = number(own, "quote").unwrap_or(packet.len());
            packet.truncate(n);
            packet
        });
        (if src.is_ipv6() { 58 } else { 1 }, src, dst, icmp(more, quoted.unwrap_or_default()))
    } else {
        let (src, dst): (SocketAddr, SocketAddr) = (parse(src), parse(dst));
        let body = transport(kind, src.port(), dst.port(), more);
        (protocol_number(kind), src.ip(), dst.ip(), body)
    };
    checksum(protocol, src, dst, &mut body, more);
    // A fragment has the checksum of its datagram.
    let offset = number(more, "later").map(|_| number(more, "at").unwrap_or(1480));
    if offset.is_some() {
        body.drain(..body.len().min(20));
    }
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => v4(protocol, src.octets(), dst.octets(), body, more),
        (IpAddr::V6(src), IpAddr::V6(dst)) => v6(protocol, src.octets(), dst.octets(), body, more),
        _ => Vec::new(),
    }
}

fn transport(kind: &str, src: u16, dst: u16, words: &[&str]) -> Vec<u8> {
    let payload = number(words, "len").unwrap_or(4);
    let mut bytes = [src.to_be_bytes(), dst.to_be_bytes()].concat();
    let n32 = |name| u32::try_from(number(words, name).unwrap_or(1000)).unwrap_or(0);
    match kind {
        "tcp" => {
            let flags = [("fin", 1), ("syn", 2), ("rst", 4), ("psh", 8), ("ack", 16)]
                .into_iter()
                .filter(|(name, _)| has(words, name) || has(words, &format!("{name}-ack")))
                .fold(0u8, |flags, (_, bit)| flags | bit);
            let ack = if words.iter().any(|word| word.ends_with("-ack")) { 16 } else { 0 };
            bytes.extend(n32("seq").to_be_bytes());
            bytes.extend(n32("acks").to_be_bytes());
            bytes.extend([5 << 4, flags | ack, 16, 0, 0, 0, 0, 0]);
        }
        "udp" => {
            let len = u16::try_from(payload + 8).unwrap_or(0);
            bytes.extend(len.to_be_bytes());
            bytes.extend([0, 0]);
        }
        _ => {
            bytes.extend([1, 2, 3, 4, 0, 0, 0, 0]);
            let chunk = [("init", 1), ("abort", 6), ("cookie", 10), ("data", 0)]
                .into_iter()
                .find(|(name, _)| has(words, name))
                .map_or(0, |(_, chunk)| chunk);
            let len = u16::try_from(payload + 4).unwrap_or(0).to_be_bytes();
            bytes.extend([chunk, 0, len[0], len[1]]);
        }
    }
    bytes.extend((0..payload).map(|i| (i * 31 + 7).to_le_bytes()[0]));
    bytes
}

fn icmp(words: &[&str], quoted: Vec<u8>) -> Vec<u8> {
    let (kind, code) = words.first().and_then(|word| word.split_once('/')).unwrap_or(("8", "0"));
    let mtu = u16::try_from(number(words, "mtu").unwrap_or(0)).unwrap_or(0).to_be_bytes();
    let mut bytes = vec![parse(kind), parse(code), 0, 0, 0, 0, mtu[0], mtu[1]];
    if quoted.is_empty() {
        let payload = number(words, "len").unwrap_or(8);
        bytes.extend((0..payload).map(|i| i.to_le_bytes()[0]));
    }
    bytes.extend(quoted);
    bytes
}

/// Where a protocol's checksum is.
pub fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        6 => Some(16),
        17 => Some(6),
        1 | 58 => Some(2),
        _ => None,
    }
}

fn checksum(protocol: u8, src: IpAddr, dst: IpAddr, body: &mut [u8], words: &[&str]) {
    if has(words, "no-checksum") {
        return;
    }
    if protocol == 132 {
        let crc = crc32c(body).to_le_bytes();
        body[8..12].copy_from_slice(&crc);
        return;
    }
    let Some(at) = checksum_offset(protocol) else { return };
    let sum = if has(words, "partial") {
        // As the kernel leaves it for a device: the pseudo header, not inverted.
        !finish(pseudo(protocol, src, dst, body.len()))
    } else {
        match finish(both(pseudo(protocol, src, dst, body.len()), sum(body))) {
            0 if protocol == 17 => 0xffff,
            sum => sum,
        }
    };
    body[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
}

/// The sum of the pseudo header; ICMP over IPv4 has none.
pub fn pseudo(protocol: u8, src: IpAddr, dst: IpAddr, len: usize) -> u32 {
    if protocol == 1 {
        return 0;
    }
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let [hi, lo] = u16::try_from(len).unwrap_or(0).to_be_bytes();
    [octets(src), octets(dst), vec![0, protocol, hi, lo]].iter().fold(0, |a, b| both(a, sum(b)))
}

/// The ones' complement sum.
pub fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(4).fold(0, |total, chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        both(total, u32::from_ne_bytes(word))
    })
}

/// SCTP's checksum, of a packet whose own is taken to be zero.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for (at, byte) in bytes.iter().enumerate() {
        crc ^= u32::from(if (8..12).contains(&at) { 0 } else { *byte });
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

fn v4(protocol: u8, src: [u8; 4], dst: [u8; 4], body: Vec<u8>, words: &[&str]) -> Vec<u8> {
    let options = number(words, "options").unwrap_or(0);
    let id = number(words, "first").or_else(|| number(words, "later")).unwrap_or(0);
    let id = u16::try_from(id).unwrap_or(0).to_be_bytes();
    let mut fragment = 0u16;
    if number(words, "first").is_some() || has(words, "more") {
        fragment |= 0x2000;
    }
    if number(words, "later").is_some() {
        fragment |= u16::try_from(number(words, "at").unwrap_or(1480) / 8).unwrap_or(0);
    }
    if has(words, "df") {
        fragment |= 0x4000;
    }
    let total = u16::try_from(20 + options + body.len()).unwrap_or(0).to_be_bytes();
    let ttl = u8::try_from(number(words, "ttl").unwrap_or(63)).unwrap_or(0);
    let ihl = u8::try_from(5 + options / 4).unwrap_or(0);
    let fragment = fragment.to_be_bytes();
    let mut bytes = vec![
        0x40 | ihl,
        0,
        total[0],
        total[1],
        id[0],
        id[1],
        fragment[0],
        fragment[1],
        ttl,
        protocol,
        0,
        0,
    ];
    bytes.extend(src);
    bytes.extend(dst);
    bytes.extend(std::iter::repeat_n(1, options));
    let check = finish(sum(&bytes)).to_ne_bytes();
    bytes[10..12].copy_from_slice(&check);
    bytes.extend(body);
    bytes
}

fn v6(protocol: u8, src: [u8; 16], dst: [u8; 16], body: Vec<u8>, words: &[&str]) -> Vec<u8> {
    let mut headers: Vec<(u8, Vec<u8>)> = Vec::new();
    for word in value(words, "ext").unwrap_or_default().split(',').filter(|word| !word.is_empty()) {
        headers.push(match word {
            "hop" => (0, vec![0, 0, 1, 4, 0, 0, 0, 0]),
            "routing" => (43, vec![0, 0, 0, 0, 0, 0, 0, 0]),
            "dst" => (60, vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            "ah" => {
                (51, vec![0, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
            }
            _ => (135, vec![0, 0, 0, 0, 0, 0, 0, 0]),
        });
    }
    if let Some(id) = number(words, "first").or_else(|| number(words, "later")) {
        let mut offset = 0u16;
        if number(words, "later").is_some() {
            offset = u16::try_from(number(words, "at").unwrap_or(1448)).unwrap_or(0) & !7;
        }
        let more = number(words, "first").is_some() || has(words, "more");
        let [hi, lo] = (offset | u16::from(more)).to_be_bytes();
        let id = u32::try_from(id).unwrap_or(0).to_be_bytes();
        headers.push((44, [vec![0, 0, hi, lo], id.to_vec()].concat()));
    }
    let kinds: Vec<u8> = headers.iter().map(|(kind, _)| *kind).chain([protocol]).collect();
    let mut rest: Vec<u8> = Vec::new();
    for ((_, header), next) in headers.iter_mut().zip(&kinds[1..]) {
        header[0] = *next;
        rest.extend(header.iter());
    }
    rest.extend(body);
    let len = u16::try_from(rest.len()).unwrap_or(0).to_be_bytes();
    let ttl = u8::try_from(number(words, "ttl").unwrap_or(63)).unwrap_or(0);
    let mut bytes = vec![0x60, 0, 0, 0, len[0], len[1], kinds[0], ttl];
    bytes.extend(src);
    bytes.extend(dst);
    bytes.extend(rest);
    bytes
}
