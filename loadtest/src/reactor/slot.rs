//! A place for one request at a time, and the connection that it keeps.
//!
//! ```text
//!            open            all written           answer whole, not the last
//!   Idle ───────────▶ Asking ───────────▶ Waiting ───────────────────────────▶ Idle, connected
//!     ▲                                      │ answer whole, the last
//!     └───────────── closed ◀── Draining ◀───┘
//! ```

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
};

use mio::{Interest, Registry, Token};
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Protocol, Socket, Type};

use super::tcp_info;
use crate::{
    kind::{Kind, Load},
    tally::Counter,
    wire::{Answer, Request},
};

/// What slots of one reactor share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) load: Load,
    pub(super) request: Request,
    pub(super) registry: Registry,
    pub(super) counter: Counter,
    pub(super) buffer: Box<[u8]>,
    /// Servers that keep a connection open that is meant to end are not waited for again.
    pub(super) server_closes: bool,
    /// Connections so far, by which targets and sources are taken in turn.
    pub(super) n_connections: usize,
    /// The id of the last DNS question.
    pub(super) id: u16,
}

/// A place.
#[derive(Debug)]
pub(super) struct Slot {
    token: Token,
    state: State,
    connection: Option<Connection>,
    /// Since when the request was due, and when it began.
    since: u64,
    began: u64,
}

#[derive(Debug)]
struct Connection {
    socket: Stream,
    n_requests: u32,
    retransmitted: u32,
}

#[derive(Debug)]
enum Stream {
    Tcp(mio::net::TcpStream),
    Udp(mio::net::UdpSocket),
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    Asking {
        n_sent: usize,
        id: u16,
    },
    Waiting {
        received: Vec<u8>,
        id: u16,
    },
    Draining {
        since: u64,
    },
}

/// Where a slot stands after something was done.
#[derive(Debug)]
pub(super) enum Step {
    /// A request is under way, or a connection about to close.
    Busy,
    /// Free for the next request.
    Free,
    /// The request went wrong; the connection is gone.
    Failed(String),
}

impl Slot {
    pub(super) fn new(idx: usize) -> Self {
        Self { token: Token(idx), state: State::Idle, connection: None, since: 0, began: 0 }
    }

    /// Begins a request that was due at `since`.
    pub(super) fn start(&mut self, shared: &mut Shared, since: u64, now: u64) -> Step {
        (self.since, self.began) = (since, now);
        if self.connection.is_none() {
            match open(shared, self.token) {
                Ok(socket) => {
                    self.connection = Some(Connection { socket, n_requests: 0, retransmitted: 0 });
                }
                Err(error) => return self.fail(&error),
            }
        }
        if shared.load.kind == Kind::Dns {
            shared.id = shared.id.wrapping_add(1);
        }
        self.state = State::Asking { n_sent: 0, id: shared.id };
        self.advance(shared, now)
    }

    /// Goes on after the socket has become ready for something.
    pub(super) fn advance(&mut self, shared: &mut Shared, now: u64) -> Step {
        let Some(connection) = &mut self.connection else { return Step::Busy };
        match &mut self.state {
            // A server may end a connection that is kept; the next request opens another.
            State::Idle => {
                if connection.is_ended(&mut shared.buffer) {
                    self.connection = None;
                }
                Step::Busy
            }
            State::Asking { n_sent, id } => {
                let id = *id;
                match connection.ask(shared, n_sent, id) {
                    Ok(true) if shared.load.kind == Kind::Connect => {
                        self.answered(shared, now, None)
                    }
                    Ok(true) => {
                        self.state = State::Waiting { received: Vec::new(), id };
                        Step::Busy
                    }
                    Ok(false) => Step::Busy,
                    Err(error) => self.fail(&error),
                }
            }
            State::Waiting { .. } => self.receive(shared, now),
            State::Draining { .. } => {
                if !connection.is_ended(&mut shared.buffer) {
                    return Step::Busy;
                }
                self.close()
            }
        }
    }

    /// How long the request has been under way at `now`; nothing when there is none.
    pub(super) fn age(&self, now: u64) -> Option<u64> {
        matches!(self.state, State::Asking { .. } | State::Waiting { .. })
            .then(|| now.saturating_sub(self.began))
    }

    pub(super) fn is_draining(&self) -> bool {
        matches!(self.state, State::Draining { .. })
    }

    /// How long the connection has been about to close at `now`.
    pub(super) fn drained_for(&self, now: u64) -> u64 {
        match self.state {
            State::Draining { since } => now.saturating_sub(since),
            _ => 0,
        }
    }

    /// Gives up; says since when the request was due.
    pub(super) fn give_up(&mut self) -> u64 {
        self.close();
        self.since
    }

    /// Segments of a kept connection that were sent again since the last time.
    pub(super) fn new_retransmissions(&mut self) -> u64 {
        let Some(Connection { socket: Stream::Tcp(stream), retransmitted, .. }) =
            &mut self.connection
        else {
            return 0;
        };
        let total = tcp_info::retransmitted(stream.as_fd()).unwrap_or(*retransmitted);
        let new = total.saturating_sub(*retransmitted);
        *retransmitted = total;
        new.into()
    }

    fn receive(&mut self, shared: &mut Shared, now: u64) -> Step {
        let (Some(connection), State::Waiting { received, id }) =
            (&mut self.connection, &mut self.state)
        else {
            return Step::Busy;
        };
        // It leaves for the time being, so that a name in it may be counted.
        let mut buffer = std::mem::take(&mut shared.buffer);
        let step = loop {
            let n = match connection.read(&mut buffer) {
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Step::Busy,
                Err(error) => break self.fail(&error),
            };
            let fresh = buffer.get(..n).unwrap_or_default();
            let is_datagram = shared.load.kind.is_datagram();
            let is_end = n == 0 && !is_datagram;
            // An answer mostly comes in one piece, and then nothing is copied.
            let mut joined = std::mem::take(received);
            let text = if joined.is_empty() {
                fresh
            } else {
                joined.extend_from_slice(fresh);
                &joined
            };
            match shared.request.answer(*id, text, is_end) {
                Ok(Answer::Whole(name)) => {
                    let step = self.answered(shared, now, name);
                    if is_end {
                        self.close();
                    }
                    break step;
                }
                Ok(Answer::Partial) if is_end => {
                    self.close();
                    break Step::Failed("closed early".to_owned());
                }
                Ok(Answer::Stale) => {}
                Ok(Answer::Partial) => {
                    *received = if joined.is_empty() { fresh.to_vec() } else { joined };
                }
                Err(error) => {
                    self.close();
                    let closed = is_end && text.is_empty();
                    let what = if closed { "closed early".to_owned() } else { error.to_string() };
                    break Step::Failed(what);
                }
            }
        };
        shared.buffer = buffer;
        step
    }

    fn answered(&mut self, shared: &mut Shared, now: u64, name: Option<&[u8]>) -> Step {
        let Some(connection) = &mut self.connection else { return Step::Free };
        connection.n_requests += 1;
        let n = connection.n_requests;
        shared.counter.answered(now.saturating_sub(self.since), self.began, name, n == 1);
        self.state = State::Idle;
        let bound = shared.load.requests_per_connection;
        if bound == 0 || n < bound {
            return Step::Free;
        }
        if bound > 1 {
            shared.counter.retransmitted += self.new_retransmissions();
        }
        let waits = matches!(shared.load.kind, Kind::Tcp | Kind::Rr | Kind::Http);
        if waits && shared.server_closes {
            self.state = State::Draining { since: now };
            // The buffer is away while an answer is read, so a small one serves here.
            let is_ended = self.connection.as_mut().is_none_or(|it| it.is_ended(&mut [0; 64]));
            return if is_ended { self.close() } else { Step::Busy };
        }
        self.close()
    }

    fn close(&mut self) -> Step {
        self.connection = None;
        self.state = State::Idle;
        Step::Free
    }

    fn fail(&mut self, error: &io::Error) -> Step {
        self.close();
        Step::Failed(word(error))
    }
}

impl Connection {
    /// Whether the whole request is on its way.
    fn ask(&mut self, shared: &mut Shared, n_sent: &mut usize, id: u16) -> io::Result<bool> {
        let Shared { load, request, .. } = shared;
        if load.kind == Kind::Connect {
            return self.is_connected();
        }
        request.number(id);
        let is_last = self.n_requests + 1 == load.requests_per_connection;
        let bytes = request.bytes(is_last);
        while let Some(rest) = bytes.get(*n_sent..).filter(|rest| !rest.is_empty()) {
            let sent = match &mut self.socket {
                Stream::Tcp(stream) => stream.write(rest),
                Stream::Udp(socket) => socket.send(rest),
            };
            match sent {
                Ok(n) => *n_sent += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A TCP socket that is not connected yet says so as well.
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn is_connected(&self) -> io::Result<bool> {
        let Stream::Tcp(stream) = &self.socket else { return Ok(true) };
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        match stream.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.socket {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Udp(socket) => socket.recv(buffer),
        }
    }

    /// Whether the other side has ended it. What still comes is of no interest.
    fn is_ended(&mut self, buffer: &mut [u8]) -> bool {
        loop {
            match self.read(buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
    }
}

/// A socket on its way to the next target, from the next source.
fn open(shared: &mut Shared, token: Token) -> io::Result<Stream> {
    let Shared { load, registry, n_connections, .. } = shared;
    let in_turn = |n: usize| n_connections.checked_rem(n);
    let target = in_turn(load.targets.len()).and_then(|idx| load.targets.get(idx));
    let target = *target.ok_or_else(|| io::Error::other("no target"))?;
    let source = in_turn(load.sources.len()).and_then(|idx| load.sources.get(idx));
    *n_connections += 1;
    let (kind, protocol) = match load.kind.is_datagram() {
        true => (Type::DGRAM, Protocol::UDP),
        false => (Type::STREAM, Protocol::TCP),
    };
    let socket = Socket::new(Domain::for_address(target), kind.nonblocking(), Some(protocol))?;
    if let Some(source) = source {
        bind(&socket, *source)?;
    }
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    let both = Interest::READABLE | Interest::WRITABLE;
    if load.kind.is_datagram() {
        let mut socket = mio::net::UdpSocket::from_std(socket.into());
        registry.register(&mut socket, token, Interest::READABLE)?;
        return Ok(Stream::Udp(socket));
    }
    let mut stream = mio::net::TcpStream::from_std(socket.into());
    registry.register(&mut stream, token, both)?;
    Ok(Stream::Tcp(stream))
}

/// The port is chosen at `connect()`, when the kernel knows the other end: so all of them serve every
/// target.
fn bind(socket: &Socket, source: IpAddr) -> io::Result<()> {
    setsockopt(socket, IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::new(source, 0).into())
}

/// An error in the words of the report.
fn word(error: &io::Error) -> String {
    let word = match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "connection refused",
        Some(libc::ECONNRESET | libc::EPIPE) => "connection reset",
        Some(libc::EHOSTUNREACH) => "no route to host",
        Some(libc::ENETUNREACH) => "network unreachable",
        Some(libc::ETIMEDOUT) => "timed out",
        Some(libc::EADDRNOTAVAIL) => "no free local port or address",
        Some(libc::EMFILE | libc::ENFILE) => "too many open files",
        Some(libc::EPERM) => "not permitted",
        _ => return error.to_string(),
    };
    word.to_owned()
}
