//! Random tables and packets, in the words of the cases.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use packet::memory::Frame;
use packet::parse::{Parsed, parse};

/// Random numbers (splitmix64): the same ones for the same seed, on every machine.
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.word() % (n.max(1) as u64)).unwrap_or(0)
    }

    /// True in `n` of a hundred cases.
    fn percent(&mut self, n: usize) -> bool {
        self.below(100) < n
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all.get(self.below(all.len())).copied().unwrap_or_default()
    }

    /// Some of them, separated by commas.
    fn some(&mut self, all: &[&str], n: usize) -> String {
        let first = self.below(all.len());
        let chosen: Vec<&str> = all.iter().cycle().skip(first).take(n).copied().collect();
        chosen.join(",")
    }
}

/// The words of one address family.
struct Words {
    frontends: &'static [&'static str],
    endpoints: &'static [&'static str],
    clients: &'static [&'static str],
    /// Addresses that somebody has, or that nobody should have on a wire.
    anybody: &'static [&'static str],
    tables: &'static [&'static str],
}

const V4: Words = Words {
    frontends: &[
        "10.96.0.10:80/tcp",
        "10.96.0.10:53/udp",
        "10.96.0.10:9/sctp",
        "*:30080/tcp",
        "*:30053/udp",
        "*:30009/sctp",
        "10.96.0.11:80/tcp",
        "10.96.0.11:53/udp",
        "203.0.113.1:80/tcp",
        "203.0.113.1:53/udp",
        "172.18.0.1:443/tcp",
    ],
    endpoints: &["10.244.1.2:8080", "10.244.1.3:8080", "10.244.2.2:8080", "172.18.0.2:53"],
    clients: &["192.0.2.7", "192.0.2.8", "10.244.1.2", "10.244.1.7", "172.18.0.1", "172.18.0.2"],
    anybody: &[
        "127.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "10.96.0.99",
        "10.96.0.10",
        "172.18.0.9",
        "192.0.2.99",
    ],
    tables: &[
        "cluster-ip 10.96.0.10",
        "cluster-ip 10.96.0.11",
        "local 172.18.0.1 node-ports",
        "local 172.18.0.9",
        "pods 10.244.1.0/24",
        "services 10.96.0.0/16",
        "device 172.18.0.1",
    ],
};

const V6: Words = Words {
    frontends: &[
        "[fd00:96::a]:80/tcp",
        "[fd00:96::a]:53/udp",
        "[fd00:96::a]:9/sctp",
        "[*]:30080/tcp",
        "[*]:30053/udp",
        "[*]:30009/sctp",
        "[fd00:96::b]:80/tcp",
        "[fd00:96::b]:53/udp",
        "[2001:db8::1]:80/tcp",
        "[2001:db8::1]:53/udp",
        "[fd00:172::1]:443/tcp",
    ],
    endpoints: &[
        "[fd00:244:1::2]:8080",
        "[fd00:244:1::3]:8080",
        "[fd00:244:2::2]:8080",
        "[fd00:172::2]:53",
    ],
    clients: &[
        "2001:db8:7::7",
        "2001:db8:7::8",
        "fd00:244:1::2",
        "fd00:244:1::7",
        "fd00:172::1",
        "fd00:172::2",
    ],
    anybody: &[
        "::1",
        "::",
        "ff02::1",
        "fe80::1",
        "fd00:96::99",
        "fd00:96::a",
        "fd00:172::9",
        "::ffff:10.96.0.10",
    ],
    tables: &[
        "cluster-ip fd00:96::a",
        "cluster-ip fd00:96::b",
        "local fd00:172::1 node-ports",
        "local fd00:172::9",
        "pods fd00:244:1::/64",
        "services fd00:96::/64",
        "device fd00:172::1",
    ],
};

const PORTS: [&str; 6] = ["4711", "1000", "0", "65535", "50152", "53863"];
const RANGES: [&str; 2] = [" ranges 192.0.2.0/29", " ranges 2001:db8:7::/125"];

/// Lines for the tables.
pub fn tables(random: &mut Random) -> Vec<String> {
    let mut lines = Vec::new();
    for (words, ranges) in [(&V4, RANGES[0]), (&V6, RANGES[1])] {
        for frontend in words.frontends {
            if random.percent(75) {
                lines.push(format!("frontend {frontend} {}", routes(random, words, ranges)));
            }
        }
        for table in words.tables {
            if random.percent(92) {
                lines.push((*table).to_owned());
            }
        }
    }
    lines
}

fn routes(random: &mut Random, words: &Words, ranges: &str) -> String {
    let n = 1 + random.below(3);
    let endpoints = random.some(words.endpoints, n);
    let mut text = match random.below(10) {
        0 => "reject".to_owned(),
        1 => "drop".to_owned(),
        2 => format!("outside drop pod {endpoints} node {endpoints} masquerade"),
        3 => format!("outside reject pod {endpoints}"),
        4..7 => format!("{endpoints} masquerade"),
        _ => endpoints,
    };
    if random.percent(10) {
        text.push_str(ranges);
    }
    text
}

/// Other endpoints for one of `n` slots.
pub fn serving(random: &mut Random, slot: usize, v6: bool) -> String {
    let words = if v6 { &V6 } else { &V4 };
    let n = random.below(4);
    format!("serving {slot} {}", random.some(words.endpoints, n))
}

/// A slot of `n`.
pub fn slot(random: &mut Random, n: usize) -> usize {
    1 + random.below(n)
}

/// Whether this step changes endpoints.
pub fn is_change(random: &mut Random) -> bool {
    random.percent(3)
}

/// The two ends of packets that were seen: what comes next is often about them.
#[derive(Debug, Default)]
pub struct Seen {
    ends: Vec<(&'static str, SocketAddr, SocketAddr)>,
    next: usize,
}

impl Seen {
    /// Notes a frame.
    pub fn note(&mut self, bytes: &[u8]) {
        const ROOM: usize = 24;
        let mut parsed = Parsed::default();
        let frame = Frame::new(bytes);
        let ethertype = match bytes.get(12..14) {
            Some([a, b]) => u16::from_ne_bytes([*a, *b]),
            _ => return,
        };
        if parse(&frame, 14, ethertype, &mut parsed).is_none() {
            return;
        }
        let protocol = match parsed.protocol {
            6 => "tcp",
            17 => "udp",
            132 => "sctp",
            _ => return,
        };
        let end = |address, port| SocketAddr::new(IpAddr::from(address), u16::from_be(port));
        let ends = (protocol, end(parsed.src, parsed.src_port), end(parsed.dst, parsed.dst_port));
        match self.ends.get_mut(self.next) {
            Some(old) => *old = ends,
            None => self.ends.push(ends),
        }
        self.next = (self.next + 1) % ROOM;
    }

    fn one(&self, random: &mut Random) -> Option<(&'static str, SocketAddr, SocketAddr)> {
        let (protocol, a, b) = *self.ends.get(random.below(self.ends.len()))?;
        Some(if random.percent(50) { (protocol, a, b) } else { (protocol, b, a) })
    }
}

/// A packet, and by which way it comes.
pub fn packet(random: &mut Random, seen: &Seen) -> String {
    let way = match random.below(10) {
        0..5 => "arrives",
        5..8 => "leaves",
        _ => "made-here",
    };
    let mut text = format!("{way} ");
    if random.percent(14) {
        icmp(random, seen, &mut text);
    } else {
        segment(random, seen, &mut text, true);
    }
    // The frame's own: padding, a cut, bytes overwritten.
    if random.percent(4) {
        _ = write!(text, " pad={}", random.below(20));
    }
    if random.percent(3) {
        _ = write!(text, " cut={}", random.below(90));
    } else if random.percent(8) {
        for _ in 0..=random.below(2) {
            // Mostly the network header, else where the transport header is.
            let at = if random.percent(60) { random.below(20) } else { random.below(28) };
            _ = write!(text, " set={at}:{}", random.below(256));
        }
    }
    if random.percent(1) {
        text.push_str(" arp");
    }
    text
}

/// TCP, UDP or SCTP: of what was seen, or of anybody's.
fn segment(random: &mut Random, seen: &Seen, text: &mut String, outer: bool) {
    let (protocol, src, dst) = match seen.one(random) {
        Some(ends) if random.percent(75) => ends,
        _ => ends(random),
    };
    _ = write!(text, "{protocol} {src} > {dst}");
    match protocol {
        "tcp" => {
            text.push_str(random.of(&[
                " syn",
                " syn",
                " syn-ack",
                " ack",
                " ack",
                " psh-ack",
                " fin-ack",
                " rst",
                " rst-ack",
                " fin syn ack",
                "",
            ]));
            if random.percent(60) {
                _ = write!(
                    text,
                    " seq={} acks={}",
                    random.of(&["5", "1000"]),
                    random.of(&["6", "1001"])
                );
            }
        }
        "sctp" => text.push_str(random.of(&[" init", " data", " cookie", " abort", ""])),
        _ => {}
    }
    if protocol != "tcp" && random.percent(6) {
        text.push_str(" no-checksum");
    }
    lengths(random, text, dst.is_ipv6(), outer);
}

fn lengths(random: &mut Random, text: &mut String, v6: bool, outer: bool) {
    if random.percent(50) {
        let most = if random.percent(15) { 2800 } else { 200 };
        _ = write!(text, " len={}", random.below(most));
    }
    if random.percent(5) {
        _ = write!(text, " ttl={}", random.below(256));
    }
    if random.percent(6) && !v6 {
        _ = write!(text, " options={}", 4 * random.below(11));
    }
    if random.percent(8) && v6 {
        let n = 1 + random.below(3);
        _ = write!(text, " ext={}", random.some(&["hop", "routing", "dst", "ah", "mobility"], n));
    }
    if random.percent(15) {
        let part = random.of(&["first", "later", "later"]);
        _ = write!(text, " {part}={}", 1 + random.below(3));
        if part == "later" && random.percent(50) {
            text.push_str(" more");
        }
    }
    if outer && random.percent(3) {
        text.push_str(" df");
    }
}

fn ends(random: &mut Random) -> (&'static str, SocketAddr, SocketAddr) {
    let words = if random.percent(50) { &V4 } else { &V6 };
    let address = |random: &mut Random, usual: &[&str]| -> IpAddr {
        let text = if random.percent(90) { random.of(usual) } else { random.of(words.anybody) };
        parse_or(text, IpAddr::from([192, 0, 2, 7]))
    };
    let client = address(random, words.clients);
    let port = |random: &mut Random| parse_or(random.of(&PORTS), 4711);
    let src = SocketAddr::new(client, port(random));
    let frontend = random.of(words.frontends);
    let (at, protocol) = frontend.split_once('/').unwrap_or((frontend, "tcp"));
    let protocol = match protocol {
        "udp" => "udp",
        "sctp" => "sctp",
        _ => "tcp",
    };
    let (_, frontend_port) = at.rsplit_once(':').unwrap_or((at, "80"));
    let mut dst = match at.parse::<SocketAddr>() {
        Ok(dst) => dst,
        // A node port.
        Err(_) => SocketAddr::new(address(random, words.clients), parse_or(frontend_port, 80)),
    };
    if random.percent(8) {
        dst.set_ip(address(random, words.anybody));
    }
    if random.percent(8) {
        dst.set_port(port(random));
    }
    if random.percent(10) {
        let endpoint = random.of(words.endpoints);
        dst = parse_or(endpoint, dst);
    }
    (protocol, src, dst)
}

/// An echo request or reply, an error about a packet, or any other message.
fn icmp(random: &mut Random, seen: &Seen, text: &mut String) {
    let mut quoted = String::new();
    segment(random, seen, &mut quoted, false);
    let v6 = quoted.contains('[');
    let words = if v6 { &V6 } else { &V4 };
    // Mostly it goes to who sent what it quotes.
    let quoted_ends: Vec<SocketAddr> =
        quoted.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let (from, to) = match quoted_ends.as_slice() {
        [src, dst, ..] if random.percent(85) => {
            let router = parse_or(random.of(words.clients), dst.ip());
            (if random.percent(50) { dst.ip() } else { router }, src.ip())
        }
        _ => {
            let nobody = IpAddr::from([192, 0, 2, 7]);
            let to = if random.percent(50) { words.anybody } else { words.clients };
            (parse_or(random.of(words.clients), nobody), parse_or(random.of(to), nobody))
        }
    };
    if from.is_ipv6() != to.is_ipv6() {
        return segment(random, seen, text, true);
    }
    let kind = if v6 {
        random.of(&["1/4", "2/0", "3/0", "4/1", "128/0", "129/0", "135/0"])
    } else {
        random.of(&["3/3", "3/4", "11/0", "12/0", "4/0", "8/0", "0/0", "5/1"])
    };
    _ = write!(text, "icmp {from} > {to} {kind}");
    if matches!(kind, "8/0" | "128/0") {
        // An echo request is asked of a cluster IP now and then.
        if random.percent(40) {
            text.truncate(text.len() - kind.len());
            let vip = if v6 { "fd00:96::a" } else { "10.96.0.10" };
            *text = text.replace(&format!("> {to} "), &format!("> {vip} "));
            text.push_str(kind);
        }
        _ = write!(text, " len={}", random.below(200));
        return;
    }
    if random.percent(40) {
        _ = write!(text, " mtu={}", 1280 + random.below(220));
    }
    if random.percent(30) {
        _ = write!(text, " quote={}", random.below(100));
    }
    if random.percent(4) {
        text.push_str(" first=3");
    }
    _ = write!(text, " about {quoted}");
}

fn parse_or<T: std::str::FromStr>(text: &str, other: T) -> T {
    text.parse().unwrap_or(other)
}
