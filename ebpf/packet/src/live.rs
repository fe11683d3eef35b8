//! A record where it lies, while others may write to it; and a name.

use core::mem::offset_of;

use abi::addr::Addr;
use abi::flow::{Name, Record, Seen, Tuple, flag, half, name};

use crate::parse::{Parsed, SCTP, Segment, TCP, tcp};
use crate::words;

/// A record in a map. Fields are read and written one by one, each whole; two packets of one
/// connection may do so at once, on two processors.
#[derive(Clone, Copy, Debug)]
pub struct Live(*mut Record);

/// Which end of a connection has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The client.
    Client,
    /// The endpoint.
    Endpoint,
}

macro_rules! field {
    ($(#[$doc:meta])* $name:ident: Addr) => {
        field!($(#[$doc])* $name = $name: Addr);
    };
    ($(#[$doc:meta])* $name:ident = $($field:ident).+: Addr) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(self) -> Addr {
            // SAFETY: valid by the promise of `new`; it begins at a multiple of eight.
            unsafe { words::read(&raw const (*self.0).$($field).+) }
        }
    };
    ($(#[$doc:meta])* $name:ident: $type:ty) => {
        field!($(#[$doc])* $name = $name: $type);
    };
    ($(#[$doc:meta])* $name:ident = $($field:ident).+: $type:ty) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(self) -> $type {
            // SAFETY: valid by the promise of `new`; plain data, read whole.
            unsafe { (&raw const (*self.0).$($field).+).read_volatile() }
        }
    };
}

const _: () = assert!(
    align_of::<Record>() == 8
        && offset_of!(Record, endpoint).is_multiple_of(8)
        && offset_of!(Record, snat).is_multiple_of(8)
);
const _: () = assert!(
    align_of::<Name>() == 8
        && offset_of!(Name, sent.src).is_multiple_of(8)
        && offset_of!(Name, sent.dst).is_multiple_of(8)
        && offset_of!(Name, snat).is_multiple_of(8)
);

macro_rules! set {
    ($name:ident, $field:ident: $type:ty) => {
        #[inline(always)]
        fn $name(self, value: $type) {
            // SAFETY: as above.
            unsafe { (&raw mut (*self.0).$field).write_volatile(value) };
        }
    };
}

impl Live {
    /// A record at that place.
    ///
    /// # Safety
    /// It stays a record, though perhaps not the same one, for as long as the value is used.
    #[inline(always)]
    pub const unsafe fn new(record: *mut Record) -> Self {
        Self(record)
    }

    /// Where it lies.
    #[inline(always)]
    pub const fn as_ptr(self) -> *const Record {
        self.0
    }

    field!(
        /// Where it goes.
        endpoint: Addr
    );
    field!(
        /// The port there.
        endpoint_port: u16
    );
    field!(
        /// The address that the endpoint sees.
        snat: Addr
    );
    field!(
        /// The port that the endpoint sees; zero while there is none.
        snat_port: u16
    );
    field!(
        /// The client's port after DNAT.
        client_port: u16
    );
    field!(
        /// What is done with it.
        flags: u8
    );
    field!(
        /// What the client has done.
        forward: u8
    );
    field!(
        /// What the endpoint has done.
        reply: u8
    );
    field!(
        /// Its frontend's slot.
        slot: u32
    );
    field!(
        /// Where its endpoint is counted.
        id: u32
    );
    field!(
        /// Its generation of serving endpoints.
        generation: u32
    );
    field!(
        /// When its last packet came.
        seen: u32
    );
    field!(
        /// What its client must acknowledge.
        proof: u32
    );
    field!(
        /// The client's packets.
        forward_packets: u32
    );
    field!(
        /// The endpoint's packets.
        reply_packets: u32
    );
    field!(
        /// Their bytes.
        forward_bytes: u64
    );
    field!(
        /// As above.
        reply_bytes: u64
    );
    set!(set_forward_packets, forward_packets: u32);
    set!(set_reply_packets, reply_packets: u32);
    set!(set_forward_bytes, forward_bytes: u64);
    set!(set_reply_bytes, reply_bytes: u64);
    set!(set_forward, forward: u8);
    set!(set_reply, reply: u8);
    set!(set_seen, seen: u32);
    set!(set_proof, proof: u32);
    set!(write_generation, generation: u32);
    set!(write_snat, snat: Addr);
    set!(write_snat_port, snat_port: u16);

    /// Notes in which generation the endpoint still serves.
    #[inline(always)]
    pub fn set_generation(self, generation: u32) {
        self.write_generation(generation);
    }

    /// Notes what the endpoint sees; the port last, because it says that both are there.
    #[inline(always)]
    pub fn set_snat(self, address: Addr, port: u16) {
        self.write_snat(address);
        self.write_snat_port(port);
    }

    /// Whether that is done with it.
    #[inline(always)]
    pub fn has(self, flag: u8) -> bool {
        self.flags() & flag != 0
    }

    /// Whether both ends are done with it.
    #[inline(always)]
    pub fn is_closed(self) -> bool {
        Record::is_closed(self.forward(), self.reply())
    }

    /// Whether the client has shown, by this packet, that it receives what the endpoint sends.
    #[inline(always)]
    pub fn is_proved_by(self, protocol: u8, segment: &Segment) -> bool {
        if self.reply() & half::OPEN == 0 {
            return false;
        }
        match protocol {
            TCP => {
                segment.flags & (tcp::ACK | tcp::SYN | tcp::RST) == tcp::ACK
                    && segment.acknowledges == self.proof()
            }
            SCTP => segment.flags & tcp::SYN == 0,
            _ => true,
        }
    }

    /// Notes a packet.
    #[inline(always)]
    pub fn note(self, from: From, parsed: &Parsed, seconds: u32) {
        let (protocol, segment) = (parsed.protocol, &parsed.segment);
        let bytes = u64::from(parsed.end.wrapping_sub(parsed.l3));
        match from {
            From::Client => {
                self.set_forward_packets(self.forward_packets().wrapping_add(1));
                self.set_forward_bytes(self.forward_bytes().wrapping_add(bytes));
            }
            From::Endpoint => {
                self.set_reply_packets(self.reply_packets().wrapping_add(1));
                self.set_reply_bytes(self.reply_bytes().wrapping_add(bytes));
            }
        }
        let (own, other) = match from {
            From::Client => (self.forward(), self.reply()),
            From::Endpoint => (self.reply(), self.forward()),
        };
        let mut now = own;
        if other & half::OPEN != 0 {
            now |= half::CONFIRMED;
        }
        if protocol == TCP || protocol == SCTP {
            if segment.flags & tcp::SYN != 0 {
                now |= half::OPEN;
                if from == From::Endpoint && segment.flags & tcp::ACK != 0 {
                    self.set_proof(segment.sequence.wrapping_add(1));
                }
            }
            if protocol == SCTP {
                now |= half::OPEN;
            }
            if segment.flags & tcp::FIN != 0 {
                now |= half::FIN;
            }
            // Who goes on after a reset has not sent it: it was forged.
            now =
                if segment.flags & tcp::RST != 0 { now | half::RESET } else { now & !half::RESET };
        } else {
            now |= half::OPEN;
        }
        if now != own {
            match from {
                From::Client => self.set_forward(now),
                From::Endpoint => self.set_reply(now),
            }
        }
        if self.seen() != seconds {
            self.set_seen(seconds);
        }
    }

    /// The name of both directions between DNAT and SNAT.
    #[inline(always)]
    pub fn leaving(self, sent: &Tuple) -> Tuple {
        Tuple::between(
            &sent.src,
            self.client_port(),
            &self.endpoint(),
            self.endpoint_port(),
            sent.protocol,
        )
    }

    /// The name of the endpoint's packets to the masqueraded source.
    #[inline(always)]
    pub fn returning(self, sent: &Tuple, snat: &Addr, snat_port: u16) -> Tuple {
        Tuple {
            src: self.endpoint(),
            dst: *snat,
            src_port: self.endpoint_port(),
            dst_port: snat_port,
            protocol: sent.protocol,
            seen: Seen::Returning as u8,
            pad: 0,
        }
    }

    /// Whether its replies are restored where they arrive.
    #[inline(always)]
    pub fn is_host(self) -> bool {
        self.has(flag::HOST)
    }
}

/// A name in `NAMES`, read and written as a record is. What it is read for may be another connection's
/// by then, which the reader sees by the client's end.
#[derive(Clone, Copy, Debug)]
pub struct LiveName(*mut Name);

impl LiveName {
    /// A name at that place.
    ///
    /// # Safety
    /// As with [`Live::new`].
    #[inline(always)]
    pub const unsafe fn new(name: *mut Name) -> Self {
        Self(name)
    }

    field!(
        /// The address that the endpoint sees.
        snat: Addr
    );
    field!(
        /// The port that the endpoint sees.
        snat_port: u16
    );
    field!(
        /// What is known of it.
        flags: u16
    );
    field!(
        /// When it was compared.
        compared: u32
    );
    field!(
        /// The endpoint's packets since.
        packets: u32
    );
    field!(
        /// Their bytes.
        bytes: u64
    );
    set!(set_snat, snat: Addr);
    set!(set_snat_port, snat_port: u16);
    set!(set_flags, flags: u16);
    set!(set_compared, compared: u32);
    set!(set_packets, packets: u32);
    set!(set_bytes, bytes: u64);

    field!(
        /// Where the connection comes from.
        client = sent.src: Addr
    );

    field!(
        /// Its port there.
        client_port = sent.src_port: u16
    );

    field!(
        /// Where its client sends to.
        frontend = sent.dst: Addr
    );

    field!(
        /// The port there.
        frontend_port = sent.dst_port: u16
    );

    /// Whether it says all that a packet needs which comes in that second.
    #[inline(always)]
    pub fn is_plain(self, seconds: u32) -> bool {
        self.flags() & name::PLAIN != 0 && self.compared() == seconds
    }

    /// Whether the source is rewritten.
    #[inline(always)]
    pub fn is_masqueraded(self) -> bool {
        self.flags() & name::MASQUERADE != 0
    }

    /// Notes a packet of the endpoint's.
    #[inline(always)]
    pub fn note(self, parsed: &Parsed) {
        let bytes = u64::from(parsed.end.wrapping_sub(parsed.l3));
        self.set_packets(self.packets().wrapping_add(1));
        self.set_bytes(self.bytes().wrapping_add(bytes));
    }

    /// Compares it with the record: what was counted goes there, what packets need comes here.
    #[inline(always)]
    pub fn compare(self, live: Live, sent: &Tuple, seconds: u32) {
        let packets = self.packets();
        if packets != 0 {
            live.set_reply_packets(live.reply_packets().wrapping_add(packets));
            live.set_reply_bytes(live.reply_bytes().wrapping_add(self.bytes()));
            self.set_packets(0);
            self.set_bytes(0);
        }
        let masquerades = live.has(flag::MASQUERADE);
        // Once it has closed, the endpoint's segments change nothing more but by a reset.
        let is_plain = live.reply() & !half::FIN == half::OPEN | half::CONFIRMED
            && live.client_port() == sent.src_port
            && !live.is_host()
            && (!masquerades || live.snat_port() != 0);
        self.set_snat(live.snat());
        self.set_snat_port(live.snat_port());
        self.set_flags(
            if is_plain { name::PLAIN } else { 0 } | if masquerades { name::MASQUERADE } else { 0 },
        );
        self.set_compared(seconds);
    }
}
