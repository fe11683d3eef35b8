//! Connections that the packet programs translate: one record each, and the names it goes by.
//!
//! ```text
//!              client ──▶ frontend                        as sent: the record's key
//!   ingress      │ DNAT
//!              client ──▶ endpoint                        Leaving:   a name (both directions)
//!   egress       │ SNAT, if masqueraded
//!              device ──▶ endpoint   endpoint ──▶ device  Returning: a name (the reply)
//! ```
//!
//! A record and its names are made and removed together. `NEW_FLOWS` and `NEW_NAMES` are LRU maps
//! and hold connections that have not proved that their client exists; `FLOWS` and `NAMES` are
//! plain maps and hold the rest, so a flood of new ones displaces other new ones only.

use crate::addr::Addr;

/// Source ports of masqueraded connections: IANA's dynamic ports (RFC 6335 §6). User space keeps
/// the node's own sockets from them.
pub const SNAT_FIRST: u16 = 49_152;
/// Their number, less one: a mask.
pub const SNAT_MASK: u16 = 0x3fff;

/// Where a packet of that form is seen.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Seen {
    /// From the client, as it was sent: the key of the record.
    Sent = 0,
    /// After DNAT and before SNAT, in either direction.
    Leaving = 1,
    /// From the endpoint, to the masqueraded source.
    Returning = 2,
}

/// Addresses, ports and protocol of a packet.
///
/// ```text
///  0      16     32         34         36  37     38  40
///  │ src  │ dst  │ src port │ dst port │ p │ seen │ 0 │
/// ```
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port, network byte order.
    pub src_port: u16,
    /// Destination port, network byte order.
    pub dst_port: u16,
    /// The IP protocol number.
    pub protocol: u8,
    /// Where it is seen ([`Seen`]).
    pub seen: u8,
    /// Zero.
    pub pad: u16,
}

impl Tuple {
    /// The tuple as it is seen somewhere else.
    #[inline(always)]
    #[must_use]
    pub const fn at(self, seen: Seen) -> Self {
        Self { seen: seen as u8, ..self }
    }

    /// The way back.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            ..self
        }
    }

    /// Both directions under one name ([`Seen::Leaving`]): the smaller end first.
    #[inline(always)]
    #[must_use]
    pub const fn leaving(&self) -> Self {
        Self::between(&self.src, self.src_port, &self.dst, self.dst_port, self.protocol)
    }

    /// The name ([`Seen::Leaving`]) of both directions between two ends.
    #[inline(always)]
    #[must_use]
    pub const fn between(a: &Addr, a_port: u16, b: &Addr, b_port: u16, protocol: u8) -> Self {
        let (src, src_port, dst, dst_port) = if is_behind(a, a_port, b, b_port) {
            (b, b_port, a, a_port)
        } else {
            (a, a_port, b, b_port)
        };
        Self {
            src: *src,
            dst: *dst,
            src_port,
            dst_port,
            protocol,
            seen: Seen::Leaving as u8,
            pad: 0,
        }
    }

    /// Makes the name of two ends that of the same two at other ports.
    #[inline(always)]
    pub const fn set_ports(&mut self, a: &Addr, a_port: u16, b: &Addr, b_port: u16) {
        (self.src_port, self.dst_port) =
            if is_behind(a, a_port, b, b_port) { (b_port, a_port) } else { (a_port, b_port) };
    }
}

/// Whether an end stands behind another one in the name of both directions.
#[inline(always)]
pub const fn is_behind(a: &Addr, a_port: u16, b: &Addr, b_port: u16) -> bool {
    if a.low() != b.low() {
        a.low() > b.low()
    } else if a.high() != b.high() {
        a.high() > b.high()
    } else {
        a_port > b_port
    }
}

/// Value of `NAMES`: whose name it is, and what most packets need of the record. That is believed for
/// the second in which the two were compared, so that a packet finds its connection by one lookup.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Name {
    /// The key of the record.
    pub sent: Tuple,
    /// [`Record::snat`].
    pub snat: Addr,
    /// [`Record::snat_port`].
    pub snat_port: u16,
    /// [`name`] flags.
    pub flags: u16,
    /// The second of the monotonic clock in which it was compared with the record last; zero before.
    pub compared: u32,
    /// Packets of the endpoint that are yet to be added to the record's.
    pub packets: u32,
    /// Zero.
    pub pad: u32,
    /// Their bytes.
    pub bytes: u64,
}

/// What is known of a connection by its [`Name`], in [`Name::flags`].
pub mod name {
    /// Both ends are open and the ports are the client's own: nothing but addresses and ports is to be
    /// done, and nothing but packets to be counted.
    pub const PLAIN: u16 = 1;
    /// Its source is rewritten when it leaves this node.
    pub const MASQUERADE: u16 = 2;
}

impl Name {
    /// A name that was not compared yet.
    #[inline(always)]
    #[must_use]
    pub const fn of(sent: Tuple) -> Self {
        Self {
            sent,
            snat: Addr::ANY_V6,
            snat_port: 0,
            flags: 0,
            compared: 0,
            packets: 0,
            pad: 0,
            bytes: 0,
        }
    }
}

/// Key of `DATAGRAMS`: a datagram in parts, of which only the first has the ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// The datagram's identification.
    pub id: u32,
    /// The IP protocol number.
    pub protocol: u8,
    /// One for what leaves, zero for what arrives.
    pub leaves: u8,
    /// Zero.
    pub pad: u16,
}

/// Value of `DATAGRAMS`: what the first fragment said.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// Source port and destination port as they stand in memory.
    pub ports: u32,
    /// When it came, in seconds of the monotonic clock.
    pub at: u32,
}

/// For how many seconds a datagram's fragments belong together: identifications are used again.
pub const DATAGRAM_SECONDS: u32 = 5;

/// Key of `HELD`: one of the fragments that came before the first of their datagram.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeldKey {
    /// The datagram.
    pub datagram: FragmentKey,
    /// Which of its places it took, below [`HELD_PLACES`].
    pub place: u32,
}

/// Fragments that are held of one datagram at most.
pub const HELD_PLACES: u32 = 16;
/// Their bytes at most.
pub const HELD_BYTES: u32 = 24 << 10;
/// The longest fragment that is held: what an Ethernet frame carries, be it a jumbo one.
pub const HELD_LEN: usize = 9216;

/// Value of `HELD`: a fragment, from its network header on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// When it came, in seconds of the monotonic clock.
    pub at: u32,
    /// How long it is.
    pub len: u32,
    /// Its bytes; what is behind them means nothing.
    pub bytes: [u8; HELD_LEN],
}

/// What is known of one end's half of a connection, in [`Record::forward`] and [`Record::reply`].
pub mod half {
    /// It has opened: TCP's SYN, SCTP's INIT, or any packet of UDP.
    pub const OPEN: u8 = 1;
    /// It has sent after the other end had opened.
    pub const CONFIRMED: u8 = 2;
    /// It has closed.
    pub const FIN: u8 = 4;
    /// It has broken off.
    pub const RESET: u8 = 8;
}

/// What is done with a connection's packets, in [`Record::flags`].
pub mod flag {
    /// Its source is rewritten when it leaves this node.
    pub const MASQUERADE: u8 = 1;
    /// It was made by the node itself, so its replies are restored where they arrive.
    pub const HOST: u8 = 2;
    /// Its source port is rewritten, so that replies are found, but not its address.
    pub const KEEP_ADDRESS: u8 = 4;
    /// netfilter translates it: it was there before. Its client's port after DNAT is zero, which is
    /// nobody's.
    pub const NETFILTER: u8 = 8;
}

/// One connection. Its key is the [`Tuple`] that the client sends ([`Seen::Sent`]).
///
/// What the client's packets write and what the endpoint's write are different fields, because two
/// processors may be at it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Where it goes.
    pub endpoint: Addr,
    /// The address that the endpoint sees, once it was masqueraded.
    pub snat: Addr,
    /// The endpoint's port, network byte order.
    pub endpoint_port: u16,
    /// The port that the endpoint sees, network byte order; zero before the first packet left.
    pub snat_port: u16,
    /// The client's port after DNAT, network byte order: its own, unless another connection to the
    /// same endpoint has the same.
    pub client_port: u16,
    /// [`flag`]s.
    pub flags: u8,
    /// What the client's [`half`] has done; only packets of the client write it.
    pub forward: u8,
    /// What the endpoint's [`half`] has done; only its packets write it.
    pub reply: u8,
    /// Zero.
    pub pad: [u8; 3],
    /// The slot of the frontend, for its `serving` head.
    pub slot: u32,
    /// The generation of the serving endpoints in which the endpoint was last found.
    pub generation: u32,
    /// When its last packet came, in seconds of the monotonic clock.
    pub seen: u32,
    /// The acknowledgement that a client who received the endpoint's SYN-ACK sends (TCP).
    pub proof: u32,
    /// Where the endpoint is counted ([`crate::endpoint::Endpoint`]).
    pub id: u32,
    /// The client's packets.
    pub forward_packets: u32,
    /// The endpoint's packets.
    pub reply_packets: u32,
    /// Their bytes, from the network header on.
    pub forward_bytes: u64,
    /// As above.
    pub reply_bytes: u64,
}

impl Record {
    /// Adds the endpoint's packets that only its name knows of.
    pub const fn add(&mut self, name: &Name) {
        self.reply_packets = self.reply_packets.wrapping_add(name.packets);
        self.reply_bytes = self.reply_bytes.wrapping_add(name.bytes);
    }

    /// Its packets, in both directions.
    pub fn packets(&self) -> u64 {
        u64::from(self.forward_packets) + u64::from(self.reply_packets)
    }

    /// Their bytes.
    pub const fn bytes(&self) -> u64 {
        self.forward_bytes.wrapping_add(self.reply_bytes)
    }

    /// Whether both ends are done with it.
    #[inline(always)]
    pub const fn is_closed(forward: u8, reply: u8) -> bool {
        (forward | reply) & half::RESET != 0 || forward & reply & half::FIN != 0
    }
}

const _: () = assert!(size_of::<Tuple>() == 40);
const _: () = assert!(size_of::<Record>() == 88);
const _: () = assert!(size_of::<Name>() == 80);
const _: () = assert!(size_of::<FragmentKey>() == 40);
const _: () = assert!(size_of::<Ports>() == 8);
const _: () = assert!(size_of::<HeldKey>() == 44);
const _: () = assert!(size_of::<Held>() == 8 + HELD_LEN);

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::{Seen, Tuple};
    use crate::addr::Addr;

    fn tuple(src: &str, dst: &str, src_port: u16, dst_port: u16) -> Tuple {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let (src, dst) = (addr(src), addr(dst));
        let (src_port, dst_port) = (src_port.to_be(), dst_port.to_be());
        Tuple { src, dst, src_port, dst_port, protocol: 6, seen: Seen::Sent as u8, pad: 0 }
    }

    #[test]
    fn both_directions_have_one_name() {
        for tuple in [
            tuple("10.0.0.1", "10.0.0.2", 4711, 80),
            tuple("10.0.0.2", "10.0.0.1", 4711, 80),
            tuple("10.0.0.1", "10.0.0.1", 4711, 80),
            tuple("fd00::1", "fd01::1", 80, 4711),
            tuple("fd00::1", "fd00::2", 80, 4711),
        ] {
            assert_eq!(tuple.leaving(), tuple.reversed().leaving());
            assert_eq!(tuple.reversed().reversed(), tuple);
        }
    }

    #[test]
    fn the_name_at_another_port_is_that_of_the_tuple_with_the_port() {
        for (src, dst) in [("10.0.0.1", "10.0.0.2"), ("fd01::1", "fd00::1"), ("::1", "::1")] {
            let mut name = tuple(src, dst, 4711, 80).leaving();
            for port in [53, 4712, 60_000] {
                let other = tuple(src, dst, port, 80);
                name.set_ports(&other.src, other.src_port, &other.dst, other.dst_port);
                assert_eq!(name, other.leaving());
            }
        }
    }
}
