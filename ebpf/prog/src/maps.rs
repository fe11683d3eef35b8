//! Every map, and the question that it answers.

use core::arch::asm;

use abi::addr::Addr;
use abi::address::{AddressValue, PrefixFlags, RangeKey};
use abi::affinity::{AffinityKey, AffinityValue};
use abi::count::{EndpointCounts, ServiceCounts};
use abi::counter::Counter;
use abi::device::Device;
use abi::dns::{N_FAMILIES, OwnServer};
use abi::drop::Dropped;
use abi::endpoint::Endpoint;
use abi::filter::Filter;
use abi::flow::{FragmentKey, Held, HeldKey, Name, Ports, Record, Tuple};
use abi::frontend::{FrontendKey, FrontendValue};
use abi::node::Node;
use abi::slot::Slot;
use abi::socket::{self, Socket, TcpPeer, UdpPeer};
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{
    Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage, SockMap,
};
use aya_ebpf::macros::btf_map;
use packet::parse::Parsed;

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
/// Takes memory for the entries that there are.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

// The loader sets the sizes of the first five from its configuration.

/// Is this address a Service's, and in which slot does it stand?
#[btf_map]
pub(crate) static FRONTENDS: HashMap<FrontendKey, FrontendValue, 65_536> = HashMap::new();

/// What becomes of new connections to a frontend, now?
#[btf_map]
pub(crate) static SLOTS: Array<Slot, 65_536, MMAPABLE> = Array::new();

/// Who serves?
#[btf_map]
pub(crate) static ENDPOINTS: Array<Endpoint, 524_288, MMAPABLE> = Array::new();

/// What did an endpoint serve?
#[btf_map]
pub(crate) static ENDPOINT_COUNTS: Array<EndpointCounts, 524_288, MMAPABLE> = Array::new();

/// What became of the rest that a Service port was asked?
#[btf_map]
pub(crate) static SERVICE_COUNTS: Array<ServiceCounts, 65_536, MMAPABLE> = Array::new();

/// May this source use a frontend that asks?
#[btf_map]
pub(crate) static RANGES: LpmTrie<RangeKey, u32, 262_144> = LpmTrie::new();

/// Which endpoint had this client of a Service port before?
#[btf_map]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, AffinityValue, 65_536> = LruHashMap::new();

/// Whose is this address?
#[btf_map]
pub(crate) static ADDRESSES: HashMap<Addr, AddressValue, 131_072> = HashMap::new();

/// In which ranges is this address?
#[btf_map]
pub(crate) static PREFIXES: LpmTrie<Addr, PrefixFlags, 4_096> = LpmTrie::new();

/// What holds for the node?
#[btf_map]
pub(crate) static NODE: Array<Node, 1> = Array::new();

/// Are the calls of this network namespace left alone? By its cookie; a value says nothing.
#[btf_map]
pub(crate) static LEFT_ALONE: HashMap<u64, u32, 4_096, ON_DEMAND> = HashMap::new();

/// Of how many are they?
#[btf_map]
pub(crate) static N_LEFT_ALONE: Array<u64, 1> = Array::new();

/// Which addresses do packets have that may concern us?
#[btf_map]
pub(crate) static FILTER: Array<Filter, 1, MMAPABLE> = Array::new();

/// Whose questions does this node's own DNS server answer, and where?
#[btf_map]
pub(crate) static DNS: Array<OwnServer, N_FAMILIES> = Array::new();

/// Is this address one from which it is asked?
#[btf_map]
pub(crate) static DNS_CLIENTS: LpmTrie<Addr, u32, 64> = LpmTrie::new();

/// Does that server live?
#[btf_map]
pub(crate) static DNS_ALIVE: SockMap<1> = SockMap::new();

/// What was dropped just now, and why?
#[btf_map]
pub(crate) static DROPS: RingBuf<Dropped, 262_144> = RingBuf::new();

/// What did this socket ask for, and what did it get?
#[btf_map]
pub(crate) static SOCKETS: SkStorage<Socket> = SkStorage::new();

/// Which connected UDP sockets talk to an endpoint?
#[btf_map]
pub(crate) static UDP_PEERS: HashMap<u64, UdpPeer, 65_536> = HashMap::new();

/// What did this connected TCP socket ask for, and what did it get?
#[btf_map]
pub(crate) static TCP_SOCKETS: Array<TcpPeer, { socket::TCP_SOCKETS }> = Array::new();

/// Which connection is this packet's, of those whose client is known to exist?
#[btf_map]
pub(crate) static FLOWS: HashMap<Tuple, Record, 131_072, ON_DEMAND> = HashMap::new();

/// By which other names does it go, and what do its packets need?
#[btf_map]
pub(crate) static NAMES: HashMap<Tuple, Name, 262_144, ON_DEMAND> = HashMap::new();

/// The same of new connections: which is it, as long as it was not displaced?
#[btf_map]
pub(crate) static NEW_FLOWS: LruHashMap<Tuple, Record, 65_536> = LruHashMap::new();

/// By which other names does it go?
#[btf_map]
pub(crate) static NEW_NAMES: LruHashMap<Tuple, Tuple, 131_072> = LruHashMap::new();

/// Which ports has the datagram of which this is a later part?
#[btf_map]
pub(crate) static DATAGRAMS: LruHashMap<FragmentKey, Ports, 8_192> = LruHashMap::new();

/// Which fragments came before the first of their datagram?
#[btf_map]
pub(crate) static HELD: LruHashMap<HeldKey, Held, 256> = LruHashMap::new();

/// What is the fragment at hand, before it is held?
#[btf_map]
pub(crate) static HOLD: PerCpuArray<Held, 1> = PerCpuArray::new();

/// What is known of the device?
#[btf_map]
pub(crate) static DEVICES: HashMap<u32, Device, 4_096> = HashMap::new();

/// What are the headers of the packet at hand, and of the one that it quotes?
#[btf_map]
pub(crate) static SCRATCH: PerCpuArray<Parsed, 2> = PerCpuArray::new();

/// What is the record of the connection that is being opened?
#[btf_map]
pub(crate) static RECORD: PerCpuArray<Record, 1> = PerCpuArray::new();

/// What is the name that it is given?
#[btf_map]
pub(crate) static NAME: PerCpuArray<Name, 1> = PerCpuArray::new();

/// Which tuples is a step asked about?
#[btf_map]
pub(crate) static KEYS: PerCpuArray<Tuple, 3> = PerCpuArray::new();

/// What did the clock say last, and when was it asked?
#[btf_map]
pub(crate) static CLOCK: PerCpuArray<Read, 1> = PerCpuArray::new();

/// A reading of the clock.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Read {
    /// In timer ticks.
    pub(crate) ticks: u64,
    /// What it said.
    pub(crate) seconds: u64,
}

/// How many answers were given this second?
#[btf_map]
pub(crate) static ANSWERS: PerCpuArray<u64, 1> = PerCpuArray::new();

/// What happened, how often?
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();

/// Adds one.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    count_at(counter as u32);
}

/// Adds one to the counter of that index.
#[inline(always)]
pub(crate) fn count_at(index: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: a per-CPU value; the verifier checked the pointer, and this CPU alone writes it.
        unsafe { *value += 1 };
    }
}

/// Counts a connection that was led to an endpoint.
#[inline(always)]
pub(crate) fn count_endpoint(id: u32) {
    if let Some(counts) = ENDPOINT_COUNTS.get_ptr_mut(id) {
        // SAFETY: the verifier checked the pointer.
        add_one(unsafe { &raw mut (*counts).connections });
    }
}

/// Counts what a Service port refused; zero is none's.
#[inline(always)]
pub(crate) fn count_refused(service: u32) {
    if service != 0
        && let Some(counts) = SERVICE_COUNTS.get_ptr_mut(service)
    {
        // SAFETY: the verifier checked the pointer.
        add_one(unsafe { &raw mut (*counts).refused });
    }
}

/// Counts what was dropped on account of a Service port; zero is none's.
#[inline(always)]
pub(crate) fn count_dropped(service: u32) {
    if service != 0
        && let Some(counts) = SERVICE_COUNTS.get_ptr_mut(service)
    {
        // SAFETY: the verifier checked the pointer.
        add_one(unsafe { &raw mut (*counts).dropped });
    }
}

/// Counts what a connection that has ended carried.
#[inline(always)]
pub(crate) fn count_served(id: u32, packets: u64, bytes: u64) {
    if id != 0
        && let Some(counts) = ENDPOINT_COUNTS.get_ptr_mut(id)
    {
        // SAFETY: the verifier checked the pointer.
        unsafe {
            add(&raw mut (*counts).packets, packets);
            add(&raw mut (*counts).bytes, bytes);
        }
    }
}

/// The same of one to an endpoint that its Service port has no more.
#[inline(always)]
pub(crate) fn count_gone(service: u32, packets: u64, bytes: u64) {
    if service != 0
        && let Some(counts) = SERVICE_COUNTS.get_ptr_mut(service)
    {
        // SAFETY: the verifier checked the pointer.
        unsafe {
            add(&raw mut (*counts).gone.packets, packets);
            add(&raw mut (*counts).gone.bytes, bytes);
        }
    }
}

/// Tells of what was dropped, if there is room to tell it.
#[inline(always)]
pub(crate) fn tell(dropped: Dropped) {
    if let Some(mut record) = DROPS.reserve(0) {
        record.write(dropped);
        record.submit(0);
    }
}

/// Copies a value that is made of words, and says where it is: the compiler would call a function for it
/// that copies byte by byte.
///
/// # Safety
/// Both are places of such a value, at a multiple of eight.
#[inline(always)]
pub(crate) unsafe fn copy<T>(from: *const T, to: *mut T) -> *const T {
    const { assert!(size_of::<T>().is_multiple_of(size_of::<u64>())) };
    let (words, room) = (from.cast::<u64>(), to.cast::<u64>());
    for word in 0..size_of::<T>() / size_of::<u64>() {
        // SAFETY: within the value.
        unsafe { room.add(word).write_volatile(words.add(word).read_volatile()) };
    }
    to
}

#[inline(always)]
fn add_one(counter: *mut u64) {
    add(counter, 1);
}

/// Adds, whatever other CPUs add meanwhile. The core library has no `fetch_add` for this target.
#[inline(always)]
fn add(counter: *mut u64, n: u64) {
    // SAFETY: an aligned word of a map, which lives as long as the program.
    unsafe {
        asm!("lock *(u64 *)({counter} + 0) += {n}", counter = in(reg) counter, n = in(reg) n);
    }
}
