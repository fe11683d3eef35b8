//! Questions to the cluster's DNS: to this node's own server while it lives.

use core::ffi::c_void;

use abi::counter::Counter;
use abi::dns::family_index;
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_sk_release};

use crate::maps::{DNS, DNS_ALIVE, count};
use crate::peer::Peer;

/// Where the server of this node answers what is sent to this address. `None` for every other
/// address, and when the server is dead: then the Service's endpoints are asked.
#[inline(always)]
pub(crate) fn own_server(asked: Peer) -> Option<Peer> {
    let own = DNS.get_ptr(family_index(asked.addr))?;
    // SAFETY: the verifier checked the pointer. User space changes an element only while the
    // server counts as dead.
    let own = unsafe { &*own };
    if own.service_port != asked.port || own.service != asked.addr || asked.port == 0 {
        return None;
    }
    let server = Peer { addr: own.server, port: own.server_port };
    if !is_alive() {
        return None;
    }
    count(Counter::OwnDns);
    Some(server)
}

/// Whether the server lives: the kernel takes a socket out of the map when it is closed, however
/// its process ends.
#[inline(always)]
fn is_alive() -> bool {
    let key = 0_u32;
    // SAFETY: a map of this object, and a key on the stack of the size it wants.
    let socket = unsafe {
        bpf_map_lookup_elem((&raw const DNS_ALIVE).cast_mut().cast(), (&raw const key).cast())
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the socket that the lookup took hold of.
    unsafe { bpf_sk_release(socket.cast::<c_void>()) };
    true
}
