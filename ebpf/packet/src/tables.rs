//! What the decision looks up: the kernel's maps, or a test's.

use abi::addr::Addr;
use abi::counter::Counter;
use abi::flow::{FragmentKey, HeldKey, Ports, Record, Tuple};

use crate::decide::Verdict;
use crate::flow;
use crate::live::{Live, LiveName};
use crate::packet::Packet;

/// Which of the two pairs of maps a connection is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing displaces it.
    Established,
    /// Newer ones may displace it.
    New,
}

/// Where a packet comes from, as far as routes care.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A pod of this node.
    Pod = 0,
    /// This node.
    Node = 1,
    /// Anywhere else.
    Outside = 2,
}

/// What a destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A frontend, in that slot.
    Frontend(u32),
    /// A cluster IP at a port that it does not have: refused.
    Undefined,
    /// In a Service CIDR, but no Service's: dropped.
    Unallocated,
    /// None of ours.
    Stranger,
}

/// What a frontend offers to one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This endpoint.
    Endpoint(Chosen),
    /// There is none anywhere: refused.
    Nobody,
    /// There is none here: dropped.
    Nowhere,
    /// The source is outside of the frontend's source ranges: dropped.
    NotAllowed,
    /// The set changed at every look: dropped; the client sends again.
    Unsettled,
}

/// An endpoint for a new connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Its address.
    pub address: Addr,
    /// Its port, network byte order.
    pub port: u16,
    /// Not zero if the source is rewritten whichever endpoint is chosen.
    pub masquerade: u16,
    /// Where it is counted.
    pub id: u32,
}

/// What became of a new entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is in.
    Fresh,
    /// There was one.
    Taken,
    /// There is no room.
    Full,
}

/// The tables.
///
/// The methods that have a body are steps of the decision. The kernel's programs call each as a
/// function of its own, which the verifier follows once and not once for every way that leads to it.
pub trait Tables: Sized {
    /// The monotonic clock, in seconds.
    fn seconds(&self) -> u32;
    /// A random word.
    fn random(&self) -> u32;
    /// Adds one.
    fn count(&self, counter: Counter);
    /// Whether one more answer may be sent now.
    fn may_answer(&self) -> bool;

    /// Whether new connections are led, and not left to others.
    fn leads(&self) -> bool;
    /// What a destination is.
    fn find(&self, address: &Addr, port: u16, protocol: u8) -> Found;
    /// Whether an address is a cluster IP.
    fn is_cluster_ip(&self, address: &Addr) -> bool;
    /// Whether a packet that leaves for an address leaves for a pod of this node.
    fn is_pod(&self, address: &Addr) -> bool;
    /// An endpoint for a new connection of a client.
    fn choose(&self, slot: u32, client: &Addr, here: bool) -> Choice;
    /// The generation of a slot's serving endpoints.
    fn generation(&self, slot: u32) -> u32;
    /// Whether an endpoint is among a slot's serving ones; gives their generation.
    fn serves(&self, slot: u32, address: &Addr, port: u16) -> Option<u32>;
    /// The address of the device by which the packet leaves, for masqueraded sources.
    fn device(&self, v6: bool) -> Option<Addr>;

    /// Notes the ports of a datagram, as they stand in its first fragment.
    fn note_ports(&self, key: &FragmentKey, ports: &Ports);
    /// The ports of a datagram, if its first fragment came before.
    fn ports(&self, key: &FragmentKey) -> Option<Ports>;
    /// When the fragment in a place came, and how long it is.
    fn held(&self, key: &HeldKey) -> Option<(u32, u32)>;
    /// Copies a packet's `len` bytes from `l3` on to a place.
    fn hold(&self, packet: &impl Packet, key: &HeldKey, l3: u32, len: u32) -> Added;
    /// Turns a packet, from `l3` on, into the fragment in a place.
    fn become_held(&self, packet: &mut impl Packet, key: &HeldKey, l3: u32) -> Option<()>;
    /// Frees a place.
    fn let_go(&self, key: &HeldKey);
    /// Whether an address is a Service's, or one of the node that serves node ports.
    fn is_ours(&self, address: &Addr) -> bool;

    /// The record of a connection.
    fn flow(&self, stage: Stage, sent: &Tuple) -> Option<Live>;
    /// Adds the record of a connection that is in the other stage.
    fn add_flow(&self, stage: Stage, sent: &Tuple, record: Live) -> Added;
    /// Removes one.
    fn remove_flow(&self, stage: Stage, sent: &Tuple);
    /// Adds the record of a new connection ([`Stage::New`]), which is filled in place.
    fn add_new(&self, sent: &Tuple, fill: impl FnOnce(&mut Record)) -> Added;
    /// An established connection's name.
    fn named(&self, name: &Tuple) -> Option<LiveName>;
    /// Whether a connection goes by a name; its key is left in `sent`.
    fn name(&self, stage: Stage, name: &Tuple, sent: &mut Tuple) -> bool;
    /// Adds a name.
    fn add_name(&self, stage: Stage, name: &Tuple, sent: &Tuple) -> Added;
    /// Adds an established connection's name that was compared with its record.
    fn add_compared(&self, name: &Tuple, record: Live, sent: &Tuple) -> Added;
    /// Removes a name.
    fn remove_name(&self, stage: Stage, name: &Tuple);

    /// Whether a packet that arrives for an address may be one of ours.
    fn may_arrive(&self, dst: &Addr) -> bool;
    /// The same of one that leaves with those addresses; `made_here` if it was on this node.
    fn may_leave(&self, src: &Addr, dst: &Addr, made_here: bool) -> bool;
    /// Makes packets with an address such ones: a connection in the tables has it.
    fn mark(&self, address: &Addr);

    /// Counts a connection that was led to the endpoint of that id.
    fn led(&self, _id: u32) {}
    /// Counts, and tells, that a packet to a frontend was refused, or that it is dropped.
    fn turned_away(&self, _slot: u32, _refused: bool) {}
    /// Counts the packets of a connection that is removed.
    fn ended(&self, _live: Live) {}

    /// [`flow::still_serves`].
    fn still_serves(&self, live: Live) -> bool {
        flow::still_serves(self, live)
    }
    /// [`flow::forget`].
    fn forget(&self, stage: Stage, live: Live, sent: &Tuple) {
        flow::forget(self, stage, live, sent);
    }
    /// [`flow::establish`].
    fn establish(&self, live: Live, sent: &Tuple) {
        flow::establish(self, live, sent);
    }
    /// [`flow::renew`].
    fn renew(&self, live: Live, sent: &Tuple) {
        flow::renew(self, live, sent);
    }
    /// [`flow::compare`].
    fn compare(&self, live: Live, name: &Tuple, sent: &Tuple) {
        flow::compare(self, live, name, sent);
    }
    /// [`flow::open`].
    fn open(&self, sent: &Tuple, slot: u32, chosen: &Chosen, here: bool) -> Result<(), Verdict> {
        flow::open(self, sent, slot, chosen, here)
    }
    /// [`flow::masquerade`].
    fn masquerade(&self, found: flow::Found, sent: &Tuple) -> Result<(), Verdict> {
        flow::masquerade(self, found, sent)
    }
    /// [`flow::claim`].
    fn claim(&self, stage: Stage, name: &Tuple, sent: &Tuple, forced: bool) -> bool {
        flow::claim(self, stage, name, sent, forced)
    }
}
