//! What is sent: five kinds of requests, and how much of each a connection carries.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize};

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// TCP: connect and close, nothing sent. Any server understands it; nobody says who it was.
    Connect,
    /// TCP: a line there, a line with the endpoint's name back. A connection for each.
    Tcp,
    /// The same on connections that are kept.
    Rr,
    /// HTTP/1.1 GET, on connections that are kept.
    Http,
    /// UDP: a datagram there, one with the endpoint's name back, from a new socket each.
    Udp,
    /// DNS over UDP: a question for a name's address, from sockets that are kept.
    Dns,
}

/// No such kind.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no kind of request; there are connect, tcp, rr, http, udp and dns")]
pub struct UnknownKind(String);

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Connect, Self::Tcp, Self::Rr, Self::Http, Self::Udp, Self::Dns];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tcp => "tcp",
            Self::Rr => "rr",
            Self::Http => "http",
            Self::Udp => "udp",
            Self::Dns => "dns",
        }
    }

    /// Whether it is sent over UDP.
    #[must_use]
    pub const fn is_datagram(self) -> bool {
        matches!(self, Self::Udp | Self::Dns)
    }

    /// How many requests a connection carries unless said otherwise; 0 is no bound.
    #[must_use]
    pub const fn requests_per_connection(self) -> u32 {
        match self {
            Self::Connect | Self::Tcp | Self::Udp => 1,
            Self::Rr | Self::Http | Self::Dns => 0,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| UnknownKind(name.to_owned()))
    }
}

/// What one arm sends, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// The kind of request.
    pub kind: Kind,
    /// Where to; new connections take them in turn.
    pub targets: Vec<SocketAddr>,
    /// Requests under way at once, over all threads.
    pub concurrency: usize,
    /// Requests a second at a constant rate; nothing means each as soon as the one before has ended.
    pub rate: Option<u64>,
    /// Bytes that a request carries beyond what it must.
    pub payload: usize,
    /// Requests on a connection; 0 is no bound.
    pub requests_per_connection: u32,
    /// Addresses to send from, in turn; the kernel's choice when there are none.
    pub sources: Vec<std::net::IpAddr>,
    /// Nanoseconds that a request may take.
    pub timeout: u64,
    /// The name in HTTP's Host field, or the name that DNS is asked for.
    pub name: String,
    /// The path of HTTP requests.
    pub path: String,
}

impl Load {
    /// The descriptors that it takes.
    #[must_use]
    pub fn n_descriptors(&self) -> usize {
        self.concurrency
    }
}
