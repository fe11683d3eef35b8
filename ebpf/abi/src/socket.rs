//! What is remembered of a socket, for the way back.

use crate::addr::Addr;

/// How many frontends one socket can talk to at once. Only an unconnected UDP socket uses more
/// than one; when it uses more than this, the one it took up first is forgotten, and counted.
pub const FLOWS: usize = 8;

/// Value of `SOCKETS` (socket storage: it lives exactly as long as its socket). All zero at first.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Socket {
    /// How many flows were ever stored; the next one goes to this modulo [`FLOWS`].
    pub stored: u32,
    /// Zero.
    pub pad: u32,
    /// The frontends that the socket talks to.
    pub flows: [Flow; FLOWS],
}

/// One frontend as one socket sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The address that the program named; all zero is a free entry.
    pub frontend: Addr,
    /// The address that it really talks to.
    pub endpoint: Addr,
    /// The port that it named, network byte order.
    pub frontend_port: u16,
    /// The port that it really talks to, network byte order.
    pub endpoint_port: u16,
    /// The generation of the set in which the endpoint was last seen.
    pub generation: u32,
}

/// Value of `UDP_PEERS`: a connected UDP socket's peer, by socket cookie, until the socket closes.
/// Such a socket has no storage. The kernel runs no hook when it sends, so user space ends it once
/// its endpoint has gone. TCP sockets are noted where their Service asks for that, beside their storage.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpPeer {
    /// The address that the program named.
    pub frontend: Addr,
    /// The address that it really talks to.
    pub endpoint: Addr,
    /// The port that it named, network byte order.
    pub frontend_port: u16,
    /// The port that it really talks to, network byte order.
    pub endpoint_port: u16,
    /// The IP protocol number of TCP; zero is UDP.
    pub protocol: u32,
    /// The cookie of the socket's network namespace (`SO_NETNS_COOKIE`).
    pub netns: u64,
}

/// How many values `TCP_SOCKETS` has.
pub const TCP_SOCKETS: usize = 1 << 16;

/// Value of `TCP_SOCKETS`: a connected TCP socket's peer, until the socket closes, at the index that the lower
/// bits of its cookie say. One whose place is another's has storage instead. Cookies are counted up, so
/// sockets that are opened one after the other have places side by side, and nobody searches.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpPeer {
    /// Whose it is; zero is nobody's.
    pub cookie: u64,
    /// The address that the program named.
    pub frontend: Addr,
    /// The address that it really talks to.
    pub endpoint: Addr,
    /// The port that it named, network byte order.
    pub frontend_port: u16,
    /// The port that it really talks to, network byte order.
    pub endpoint_port: u16,
    /// Not zero once a socket whose place this is, or would be, was noted in `UDP_PEERS`.
    pub noted: u32,
}

impl UdpPeer {
    /// What [`UdpPeer::protocol`] says of a TCP socket.
    pub const TCP: u32 = 6;
}

const _: () = assert!(size_of::<Flow>() == 40);
const _: () = assert!(size_of::<Socket>() == 8 + FLOWS * 40);
const _: () = assert!(size_of::<UdpPeer>() == 48);
const _: () = assert!(size_of::<TcpPeer>() == 48 && TCP_SOCKETS.is_power_of_two());
