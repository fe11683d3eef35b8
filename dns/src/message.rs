//! The message around a question: header and EDNS, in and out (RFC 1035 §4, RFC 6891).

use crate::name::LowerName;

/// Octets of a header.
pub const HEADER: usize = 12;
/// The largest answer a client without EDNS takes over UDP (RFC 1035 §4.2.1).
pub const PLAIN_UDP: usize = 512;
/// The largest answer sent over UDP at all: what passes every path without fragments
/// (DNS flag day 2020).
pub const LARGEST_UDP: usize = 1232;

/// A record type (RFC 1035 §3.2.2), by number: every number is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordType(pub u16);

impl RecordType {
    /// An IPv4 address.
    pub const A: Self = Self(1);
    /// A name server.
    pub const NS: Self = Self(2);
    /// An alias.
    pub const CNAME: Self = Self(5);
    /// The start of a zone of authority.
    pub const SOA: Self = Self(6);
    /// A name for an address.
    pub const PTR: Self = Self(12);
    /// A mail exchange.
    pub const MX: Self = Self(15);
    /// Text.
    pub const TXT: Self = Self(16);
    /// An IPv6 address.
    pub const AAAA: Self = Self(28);
    /// Where a service listens (RFC 2782).
    pub const SRV: Self = Self(33);
    /// The EDNS pseudo record (RFC 6891).
    pub const OPT: Self = Self(41);
    /// What browsers ask beside addresses (RFC 9460).
    pub const HTTPS: Self = Self(65);
    /// An incremental transfer of a zone.
    pub const IXFR: Self = Self(251);
    /// A transfer of a zone.
    pub const AXFR: Self = Self(252);
    /// Whatever there is.
    pub const ANY: Self = Self(255);

    const NAMES: [(&'static str, Self); 15] = [
        ("A", Self::A),
        ("NS", Self::NS),
        ("CNAME", Self::CNAME),
        ("SOA", Self::SOA),
        ("PTR", Self::PTR),
        ("MX", Self::MX),
        ("TXT", Self::TXT),
        ("AAAA", Self::AAAA),
        ("SRV", Self::SRV),
        ("OPT", Self::OPT),
        ("HTTPS", Self::HTTPS),
        ("IXFR", Self::IXFR),
        ("AXFR", Self::AXFR),
        ("ANY", Self::ANY),
        ("DS", Self(43)),
    ];

    /// Reads `AAAA`, or `TYPE28` as RFC 3597 §5 spells any type.
    pub fn parse(text: &str) -> Option<Self> {
        let upper = text.to_ascii_uppercase();
        Self::NAMES
            .iter()
            .find(|(name, _)| *name == upper)
            .map(|&(_, rtype)| rtype)
            .or_else(|| upper.strip_prefix("TYPE")?.parse().map(Self).ok())
    }

    /// A question for it is malformed: pseudo records and keys of transactions (RFC 6895 §3.1).
    const fn is_meta(self) -> bool {
        matches!(self.0, 0 | 41 | 249 | 250)
    }
}

impl std::fmt::Display for RecordType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match Self::NAMES.iter().find(|(_, rtype)| rtype == self) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "TYPE{}", self.0),
        }
    }
}

/// A response code (RFC 6895 §2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rcode {
    /// The name exists.
    NoError,
    /// The question cannot be read.
    FormErr,
    /// It cannot be answered now.
    ServFail,
    /// The name does not exist.
    NxDomain,
    /// An opcode other than QUERY.
    NotImp,
    /// Not answered here.
    Refused,
    /// An EDNS version other than 0.
    BadVers,
}

impl Rcode {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::NoError,
        Self::FormErr,
        Self::ServFail,
        Self::NxDomain,
        Self::NotImp,
        Self::Refused,
        Self::BadVers,
    ];

    /// The twelve bits: four in the header, eight in the OPT record.
    pub const fn bits(self) -> u16 {
        match self {
            Self::NoError => 0,
            Self::FormErr => 1,
            Self::ServFail => 2,
            Self::NxDomain => 3,
            Self::NotImp => 4,
            Self::Refused => 5,
            Self::BadVers => 16,
        }
    }

    /// As tools and metrics spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoError => "NOERROR",
            Self::FormErr => "FORMERR",
            Self::ServFail => "SERVFAIL",
            Self::NxDomain => "NXDOMAIN",
            Self::NotImp => "NOTIMP",
            Self::Refused => "REFUSED",
            Self::BadVers => "BADVERS",
        }
    }
}

/// What a response repeats of the query's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The transaction.
    pub id: u16,
    /// 0 is QUERY, the only one answered.
    pub opcode: u8,
    /// Recursion desired.
    pub recursion_desired: bool,
    /// Checking disabled (RFC 4035 §3.2.2).
    pub checking_disabled: bool,
}

/// What a client's OPT record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The largest UDP answer that it takes.
    pub udp_size: u16,
    /// 0 is the only version.
    pub version: u8,
    /// The DO bit, which a response copies (RFC 3225 §3).
    pub dnssec_ok: bool,
}

/// One question, well formed.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    /// The header.
    pub head: Head,
    /// The question as it came: name in the client's letters, type, class.
    pub question: &'a [u8],
    /// The name, lower-cased.
    pub name: LowerName,
    /// The type asked for.
    pub rtype: RecordType,
    /// The class; 1 is IN.
    pub class: u16,
    /// EDNS, when the client speaks it.
    pub edns: Option<Edns>,
}

/// A packet that is not a question to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected<'a> {
    /// Answering would be wrong: no header to answer to, or a response itself, which answered
    /// would bounce between two servers for ever.
    Silently(Drop),
    /// To be told so, in as much of a message as was understood.
    With {
        /// The header.
        head: Head,
        /// What to say.
        rcode: Rcode,
        /// The question, where it could be read.
        question: &'a [u8],
        /// EDNS, where it could be read.
        edns: Option<Edns>,
    },
}

/// Why a packet gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Drop {
    /// Shorter than a header.
    Short,
    /// A response.
    Response,
}

impl<'a> Query<'a> {
    /// Reads a packet.
    ///
    /// # Errors
    /// Whatever is not one question with opcode QUERY and EDNS version 0 or none.
    pub fn parse(packet: &'a [u8]) -> Result<Self, Rejected<'a>> {
        let Some(header) = packet.first_chunk::<HEADER>() else {
            return Err(Rejected::Silently(Drop::Short));
        };
        let [id_hi, id_lo, flags, flags2, counts @ ..] = *header;
        if flags & 0x80 != 0 {
            return Err(Rejected::Silently(Drop::Response));
        }
        let head = Head {
            id: u16::from_be_bytes([id_hi, id_lo]),
            opcode: (flags >> 3) & 0x0f,
            recursion_desired: flags & 0x01 != 0,
            checking_disabled: flags2 & 0x10 != 0,
        };
        let reject = |rcode| Rejected::With { head, rcode, question: &[], edns: None };
        if head.opcode != 0 {
            return Err(reject(Rcode::NotImp));
        }
        // One question (RFC 9619); what else a query may carry is an OPT, a signature, and the
        // SOA of an IXFR.
        let [0, 1, 0, n_answers @ 0..=1, 0, n_authorities @ 0..=1, 0, n_additionals @ 0..=2] =
            counts
        else {
            return Err(reject(Rcode::FormErr));
        };
        let rest = packet.get(HEADER..).unwrap_or_default();
        let name = LowerName::parse(rest).map_err(|_malformed| reject(Rcode::FormErr))?;
        let end = name.wire().len() + 4;
        let (Some(question), Some(&[type_hi, type_lo, class_hi, class_lo])) =
            (rest.get(..end), rest.get(..end).and_then(<[u8]>::last_chunk::<4>))
        else {
            return Err(reject(Rcode::FormErr));
        };
        let rtype = RecordType(u16::from_be_bytes([type_hi, type_lo]));
        let class = u16::from_be_bytes([class_hi, class_lo]);
        if rtype.is_meta() {
            return Err(reject(Rcode::FormErr));
        }
        let records = [n_answers, n_authorities, n_additionals];
        let edns = parse_edns(rest.get(end..).unwrap_or_default(), records)
            .ok_or_else(|| reject(Rcode::FormErr))?;
        if edns.is_some_and(|edns| edns.version != 0) {
            return Err(Rejected::With { head, rcode: Rcode::BadVers, question, edns });
        }
        Ok(Self { head, question, name, rtype, class, edns })
    }
}

/// Walks the records behind the question. `None` is malformed.
#[expect(clippy::option_option, reason = "malformed, or no EDNS, or EDNS")]
fn parse_edns(
    mut rest: &[u8],
    [answers, authorities, additionals]: [u8; 3],
) -> Option<Option<Edns>> {
    let mut edns = None;
    for idx in 0..answers + authorities + additionals {
        let owner = skip_name(rest)?;
        let (fixed, after) = rest.get(owner..)?.split_first_chunk::<10>()?;
        let [t0, t1, c0, c1, _extended_rcode, version, z0, _z1, l0, l1] = *fixed;
        let (data, after) = after.split_at_checked(usize::from(u16::from_be_bytes([l0, l1])))?;
        rest = after;
        if RecordType(u16::from_be_bytes([t0, t1])) != RecordType::OPT {
            continue;
        }
        // One OPT, of the root, in the additional section, its options whole (RFC 6891 §6.1.1).
        if owner != 1 || edns.is_some() || idx < answers + authorities || !options_are_whole(data) {
            return None;
        }
        edns = Some(Edns {
            udp_size: u16::from_be_bytes([c0, c1]),
            version,
            dnssec_ok: z0 & 0x80 != 0,
        });
    }
    Some(edns)
}

/// The length of an owner name, which here may be compressed.
fn skip_name(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return Some(at + 2),
            64..0xc0 => return None,
        }
    }
}

fn options_are_whole(mut data: &[u8]) -> bool {
    while let Some((&[_, _, l0, l1], rest)) = data.split_first_chunk::<4>() {
        match rest.get(usize::from(u16::from_be_bytes([l0, l1]))..) {
            Some(after) => data = after,
            None => return false,
        }
    }
    data.is_empty()
}

#[cfg(test)]
mod tests;
