//! One packet in, one packet out: the whole of the server but its sockets.

mod write;

use crate::answer::{Answer, Reason};
use crate::message::{
    Drop, Edns, Head, LARGEST_UDP, PLAIN_UDP, Query, Rcode, RecordType, Rejected,
};
use crate::zone::ZoneView;
use write::Writer;

/// The largest message that TCP carries.
pub const LARGEST_TCP: usize = 65_535;

/// How a packet came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// One datagram: what does not fit is cut, and says so.
    Udp,
    /// A stream, where everything fits.
    Tcp,
}

/// What about one packet.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// How it came.
    pub transport: Transport,
    /// Any number; where the order of records means nothing, the answer begins with this one.
    pub turn: usize,
    /// Whether the client may ask here.
    pub allowed: bool,
}

/// What was written, for those who count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Octets of `out` to send.
    pub len: usize,
    /// The code.
    pub rcode: Rcode,
    /// The type asked for; `None` where the question could not be read.
    pub rtype: Option<RecordType>,
    /// Whether the name is in a zone of ours.
    pub in_zone: bool,
    /// Whether the client set DO.
    pub dnssec_ok: bool,
    /// Whether the client must ask again over TCP.
    pub truncated: bool,
}

/// Answers a packet from a view into `out`, which is at least [`LARGEST_UDP`] octets, over TCP
/// [`LARGEST_TCP`]. `Err` is a packet to stay silent about.
///
/// # Errors
/// What has no header to answer to, or is a response.
pub fn respond(view: &ZoneView, packet: &[u8], ask: Ask, out: &mut [u8]) -> Result<Reply, Drop> {
    let query = match Query::parse(packet) {
        Ok(query) => query,
        Err(Rejected::Silently(drop)) => return Err(drop),
        Err(Rejected::With { head, rcode, question, edns }) => {
            return Ok(reject(out, head, rcode, question, edns));
        }
    };
    let answer = if !ask.allowed {
        Answer::refused(Reason::Prohibited)
    } else if query.class == 1 {
        Answer::of(view, &query.name, query.rtype)
    } else {
        Answer::refused(Reason::Class)
    };
    Ok(encode(view, &query, &answer, ask, out))
}

fn reject(out: &mut [u8], head: Head, rcode: Rcode, question: &[u8], edns: Option<Edns>) -> Reply {
    let mut writer = Writer::new(out, PLAIN_UDP, question, edns.map(|edns| (edns, None)));
    let len = writer.finish(head, rcode, false);
    Reply {
        len,
        rcode,
        rtype: None,
        in_zone: false,
        dnssec_ok: edns.is_some_and(|edns| edns.dnssec_ok),
        truncated: false,
    }
}

/// Writes an answer within what the client takes.
pub fn encode(
    view: &ZoneView,
    query: &Query<'_>,
    answer: &Answer<'_>,
    ask: Ask,
    out: &mut [u8],
) -> Reply {
    let limit = match (ask.transport, query.edns) {
        (Transport::Tcp, _) => LARGEST_TCP,
        (Transport::Udp, None) => PLAIN_UDP,
        (Transport::Udp, Some(edns)) => usize::from(edns.udp_size).clamp(PLAIN_UDP, LARGEST_UDP),
    };
    let edns = query.edns.map(|edns| (edns, answer.reason.extended_error()));
    let mut writer = Writer::new(out, limit, query.question, edns);
    writer.section(write::Section::Answer);
    let mut whole =
        answer.answers(view, ask.turn, &mut |record| writer.record(&record)).is_continue();
    if whole {
        writer.section(write::Section::Authority);
        whole = answer.authorities(view, &mut |record| writer.record(&record)).is_continue();
    }
    if whole {
        writer.section(write::Section::Additional);
        // What is left out here may be asked for: no reason to ask all again (RFC 2181 §9).
        if answer.additionals(view, ask.turn, &mut |record| writer.record(&record)).is_break() {
            writer.stop();
        }
    } else {
        writer.truncate();
    }
    Reply {
        len: writer.finish(query.head, answer.rcode, answer.is_authoritative()),
        rcode: answer.rcode,
        rtype: Some(query.rtype),
        in_zone: answer.zone.is_some(),
        dnssec_ok: query.edns.is_some_and(|edns| edns.dnssec_ok),
        truncated: !whole,
    }
}

#[cfg(test)]
mod tests;
