//! The address in a `bpf_sock_addr`, in one format for both families.

use abi::addr::Addr;
use aya_ebpf::programs::SockAddrContext;

/// The family of the hook (of the `sockaddr`, not of the socket: an `AF_INET6` socket that sends to
/// a mapped address passes the IPv4 hook).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// An address and a port, both in network byte order.
#[derive(Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) addr: Addr,
    pub(crate) port: u16,
}

impl Peer {
    /// What the caller named.
    #[inline(always)]
    pub(crate) fn read(ctx: &SockAddrContext, family: Family) -> Self {
        let sock_addr = ctx.sock_addr;
        // The verifier rewrites each access by its offset, so words are read one by one and
        // volatile, lest they be merged into a wider load that it refuses.
        let addr = match family {
            Family::V4 => {
                // SAFETY: a field of the context, which the verifier checks.
                Addr::from_v4(unsafe { (&raw const (*sock_addr).user_ip4).read_volatile() })
            }
            Family::V6 => {
                // SAFETY: as above; no reference is made.
                let words = unsafe { &raw const (*sock_addr).user_ip6 }.cast::<u32>();
                Addr {
                    words: [
                        // SAFETY: the first of the four words of `user_ip6`.
                        unsafe { words.read_volatile() },
                        // SAFETY: the second.
                        unsafe { words.add(1).read_volatile() },
                        // SAFETY: the third.
                        unsafe { words.add(2).read_volatile() },
                        // SAFETY: the fourth.
                        unsafe { words.add(3).read_volatile() },
                    ],
                }
            }
        };
        // SAFETY: as above.
        let port = unsafe { (&raw const (*sock_addr).user_port).read_volatile() };
        #[expect(clippy::cast_possible_truncation, reason = "the kernel keeps a port in 16 bits")]
        Self { addr, port: port as u16 }
    }

    /// Puts this address in the place of what the caller named, or of what it will be told.
    #[inline(always)]
    pub(crate) fn write(self, ctx: &SockAddrContext, family: Family) {
        let sock_addr = ctx.sock_addr;
        let [a, b, c, d] = self.addr.words;
        match family {
            // SAFETY: a writable field of the context, which the verifier checks.
            Family::V4 => unsafe { (&raw mut (*sock_addr).user_ip4).write_volatile(d) },
            Family::V6 => {
                // SAFETY: as above; no reference is made.
                let words = unsafe { &raw mut (*sock_addr).user_ip6 }.cast::<u32>();
                // SAFETY: the first of the four words of `user_ip6`.
                unsafe { words.write_volatile(a) };
                // SAFETY: the second.
                unsafe { words.add(1).write_volatile(b) };
                // SAFETY: the third.
                unsafe { words.add(2).write_volatile(c) };
                // SAFETY: the fourth.
                unsafe { words.add(3).write_volatile(d) };
            }
        }
        // SAFETY: as above.
        unsafe { (&raw mut (*sock_addr).user_port).write_volatile(u32::from(self.port)) };
    }
}
