//! ICMP: errors go the way of the packet that they quote, echo requests to cluster IPs are answered.

use abi::counter::Counter;
use abi::flow::{Seen, flag};

use crate::decide::{Verdict, tuple};
use crate::flow;
use crate::packet::Packet;
use crate::parse::{Fragment, Parsed, parse_quoted};
use crate::refuse;
use crate::rewrite::{End, rewrite_address, rewrite_quoted, rewrite_type};
use crate::tables::Tables;

const ECHO_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// An ICMP message that arrives.
#[inline(always)]
pub fn arrives<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    parsed: &mut Parsed,
    quoted: &mut Parsed,
) -> Verdict {
    let Some(kind) = kind(parsed) else { return Verdict::PASS };
    if kind == if parsed.v6 { ECHO_V6 } else { ECHO_V4 } {
        if tables.is_cluster_ip(&parsed.dst) {
            return answer_echo(packet, tables, parsed);
        }
        return Verdict::PASS;
    }
    if !is_error(parsed.v6, kind) {
        return Verdict::PASS;
    }
    if parse_quoted(packet, parsed.l4 + 8, parsed.v6, quoted).is_none() {
        return Verdict::PASS;
    }
    let translated = error_to_endpoint(packet, tables, parsed, quoted)
        .or_else(|| error_to_client(packet, tables, parsed, quoted));
    done(tables, translated)
}

/// An ICMP message that leaves.
#[inline(always)]
pub fn leaves<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    parsed: &mut Parsed,
    quoted: &mut Parsed,
) -> Verdict {
    match kind(parsed) {
        Some(kind) if is_error(parsed.v6, kind) => {}
        _ => return Verdict::PASS,
    }
    if parse_quoted(packet, parsed.l4 + 8, parsed.v6, quoted).is_none() {
        return Verdict::PASS;
    }
    let translated = error_leaves(packet, tables, parsed, quoted);
    done(tables, translated)
}

/// The outer option says whether the error is one of ours, the inner one whether it was written.
#[inline(always)]
fn done(tables: &impl Tables, translated: Option<Option<()>>) -> Verdict {
    match translated {
        None => Verdict::PASS,
        Some(None) => Verdict::drop(Counter::DroppedUnwritable),
        Some(Some(())) => {
            tables.count(Counter::ErrorTranslated);
            Verdict::PASS
        }
    }
}

/// The type of a whole message.
#[inline(always)]
const fn kind(parsed: &Parsed) -> Option<u8> {
    let [kind, _] = parsed.src_port.to_ne_bytes();
    match parsed.fragment {
        Fragment::Whole => Some(kind),
        _ => None,
    }
}

/// Whether a message of that type quotes a packet (RFC 792, RFC 4443).
#[inline(always)]
const fn is_error(v6: bool, kind: u8) -> bool {
    if v6 { matches!(kind, 1..=4) } else { matches!(kind, 3 | 4 | 11 | 12) }
}

/// An error about a reply, from the client's side: it quotes `frontend ─▶ client`.
#[inline(always)]
fn error_to_endpoint<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    error: &mut Parsed,
    quoted: &mut Parsed,
) -> Option<Option<()>> {
    let sent = tuple(quoted).reversed();
    let live = flow::by_key(tables, &sent)?.live;
    let (endpoint, port, client_port) = (live.endpoint(), live.endpoint_port(), live.client_port());
    Some((|| {
        rewrite_quoted(packet, error, quoted, End::Source, (&endpoint, port))?;
        if client_port != sent.src_port {
            rewrite_quoted(packet, error, quoted, End::Destination, (&sent.src, client_port))?;
        }
        rewrite_address(packet, error, End::Destination, &endpoint)
    })())
}

/// An error about a masqueraded packet: it quotes `device ─▶ endpoint`.
#[inline(always)]
fn error_to_client<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    error: &mut Parsed,
    quoted: &mut Parsed,
) -> Option<Option<()>> {
    let name = tuple(quoted).reversed().at(Seen::Returning);
    let mut sent = name;
    let found = flow::by_name(tables, &name, &mut sent)?;
    let live = found.live;
    let is_host = live.is_host();
    let port = if is_host { sent.src_port } else { live.client_port() };
    let from_endpoint = flow::same(&error.src, &live.endpoint());
    Some((|| {
        rewrite_quoted(packet, error, quoted, End::Source, (&sent.src, port))?;
        if is_host {
            rewrite_quoted(packet, error, quoted, End::Destination, (&sent.dst, sent.dst_port))?;
            if from_endpoint {
                rewrite_address(packet, error, End::Source, &sent.dst)?;
            }
        }
        rewrite_address(packet, error, End::Destination, &sent.src)
    })())
}

/// An error on its way out: it quotes a packet between DNAT and SNAT.
#[inline(always)]
fn error_leaves<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    error: &mut Parsed,
    quoted: &mut Parsed,
) -> Option<Option<()>> {
    let seen = tuple(quoted);
    let mut sent = seen;
    let found = flow::by_name(tables, &seen.leaving(), &mut sent)?;
    let live = found.live;
    if flow::is_to_endpoint(live, &sent, &seen)? {
        // To the client, who named the frontend. Routers on the way keep their names.
        let from_endpoint = flow::same(&error.src, &live.endpoint());
        return Some((|| {
            rewrite_quoted(packet, error, quoted, End::Destination, (&sent.dst, sent.dst_port))?;
            if quoted.src_port != sent.src_port {
                rewrite_quoted(packet, error, quoted, End::Source, (&sent.src, sent.src_port))?;
            }
            if from_endpoint {
                rewrite_address(packet, error, End::Source, &sent.dst)?;
            }
            Some(())
        })());
    }
    if !live.has(flag::MASQUERADE) || live.snat_port() == 0 {
        return None;
    }
    let (address, port) = (live.snat(), live.snat_port());
    let from_client = flow::same(&error.src, &sent.src);
    Some((|| {
        rewrite_quoted(packet, error, quoted, End::Destination, (&address, port))?;
        if from_client {
            rewrite_address(packet, error, End::Source, &address)?;
        }
        Some(())
    })())
}

/// A cluster IP is nobody's address, so nobody else would answer.
#[inline(always)]
fn answer_echo<T: Tables>(packet: &mut impl Packet, tables: &T, parsed: &mut Parsed) -> Verdict {
    if !tables.may_answer() {
        return Verdict::drop(Counter::AnswerLimited);
    }
    let (src, dst) = (parsed.src, parsed.dst);
    let reply = if parsed.v6 { ECHO_REPLY_V6 } else { ECHO_REPLY_V4 };
    let answered = (|| {
        rewrite_type(packet, parsed, reply)?;
        rewrite_address(packet, parsed, End::Source, &dst)?;
        rewrite_address(packet, parsed, End::Destination, &src)?;
        refuse::turn_link(packet, parsed.l3)
    })();
    match answered {
        Some(()) => {
            tables.count(Counter::EchoAnswered);
            Verdict::ANSWER
        }
        None => Verdict::drop(Counter::DroppedUnwritable),
    }
}
