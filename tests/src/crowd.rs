//! What the program `names-client` asks, and what it tells of the answers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When a client asks again.
pub const RETRANSMIT: Duration = Duration::from_millis(100);
/// When it ought to be answered.
pub const LATE: Duration = Duration::from_millis(300);

/// What became of all questions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Crowd {
    /// How many there were.
    pub asked: u64,
    /// How they ended: `right`, another code or address, `nothing`.
    pub answers: BTreeMap<String, u64>,
    /// How many were asked more than once.
    pub again: u64,
    /// How many were answered later than [`LATE`].
    pub late: u64,
    /// How often a closed port said so.
    pub refused: u64,
    /// The longest that an answer took.
    pub worst_ms: f64,
}

/// A question for an address.
pub fn question(id: u16, name: &str, v4: bool) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        packet.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 0, if v4 { 1 } else { 28 }, 0, 1]);
    packet
}

/// What an answer to the question of that number says: its code and its one address.
pub fn read(reply: &[u8], id: u16) -> Option<String> {
    let (header, _) = reply.split_first_chunk::<12>()?;
    if header.get(..2) != Some(&id.to_be_bytes()) {
        return None;
    }
    let code = match header.get(3)? & 0xf {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        5 => "REFUSED",
        _ => "another code",
    };
    let is_one = header.get(6..8) == Some(&[0, 1]) && header.get(8..12) == Some(&[0; 4]);
    let address: Option<IpAddr> = match (is_one, reply.last_chunk::<6>(), reply.last_chunk::<18>())
    {
        (true, Some([0, 4, v4 @ ..]), _) => Some(Ipv4Addr::from(*v4).into()),
        (true, _, Some([0, 16, v6 @ ..])) => Some(Ipv6Addr::from(*v6).into()),
        _ => None,
    };
    Some(address.map_or_else(|| code.to_owned(), |address| format!("{code} {address}")))
}

#[cfg(test)]
mod tests {
    use super::{question, read};

    #[test]
    fn an_answer_is_read_if_it_is_to_that_question() {
        let mut reply = question(7, "a.b", true);
        reply[7] = 1;
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 0, 0, 1]);
        assert_eq!(read(&reply, 7).as_deref(), Some("NOERROR 10.0.0.1"));
        assert_eq!(read(&reply, 8), None);
        reply[3] = 3;
        reply[7] = 0;
        reply.truncate(22);
        assert_eq!(read(&reply, 7).as_deref(), Some("NXDOMAIN"));
    }
}
