//! Connections: opened, found by a name, proved, ended.

use abi::addr::Addr;
use abi::counter::Counter;
use abi::flow::{SNAT_FIRST, SNAT_MASK, Seen, Tuple, flag};

use crate::decide::Verdict;
use crate::live::Live;
use crate::parse::{Parsed, TCP, UDP, tcp};
use crate::tables::{Added, Chosen, Stage, Tables};

/// How many ports are tried before a connection is dropped.
const TRIES: u32 = 16;
/// How many of them leave half-open connections alone. Whoever floods takes all ports with those.
const POLITE: u32 = 12;
/// For how many seconds the end that closed a TCP connection first remembers it: Linux has 60.
const TIME_WAIT: u32 = 60;

/// A connection, where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Its record.
    pub live: Live,
    /// In which maps.
    pub stage: Stage,
}

/// The connection of that key.
#[inline(always)]
pub fn by_key(tables: &impl Tables, sent: &Tuple) -> Option<Found> {
    if let Some(live) = tables.flow(Stage::Established, sent) {
        return Some(Found { live, stage: Stage::Established });
    }
    if let Some(live) = tables.flow(Stage::New, sent) {
        return Some(Found { live, stage: Stage::New });
    }
    // It may have been moved from the second to the first in between.
    let live = tables.flow(Stage::Established, sent)?;
    Some(Found { live, stage: Stage::Established })
}

/// The connection that was opened just now.
#[inline(always)]
pub fn opened(tables: &impl Tables, sent: &Tuple) -> Option<Found> {
    if let Some(live) = tables.flow(Stage::New, sent) {
        return Some(Found { live, stage: Stage::New });
    }
    // Another processor may have opened it, and established it since.
    let live = tables.flow(Stage::Established, sent)?;
    Some(Found { live, stage: Stage::Established })
}

/// The connection that goes by a name; its key is left in `sent`.
#[inline(always)]
pub fn by_name(tables: &impl Tables, name: &Tuple, sent: &mut Tuple) -> Option<Found> {
    if !tables.name(Stage::Established, name, sent) && !tables.name(Stage::New, name, sent) {
        return None;
    }
    by_key(tables, sent)
}

/// Whether a connection that was found by a client's packet is to be forgotten, so that the packet
/// opens a new one: a UDP flow whose endpoint serves no more, and a TCP or SCTP connection that is
/// asked for anew while the old one is closed or its endpoint gone.
#[inline(always)]
pub fn is_over(tables: &impl Tables, found: Found, parsed: &Parsed) -> bool {
    let live = found.live;
    if parsed.protocol == UDP {
        // One word of the slot tells, as long as nothing has changed.
        return tables.generation(live.slot()) != live.generation() && !tables.still_serves(live);
    }
    opens(parsed) && (live.is_closed() || !tables.still_serves(live))
}

/// Whether the packet asks for a connection.
#[inline(always)]
pub fn opens(parsed: &Parsed) -> bool {
    parsed.protocol == UDP || parsed.segment.flags & (tcp::SYN | tcp::ACK) == tcp::SYN
}

/// Whether a connection's endpoint serves; if so, its generation is noted.
#[inline(always)]
pub fn still_serves(tables: &impl Tables, live: Live) -> bool {
    match tables.serves(live.slot(), &live.endpoint(), live.endpoint_port()) {
        Some(generation) => {
            live.set_generation(generation);
            true
        }
        None => false,
    }
}

/// Removes a connection and its names; the record last, so that a name never leads to another's.
#[inline(always)]
pub fn forget(tables: &impl Tables, stage: Stage, live: Live, sent: &Tuple) {
    tables.ended(live);
    tables.remove_name(stage, &live.leaving(sent));
    if live.snat_port() != 0 {
        tables.remove_name(stage, &live.returning(sent, &live.snat(), live.snat_port()));
    }
    tables.remove_flow(stage, sent);
}

/// Keeps a connection whose client has proved that it exists where nothing displaces it, by names that are
/// believed at once. When there is no room it stays where it is.
#[inline(always)]
pub fn establish(tables: &impl Tables, live: Live, sent: &Tuple) {
    let leaving = live.leaving(sent);
    let (snat, snat_port) = (live.snat(), live.snat_port());
    let returning = live.returning(sent, &snat, snat_port);
    let named = tables.add_compared(&leaving, live, sent) != Added::Full
        && (snat_port == 0 || tables.add_compared(&returning, live, sent) != Added::Full);
    if !named || tables.add_flow(Stage::Established, sent, live) == Added::Full {
        tables.remove_name(Stage::Established, &leaving);
        tables.remove_name(Stage::Established, &returning);
        tables.count(Counter::FlowsFull);
        return;
    }
    tables.remove_flow(Stage::New, sent);
    tables.remove_name(Stage::New, &leaving);
    if snat_port != 0 {
        tables.remove_name(Stage::New, &returning);
    }
    tables.count(Counter::FlowEstablished);
}

/// Makes packets with a connection's addresses such ones as are decided on. Whoever opens one comes here
/// before its packet goes on.
#[inline(always)]
pub fn mark(tables: &impl Tables, live: Live, sent: &Tuple) {
    tables.mark(&live.endpoint());
    // Its frontend may go while it lives.
    tables.mark(&sent.dst);
}

/// Renews the names of a connection that newer ones may displace: one may be gone without the
/// record.
#[inline(always)]
pub fn renew(tables: &impl Tables, live: Live, sent: &Tuple) {
    mark(tables, live, sent);
    _ = tables.add_name(Stage::New, &live.leaving(sent), sent);
    let port = live.snat_port();
    if port != 0 {
        _ = tables.add_name(Stage::New, &live.returning(sent, &live.snat(), port), sent);
    }
}

/// Compares a name with its record, so that it is believed for the rest of the second.
#[inline(always)]
pub fn compare(tables: &impl Tables, live: Live, name: &Tuple, sent: &Tuple) {
    if let Some(known) = tables.named(name) {
        known.compare(live, sent, tables.seconds());
    }
}

/// Opens a connection to an endpoint.
///
/// # Errors
/// Why the packet must be dropped.
#[inline(always)]
pub fn open(
    tables: &impl Tables,
    sent: &Tuple,
    slot: u32,
    chosen: &Chosen,
    here: bool,
) -> Result<(), Verdict> {
    let mut client_port = sent.src_port;
    let mut name =
        Tuple::between(&sent.src, client_port, &chosen.address, chosen.port, sent.protocol);
    let mut tries = 0;
    while !tables.claim(Stage::New, &name, sent, tries >= POLITE) {
        if tries == 0 {
            tables.count(Counter::PortClash);
        }
        tries += 1;
        client_port = snat_port(tables.random());
        name.set_ports(&sent.src, client_port, &chosen.address, chosen.port);
        // Last: Linux 6.1 takes no loop whose end does anything but jump.
        if tries > TRIES {
            return Err(Verdict::drop(Counter::DroppedNoPort));
        }
    }
    let generation = tables.generation(slot);
    let seen = tables.seconds();
    let masquerade = chosen.masquerade != 0 || same(&chosen.address, &sent.src);
    let flags = match (here, masquerade) {
        (true, true) => flag::HOST | flag::MASQUERADE,
        (true, false) => flag::HOST | flag::MASQUERADE | flag::KEEP_ADDRESS,
        (false, true) => flag::MASQUERADE,
        (false, false) => 0,
    };
    let added = tables.add_new(sent, |record| {
        record.endpoint = chosen.address;
        record.snat = Addr::ANY_V6;
        record.endpoint_port = chosen.port;
        record.snat_port = 0;
        record.client_port = client_port;
        record.flags = flags;
        (record.forward, record.reply, record.pad) = (0, 0, [0; 3]);
        record.slot = slot;
        record.generation = generation;
        record.seen = seen;
        record.proof = 0;
        record.id = chosen.id;
        (record.forward_packets, record.reply_packets) = (0, 0);
        (record.forward_bytes, record.reply_bytes) = (0, 0);
    });
    match added {
        Added::Fresh => {
            tables.count(Counter::FlowOpened);
            tables.led(chosen.id);
        }
        // Another processor has just opened it; its packet decides.
        Added::Taken => {}
        Added::Full => return Err(Verdict::drop(Counter::DroppedNoRoom)),
    }
    Ok(())
}

/// A source port for a masqueraded connection, of a random word; network byte order.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "masked")]
fn snat_port(random: u32) -> u16 {
    (SNAT_FIRST | (random as u16 & SNAT_MASK)).to_be()
}

/// Finds a source for a masqueraded connection: the device's address, and the client's own port's
/// counterpart in the reserved range if it is free.
///
/// # Errors
/// Why the packet must be dropped.
#[inline(always)]
pub fn masquerade(tables: &impl Tables, found: Found, sent: &Tuple) -> Result<(), Verdict> {
    let address = if found.live.has(flag::KEEP_ADDRESS) {
        sent.src
    } else {
        let Some(address) = tables.device(!sent.src.is_v4()) else {
            return Err(Verdict::drop(Counter::DroppedNoAddress));
        };
        address
    };
    let mut port = snat_port(u32::from(u16::from_be(found.live.client_port())));
    let mut name = found.live.returning(sent, &address, port);
    let mut tries = 0;
    loop {
        if tables.claim(found.stage, &name, sent, tries >= POLITE) {
            found.live.set_snat(address, port);
            tables.mark(&address);
            return Ok(());
        }
        if tries == 0 {
            tables.count(Counter::PortClash);
        }
        tries += 1;
        port = snat_port(tables.random());
        name.dst_port = port;
        // As above.
        if tries > TRIES {
            return Err(Verdict::drop(Counter::DroppedNoPort));
        }
    }
}

/// Takes a name for a connection, unless another one that is alive has it; `forced` from one that has
/// not proved that its client exists.
#[inline(always)]
pub fn claim(tables: &impl Tables, stage: Stage, name: &Tuple, sent: &Tuple, forced: bool) -> bool {
    let mut key = *name;
    let is_established = tables.name(Stage::Established, name, &mut key);
    if (is_established || tables.name(Stage::New, name, &mut key))
        && let Some(holder) = by_key(tables, &key)
        && key != *sent
        && is_named(holder.live, &key, name)
    {
        // A closed connection gives way once its endpoint has forgotten it, too (TIME_WAIT): until then it
        // may take another client's packet for an old one, by its timestamp, and let that wait. What else
        // is left of it is believed for the rest of the second at most, then leads nowhere, and is swept.
        let is_ended = key.protocol == TCP && holder.live.is_closed();
        let is_forgotten =
            is_ended && tables.seconds().wrapping_sub(holder.live.seen()) > TIME_WAIT;
        let is_taken = forced && (is_ended || holder.stage == Stage::New);
        if !is_forgotten && !is_taken {
            return false;
        }
        tables.ended(holder.live);
        tables.remove_flow(holder.stage, &key);
    }
    // What an established one has left would be found before this.
    if stage == Stage::New && is_established {
        tables.remove_name(Stage::Established, name);
    }
    match tables.add_name(stage, name, sent) {
        Added::Fresh => true,
        // A leftover of this connection, or of one that is gone.
        Added::Taken => {
            tables.remove_name(stage, name);
            tables.add_name(stage, name, sent) == Added::Fresh
        }
        Added::Full => false,
    }
}

/// Whether a connection still goes by a name.
#[inline(always)]
fn is_named(live: Live, sent: &Tuple, name: &Tuple) -> bool {
    if name.seen == Seen::Leaving as u8 {
        return is_to_endpoint(live, sent, name).is_some();
    }
    same(&name.src, &live.endpoint())
        && name.src_port == live.endpoint_port()
        && same(&name.dst, &live.snat())
        && name.dst_port == live.snat_port()
}

/// Whether a packet that leaves goes to the endpoint, or comes from it; `None` if the connection
/// is another's by now.
#[inline(always)]
pub fn is_to_endpoint(live: Live, sent: &Tuple, packet: &Tuple) -> Option<bool> {
    let (endpoint, port) = (live.endpoint(), live.endpoint_port());
    if same(&packet.dst, &endpoint)
        && packet.dst_port == port
        && same(&packet.src, &sent.src)
        && packet.src_port == live.client_port()
    {
        Some(true)
    } else if same(&packet.src, &endpoint)
        && packet.src_port == port
        && same(&packet.dst, &sent.src)
        && packet.dst_port == live.client_port()
    {
        Some(false)
    } else {
        None
    }
}

/// Whether two addresses are the same.
#[inline(always)]
pub fn same(a: &Addr, b: &Addr) -> bool {
    a.low() == b.low() && a.high() == b.high()
}
