//! May a pod be led to itself? Such a connection is masqueraded, which only packets can be.
//!
//! The answer must not depend on which endpoint is chosen: calls that are left to the packet programs
//! are led to one of all endpoints again, so what was chosen before would be chosen less often.

use aya_ebpf::bindings::{bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release};
use aya_ebpf::programs::SockAddrContext;

use abi::addr::Addr;
use abi::endpoint::Head;

use crate::choose::{any, endpoint, has_address};
use crate::peer::Family;

/// `BPF_F_CURRENT_NETNS`: where the socket is.
const HERE: u64 = u64::MAX;

const UDP: u8 = 17;

/// Whether a pod that is to be led to a set may be one of its endpoints.
///
/// A socket that is bound tells its address. Any other may be an endpoint if one is on this node, and
/// something in its network namespace listens at the endpoints' port at every address. What listens at
/// the pod's address only is seen if it is asked about, so such a pod may be led to itself as it is.
#[inline(always)]
pub(crate) fn may_be_itself(
    ctx: &SockAddrContext,
    family: Family,
    protocol: u8,
    head: Head,
) -> bool {
    match own_address(ctx, family) {
        Some(own) => has_address(head, own),
        None => head.local() && listens(ctx, family, protocol, head),
    }
}

/// The address that the hook's socket is bound to.
#[inline(always)]
fn own_address(ctx: &SockAddrContext, family: Family) -> Option<Addr> {
    // SAFETY: a field of the context, which the verifier checks.
    let sk: *mut bpf_sock = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if sk.is_null() {
        return None;
    }
    let (own, unbound) = match family {
        Family::V4 => {
            // SAFETY: a field of a socket, which the verifier checks; it is not null.
            let word = unsafe { (&raw const (*sk).src_ip4).read_volatile() };
            (Addr::from_v4(word), Addr::ANY_V4)
        }
        Family::V6 => {
            // SAFETY: as above; no reference is made.
            let words = unsafe { &raw const (*sk).src_ip6 }.cast::<u32>();
            let words = [
                // SAFETY: the first of the four words of `src_ip6`.
                unsafe { words.read_volatile() },
                // SAFETY: the second.
                unsafe { words.add(1).read_volatile() },
                // SAFETY: the third.
                unsafe { words.add(2).read_volatile() },
                // SAFETY: the fourth.
                unsafe { words.add(3).read_volatile() },
            ];
            (Addr { words }, Addr::ANY_V6)
        }
    };
    (own != unbound).then_some(own)
}

/// Whether something listens where the endpoints of a set do.
#[inline(always)]
fn listens(ctx: &SockAddrContext, family: Family, protocol: u8, head: Head) -> bool {
    let Some(asked) = endpoint(head, any(head)) else { return false };
    let (Addr { words }, port) = (asked.peer.addr, asked.peer.port);
    // SAFETY: integers only; zero is a valid value of each.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let length = match family {
        Family::V4 => {
            let [_, _, _, word] = words;
            tuple.__bindgen_anon_1.ipv4.saddr = word;
            tuple.__bindgen_anon_1.ipv4.daddr = word;
            tuple.__bindgen_anon_1.ipv4.dport = port;
            12
        }
        Family::V6 => {
            tuple.__bindgen_anon_1.ipv6.saddr = words;
            tuple.__bindgen_anon_1.ipv6.daddr = words;
            tuple.__bindgen_anon_1.ipv6.dport = port;
            36
        }
    };
    let ctx = ctx.sock_addr.cast();
    let found = if protocol == UDP {
        // SAFETY: the context is the hook's own, and the tuple is at least that long.
        unsafe { bpf_sk_lookup_udp(ctx, &raw mut tuple, length, HERE, 0) }
    } else {
        // SAFETY: as above.
        unsafe { bpf_sk_lookup_tcp(ctx, &raw mut tuple, length, HERE, 0) }
    };
    if found.is_null() {
        return false;
    }
    // SAFETY: it was found just now, and is given back once.
    unsafe { bpf_sk_release(found.cast()) };
    true
}
