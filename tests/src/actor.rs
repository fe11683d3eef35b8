//! What an actor of the packet cases is told and tells: one process in each namespace of the stage
//! sends the first packets of connections, and says of every one that arrives where it came from.
//!
//! A packet is known again by a number that no translation changes: the MSS in a TCP SYN, the text
//! in a datagram, the tag in an SCTP INIT.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use model::name::Protocol;
use serde::{Deserialize, Serialize};

/// The first number of a packet, and the one after the last: what an MSS can be everywhere.
pub const IDS: std::ops::Range<u16> = 100..1300;

/// What an actor is told, a line each.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Begin these connections, all at once.
    Send(Vec<Probe>),
    /// Give up all that is not decided.
    Close,
}

/// A connection to begin.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// Its number.
    pub id: u16,
    /// How.
    pub protocol: Transport,
    /// From where.
    pub from: SocketAddr,
    /// To where.
    pub to: SocketAddr,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, as packets: the kernel may have no sockets of it.
    Sctp,
}

/// What an actor tells, a line each.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Report {
    /// It listens.
    Ready,
    /// It gave up what was not decided.
    Closed,
    /// A connection's first packet was delivered here.
    Arrival(Arrival),
    /// The one who began a connection heard of it, or could not begin it.
    Answer {
        /// Which.
        id: u16,
        /// What it heard.
        answer: Answer,
    },
}

/// A first packet, as it was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// Which.
    pub id: u16,
    /// How.
    pub protocol: Transport,
    /// Whom it says it comes from.
    pub from: SocketAddr,
    /// Whom it was for.
    pub to: SocketAddr,
}

/// What the one who began a connection heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Refused: by the endpoint, where nobody listens, or on the way.
    Refused,
    /// Somebody answered, though nobody listens.
    Accepted,
    /// It could not be sent.
    Failed(String),
}

impl From<Protocol> for Transport {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
            Protocol::Sctp => Self::Sctp,
        }
    }
}

impl Transport {
    /// Its number in the IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// What a segment says of its connection, if it is the first one: number, source and
    /// destination port.
    pub fn first_of(self, segment: &[u8]) -> Option<(u16, u16, u16)> {
        let id = match self {
            Self::Tcp => syn_id(segment)?,
            Self::Udp => std::str::from_utf8(segment.get(8..)?).ok()?.parse().ok()?,
            Self::Sctp => init_id(segment)?,
        };
        IDS.contains(&id).then_some((id, be16(segment, 0)?, be16(segment, 2)?))
    }
}

/// The SCTP packet that begins a connection: an INIT whose tag is the number.
pub fn sctp_init(id: u16, from: u16, to: u16) -> Vec<u8> {
    const CHUNK_INIT: u8 = 1;
    const CHUNK_LEN: u8 = 20;
    let mut packet = Vec::with_capacity(32);
    packet.extend(from.to_be_bytes());
    packet.extend(to.to_be_bytes());
    packet.extend([0; 8]); // no tag yet; the checksum follows
    packet.extend([CHUNK_INIT, 0, 0, CHUNK_LEN]);
    packet.extend(u32::from(id).to_be_bytes());
    packet.extend(65_535_u32.to_be_bytes()); // window
    packet.extend([0, 1, 0, 1]); // streams out and in
    packet.extend(1_u32.to_be_bytes()); // first number
    let sum = crc32c(&packet).to_le_bytes();
    if let Some(field) = packet.get_mut(8..12) {
        field.copy_from_slice(&sum);
    }
    packet
}

/// Splits an IPv4 packet into source, destination and segment.
pub fn ipv4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let header_len = usize::from(packet.first()? & 0xf) * 4;
    let address = |at: usize| {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(IpAddr::V4(Ipv4Addr::from(octets)))
    };
    Some((address(12)?, address(16)?, packet.get(header_len..)?))
}

/// The MSS of a SYN.
fn syn_id(segment: &[u8]) -> Option<u16> {
    const SYN_ACK: u8 = 0x12;
    const SYN: u8 = 0x02;
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const MSS: u8 = 2;
    if segment.get(13)? & SYN_ACK != SYN {
        return None;
    }
    let header_len = usize::from(segment.get(12)? >> 4) * 4;
    let mut options = segment.get(20..header_len)?;
    loop {
        options = match options {
            [END, ..] | [] => return None,
            [NOTHING, rest @ ..] => rest,
            [MSS, 4, ..] => return be16(options, 2),
            [_, len, ..] => options.get(usize::from(*len).max(2)..)?,
            [_] => return None,
        };
    }
}

/// The tag of an INIT whose checksum is right.
fn init_id(segment: &[u8]) -> Option<u16> {
    let mut unsummed = segment.to_vec();
    unsummed.get_mut(8..12)?.fill(0);
    let sum = u32::from_le_bytes(segment.get(8..12)?.try_into().ok()?);
    (segment.get(12) == Some(&1) && be16(segment, 16) == Some(0) && sum == crc32c(&unsummed))
        .then(|| be16(segment, 18))?
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_is_known_again_unless_its_checksum_is_wrong() {
        let mut packet = sctp_init(777, 1000, 2000);
        assert_eq!(Transport::Sctp.first_of(&packet), Some((777, 1000, 2000)));
        packet[3] ^= 1;
        assert_eq!(Transport::Sctp.first_of(&packet), None);
    }

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_syn_is_known_by_its_mss_whatever_other_options_it_has() {
        let mut syn = vec![0, 80, 1, 187, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x02, 0, 0, 0, 0, 0, 0];
        syn.extend([1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0]);
        syn.truncate(28);
        syn.extend([2, 4, 2, 88]);
        // A timestamp option cut short would hide what follows it, so it is replaced by padding.
        syn[20..28].fill(1);
        assert_eq!(Transport::Tcp.first_of(&syn), Some((600, 80, 443)));
        syn[13] = 0x12;
        assert_eq!(Transport::Tcp.first_of(&syn), None);
    }
}
