//! The decision without a kernel: a packet in a vector, tables in memory. For tests and fuzzers.

extern crate std;

use std::boxed::Box;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::vec::Vec;

use abi::addr::Addr;
use abi::counter::Counter;
use abi::flow::{FragmentKey, HeldKey, Name, Ports, Record, Tuple};

use crate::checksum::{both, fold16, mended};
use crate::decide::{self, Verdict};
use crate::filter;
use crate::live::{Live, LiveName};
use crate::packet::{Covered, Packet};
use crate::parse::{Parsed, parse};
use crate::tables::{Added, Choice, Found, Stage, Tables};

/// A frame in memory.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether a device has yet to complete its transport checksum.
    pub partial: bool,
    /// What was sent again on the way.
    pub again: Vec<Vec<u8>>,
}

impl Frame {
    /// A frame of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), partial: false, again: Vec::new() }
    }
}

impl Packet for Frame {
    fn len(&self) -> u32 {
        self.bytes.len().try_into().unwrap_or(u32::MAX)
    }

    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.bytes.get(offset as usize..)?.first_chunk().copied()
    }

    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        *self.bytes.get_mut(offset as usize..)?.first_chunk_mut()? = *bytes;
        Some(())
    }

    fn write<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        self.store(offset, bytes)
    }

    fn mend(&mut self, offset: u32, difference: u32, covered: Covered) -> Option<()> {
        let check = u16::from_ne_bytes(self.load(offset)?);
        if covered.optional && check == 0 {
            return Some(());
        }
        // As the kernel's inet_proto_csum_by_diff has it.
        let new = if !self.partial {
            let new = mended(check, difference);
            if covered.optional && new == 0 { 0xffff } else { new }
        } else if covered.pseudo {
            fold16(both(u32::from(check), difference))
        } else {
            check
        };
        self.store(offset, &new.to_ne_bytes())
    }

    fn resize(&mut self, len: u32) -> Option<()> {
        self.bytes.resize(len as usize, 0);
        Some(())
    }

    fn insert(&mut self, link: u32, n: u32) -> Option<()> {
        let link = link as usize;
        self.bytes.splice(link..link, std::iter::repeat_n(0, n as usize));
        Some(())
    }

    fn again(&mut self, _leaves: bool) {
        self.again.push(self.bytes.clone());
    }

    fn sum(&self, offset: u32, end: u32) -> Option<u32> {
        let bytes = self.bytes.get(offset as usize..end as usize)?;
        Some(bytes.chunks(4).fold(0, |sum, chunk| {
            let mut word = [0; 4];
            word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            both(sum, u32::from_ne_bytes(word))
        }))
    }
}

/// What a test gives: the tables that user space writes.
pub trait Services {
    /// [`Tables::leads`].
    fn leads(&self) -> bool {
        true
    }
    /// [`Tables::find`].
    fn find(&self, address: &Addr, port: u16, protocol: u8) -> Found;
    /// [`Tables::is_cluster_ip`].
    fn is_cluster_ip(&self, address: &Addr) -> bool;
    /// [`Tables::is_ours`].
    fn is_ours(&self, address: &Addr) -> bool;
    /// Whether what is given says anything of an address.
    fn concerns(&self, address: &Addr) -> bool;
    /// [`Tables::is_pod`].
    fn is_pod(&self, address: &Addr) -> bool;
    /// [`Tables::choose`].
    fn choose(&self, slot: u32, client: &Addr, here: bool, random: u32) -> Choice;
    /// [`Tables::generation`].
    fn generation(&self, slot: u32) -> u32;
    /// [`Tables::serves`].
    fn serves(&self, slot: u32, address: &Addr, port: u16) -> Option<u32>;
    /// [`Tables::device`].
    fn device(&self, v6: bool) -> Option<Addr>;
}

type Flows = RefCell<HashMap<Tuple, Box<UnsafeCell<Record>>>>;
type Names = RefCell<HashMap<Tuple, Box<UnsafeCell<Name>>>>;

/// The tables.
#[derive(Debug)]
pub struct Memory<S> {
    /// What is given.
    pub services: S,
    /// How many answers may be sent.
    pub answers: Cell<u32>,
    /// The clock.
    pub now: Cell<u32>,
    /// How many established connections there may be, and how many names of them.
    pub room: [usize; 2],
    counts: RefCell<HashMap<u32, u64>>,
    established: (Flows, Names),
    new: (Flows, Names),
    datagrams: RefCell<HashMap<FragmentKey, Ports>>,
    held: RefCell<HashMap<HeldKey, Waiting>>,
    marks: RefCell<HashSet<Addr>>,
    random: Cell<u32>,
    words: RefCell<VecDeque<u32>>,
}

/// When a fragment came, and its bytes.
type Waiting = (u32, Vec<u8>);

/// All connections of a stage, and all names.
pub type Connections = (Vec<(Tuple, Record)>, Vec<(Tuple, Name)>);

impl<S: Services> Memory<S> {
    /// Tables without a connection.
    pub fn new(services: S) -> Self {
        Self {
            services,
            answers: Cell::new(1000),
            now: Cell::new(1),
            room: [usize::MAX; 2],
            counts: RefCell::default(),
            established: Default::default(),
            new: Default::default(),
            datagrams: RefCell::default(),
            held: RefCell::default(),
            marks: RefCell::default(),
            random: Cell::new(1),
            words: RefCell::default(),
        }
    }

    /// What is random next, before anything else is.
    pub fn foresee(&self, words: impl IntoIterator<Item = u32>) {
        let mut next = self.words.borrow_mut();
        next.clear();
        next.extend(words);
    }

    /// The connections of a stage and their names, in no order.
    pub fn connections(&self, stage: Stage) -> Connections {
        let (flows, names) = self.of(stage);
        (
            flows.borrow().iter().map(|(sent, cell)| (*sent, copied(cell))).collect(),
            names.borrow().iter().map(|(name, cell)| (*name, copied(cell))).collect(),
        )
    }

    /// The ports of datagrams whose first fragments have come, in no order.
    pub fn datagrams(&self) -> Vec<(FragmentKey, Ports)> {
        self.datagrams.borrow().iter().map(|(key, ports)| (*key, *ports)).collect()
    }

    /// The fragments that wait for the first of their datagram, in no order.
    pub fn held(&self) -> Vec<(HeldKey, Vec<u8>)> {
        self.held.borrow().iter().map(|(key, (_, bytes))| (*key, bytes.clone())).collect()
    }

    /// Decides on a frame with a link-layer header of fourteen bytes.
    ///
    /// # Panics
    /// It is translated, dropped or answered, and [`filter`] had it for nobody's.
    pub fn run(&self, frame: &mut Frame, way: Way) -> Verdict {
        let before = frame.bytes.clone();
        let may_be_ours = self.may_be_ours(frame, way);
        let verdict = self.decide(frame, way);
        let is_untouched = verdict == Verdict::PASS && frame.bytes == before;
        assert!(may_be_ours || is_untouched, "{way:?} {before:x?}: {verdict:?} though not marked");
        verdict
    }

    fn may_be_ours(&self, frame: &Frame, way: Way) -> bool {
        let Some(ethertype) = frame.load(12).map(u16::from_ne_bytes) else { return true };
        let may_leave = |here| filter::may_leave(frame, self, 14, ethertype, here);
        match way {
            Way::Arrives => filter::may_arrive(frame, self, 14, ethertype),
            Way::Leaves => may_leave(false),
            Way::MadeHere => may_leave(true),
        }
    }

    fn decide(&self, frame: &mut Frame, way: Way) -> Verdict {
        let Some(ethertype) = frame.load(12).map(u16::from_ne_bytes) else { return Verdict::PASS };
        let mut parsed = Parsed::default();
        if parse(frame, 14, ethertype, &mut parsed).is_none() {
            return Verdict::PASS;
        }
        let verdict = match way {
            Way::Arrives => decide::arrives(frame, self, &mut parsed),
            Way::Leaves => decide::leaves(frame, self, &mut parsed, false),
            Way::MadeHere => decide::leaves(frame, self, &mut parsed, true),
        };
        if let Some(reason) = verdict.reason() {
            self.add_one(reason);
        }
        verdict
    }

    /// How often something was counted.
    pub fn counted(&self, counter: Counter) -> u64 {
        self.counts.borrow().get(&(counter as u32)).copied().unwrap_or(0)
    }

    /// How many connections there are in a stage, and how many names.
    pub fn len(&self, stage: Stage) -> (usize, usize) {
        let (flows, names) = self.of(stage);
        (flows.borrow().len(), names.borrow().len())
    }

    /// Forgets all connections and fragments.
    pub fn clear(&self) {
        for stage in [Stage::Established, Stage::New] {
            let (flows, names) = self.of(stage);
            flows.borrow_mut().clear();
            names.borrow_mut().clear();
        }
        self.datagrams.borrow_mut().clear();
        self.held.borrow_mut().clear();
        self.marks.borrow_mut().clear();
    }

    fn is_marked(&self, address: &Addr) -> bool {
        self.marks.borrow().contains(address)
    }

    fn of(&self, stage: Stage) -> &(Flows, Names) {
        match stage {
            Stage::Established => &self.established,
            Stage::New => &self.new,
        }
    }

    fn add_one(&self, index: u32) {
        *self.counts.borrow_mut().entry(index).or_default() += 1;
    }

    fn add(&self, stage: Stage, sent: &Tuple, record: Record) -> Added {
        let [room, _] = self.room;
        let mut flows = self.of(stage).0.borrow_mut();
        if flows.contains_key(sent) {
            return Added::Taken;
        }
        if stage == Stage::Established && flows.len() >= room {
            return Added::Full;
        }
        flows.insert(*sent, Box::new(UnsafeCell::new(record)));
        Added::Fresh
    }
}

/// What is in a cell.
fn copied<V: Copy>(cell: &UnsafeCell<V>) -> V {
    // SAFETY: a cell stays with one thread, so nobody writes meanwhile, and no reference is kept.
    unsafe { *cell.get() }
}

/// How a packet comes to the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It arrives on a device.
    Arrives,
    /// It leaves by a device, having arrived on another.
    Leaves,
    /// It leaves by a device, having been made on the node.
    MadeHere,
}

impl<S: Services> Tables for Memory<S> {
    fn seconds(&self) -> u32 {
        self.now.get()
    }

    fn random(&self) -> u32 {
        if let Some(word) = self.words.borrow_mut().pop_front() {
            return word;
        }
        // Knuth's multiplier: any sequence will do.
        self.random.set(self.random.get().wrapping_mul(2_654_435_761).wrapping_add(12_345));
        self.random.get()
    }

    fn count(&self, counter: Counter) {
        self.add_one(counter as u32);
    }

    fn may_answer(&self) -> bool {
        let left = self.answers.get();
        self.answers.set(left.saturating_sub(1));
        left > 0
    }

    fn leads(&self) -> bool {
        self.services.leads()
    }

    fn find(&self, address: &Addr, port: u16, protocol: u8) -> Found {
        self.services.find(address, port, protocol)
    }

    fn is_cluster_ip(&self, address: &Addr) -> bool {
        self.services.is_cluster_ip(address)
    }

    fn is_ours(&self, address: &Addr) -> bool {
        self.services.is_ours(address)
    }

    fn choose(&self, slot: u32, client: &Addr, here: bool) -> Choice {
        self.services.choose(slot, client, here, self.random())
    }

    fn generation(&self, slot: u32) -> u32 {
        self.services.generation(slot)
    }

    fn serves(&self, slot: u32, address: &Addr, port: u16) -> Option<u32> {
        self.services.serves(slot, address, port)
    }

    fn device(&self, v6: bool) -> Option<Addr> {
        self.services.device(v6)
    }

    fn is_pod(&self, address: &Addr) -> bool {
        self.services.is_pod(address)
    }

    fn note_ports(&self, key: &FragmentKey, ports: &Ports) {
        self.datagrams.borrow_mut().insert(*key, *ports);
    }

    fn ports(&self, key: &FragmentKey) -> Option<Ports> {
        self.datagrams.borrow().get(key).copied()
    }

    fn held(&self, key: &HeldKey) -> Option<(u32, u32)> {
        let held = self.held.borrow();
        let (at, bytes) = held.get(key)?;
        Some((*at, u32::try_from(bytes.len()).ok()?))
    }

    fn hold(&self, packet: &impl Packet, key: &HeldKey, l3: u32, len: u32) -> Added {
        let bytes: Option<Vec<u8>> =
            (l3..l3 + len).map(|at| packet.load(at).map(|[byte]: [u8; 1]| byte)).collect();
        let Some(bytes) = bytes else { return Added::Full };
        let mut held = self.held.borrow_mut();
        if held.contains_key(key) {
            return Added::Taken;
        }
        held.insert(*key, (self.seconds(), bytes));
        Added::Fresh
    }

    fn become_held(&self, packet: &mut impl Packet, key: &HeldKey, l3: u32) -> Option<()> {
        let held = self.held.borrow();
        let (_, bytes) = held.get(key)?;
        packet.resize(l3 + u32::try_from(bytes.len()).ok()?)?;
        (l3..).zip(bytes).try_for_each(|(at, byte)| packet.store(at, &[*byte]))
    }

    fn let_go(&self, key: &HeldKey) {
        self.held.borrow_mut().remove(key);
    }

    fn may_arrive(&self, dst: &Addr) -> bool {
        self.is_marked(dst) || self.services.concerns(dst)
    }

    fn may_leave(&self, src: &Addr, dst: &Addr, made_here: bool) -> bool {
        let is_asked = |addr| made_here && self.services.concerns(addr);
        [dst, src].into_iter().any(|addr| self.is_marked(addr) || is_asked(addr))
    }

    fn mark(&self, address: &Addr) {
        self.marks.borrow_mut().insert(*address);
    }

    fn flow(&self, stage: Stage, sent: &Tuple) -> Option<Live> {
        let flows = self.of(stage).0.borrow();
        // SAFETY: the record is in a box of its own, which outlives the decision except for one that
        // the decision itself removes, and does not look at afterwards.
        flows.get(sent).map(|record| unsafe { Live::new(record.get()) })
    }

    fn add_flow(&self, stage: Stage, sent: &Tuple, record: Live) -> Added {
        // SAFETY: a record of this table's other stage.
        self.add(stage, sent, unsafe { *record.as_ptr() })
    }

    fn add_new(&self, sent: &Tuple, fill: impl FnOnce(&mut Record)) -> Added {
        let mut record = Record::default();
        fill(&mut record);
        self.add(Stage::New, sent, record)
    }

    fn remove_flow(&self, stage: Stage, sent: &Tuple) {
        self.of(stage).0.borrow_mut().remove(sent);
    }

    fn named(&self, name: &Tuple) -> Option<LiveName> {
        let names = self.established.1.borrow();
        // SAFETY: as with a record.
        names.get(name).map(|known| unsafe { LiveName::new(known.get()) })
    }

    fn name(&self, stage: Stage, name: &Tuple, sent: &mut Tuple) -> bool {
        match self.of(stage).1.borrow().get(name) {
            Some(known) => {
                *sent = copied(known).sent;
                true
            }
            None => false,
        }
    }

    fn add_name(&self, stage: Stage, name: &Tuple, sent: &Tuple) -> Added {
        let mut names = self.of(stage).1.borrow_mut();
        if names.contains_key(name) {
            return Added::Taken;
        }
        let [_, room] = self.room;
        if stage == Stage::Established && names.len() >= room {
            return Added::Full;
        }
        names.insert(*name, Box::new(UnsafeCell::new(Name::of(*sent))));
        Added::Fresh
    }

    fn add_compared(&self, name: &Tuple, record: Live, sent: &Tuple) -> Added {
        let added = self.add_name(Stage::Established, name, sent);
        if added == Added::Fresh
            && let Some(known) = self.named(name)
        {
            known.compare(record, sent, self.seconds());
        }
        added
    }

    fn remove_name(&self, stage: Stage, name: &Tuple) {
        self.of(stage).1.borrow_mut().remove(name);
    }
}
