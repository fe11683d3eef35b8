//! Every map, and the question that it answers.

use abi::counter::Counter;
use abi::endpoint::{Endpoint, Head};
use abi::frontend::{FrontendKey, FrontendValue};
use abi::socket::{Socket, UdpPeer};
use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, SkStorage};
use aya_ebpf::macros::btf_map;

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

// The loader sets the sizes of the first three from its configuration.

/// Is this address a Service's, and in which slot does it stand?
#[btf_map]
pub(crate) static FRONTENDS: HashMap<FrontendKey, FrontendValue, 65_536> = HashMap::new();

/// Where does a slot's set of endpoints lie, now?
#[btf_map]
pub(crate) static HEADS: Array<Head, 65_536, MMAPABLE> = Array::new();

/// Who serves?
#[btf_map]
pub(crate) static ENDPOINTS: Array<Endpoint, 524_288, MMAPABLE> = Array::new();

/// What did this socket ask for, and what did it get?
#[btf_map]
pub(crate) static SOCKETS: SkStorage<Socket> = SkStorage::new();

/// Which connected UDP sockets talk to an endpoint?
#[btf_map]
pub(crate) static UDP_PEERS: HashMap<u64, UdpPeer, 65_536> = HashMap::new();

/// What happened, how often?
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();

/// Adds one.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU value; the verifier checked the pointer, and this CPU alone writes it.
        unsafe { *value += 1 };
    }
}
