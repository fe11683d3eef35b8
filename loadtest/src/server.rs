//! What a load is sent to where there is nothing else: a server that says its name to every kind of
//! request, over TCP and UDP on one port, and as late as it is told.

mod connection;
mod delay;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, Waker, unix::SourceFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use socket2::{Domain, Protocol, Socket, Type};

use self::connection::{Connection, Reply};
pub use self::delay::{Delay, DelayError};
use crate::generator::stay_on;

const LISTENER: Token = Token(0);
const DATAGRAMS: Token = Token(1);
const WAKER: Token = Token(2);
const TIMER: Token = Token(3);
const FIRST: usize = 4;
const BACKLOG: i32 = 4096;
const N_EVENTS: usize = 1024;
const BUFFER: usize = 64 * 1024;
/// How long accepting rests when there are no descriptors left.
const REST: Duration = Duration::from_millis(10);

/// What a server is told.
#[derive(Debug, Clone)]
pub struct Answering {
    /// What it says.
    pub name: String,
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Threads, each with its own listening sockets on the same port.
    pub n_threads: usize,
    /// The processors to keep them on, in turn.
    pub processors: Vec<usize>,
    /// When answers leave.
    pub delay: Delay,
}

/// A server, until dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    threads: Vec<(Arc<Waker>, Option<JoinHandle<()>>)>,
}

impl Server {
    /// Binds and starts.
    ///
    /// # Errors
    /// When the address is taken or not ours, or a thread cannot be made.
    pub fn start(answering: &Answering) -> io::Result<Self> {
        let mut address = answering.listen;
        let mut threads = Vec::new();
        for idx in 0..answering.n_threads.max(1) {
            let listener = bind(address, Type::STREAM)?;
            listener.listen(BACKLOG)?;
            let listener: TcpListener = listener.into();
            address = listener.local_addr()?;
            let datagrams: UdpSocket = bind(address, Type::DGRAM)?.into();
            let (mut desk, waker) = Desk::new(answering, listener, datagrams)?;
            let place = idx.checked_rem(answering.processors.len());
            let processor = place.and_then(|it| answering.processors.get(it)).copied();
            let handle = thread::Builder::new().name(format!("answer-{idx}")).spawn(move || {
                if let Some(processor) = processor {
                    stay_on(processor);
                }
                // Its sockets close with it, and clients see that.
                drop(desk.serve());
            })?;
            threads.push((waker, Some(handle)));
        }
        Ok(Self { address, threads })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until a thread ends by itself, which none does.
    pub fn wait(mut self) {
        for (_, handle) in &mut self.threads {
            drop(handle.take().map(JoinHandle::join));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for (waker, handle) in &mut self.threads {
            if waker.wake().is_ok() {
                drop(handle.take().map(JoinHandle::join));
            }
        }
    }
}

fn bind(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), Some(protocol))?;
    socket.set_reuse_address(kind == Type::STREAM)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// One thread's sockets.
#[derive(Debug)]
struct Desk {
    name: String,
    delay: Delay,
    poll: Poll,
    timer: TimerFd,
    listener: mio::net::TcpListener,
    datagrams: mio::net::UdpSocket,
    connections: HashMap<usize, Connection>,
    next: usize,
    /// When the first request came, and how many there were.
    first: Option<Instant>,
    n_requests: usize,
    /// Answers that are held back, the next first.
    held: BinaryHeap<Reverse<Held>>,
    buffer: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    leaves: Instant,
    to: To,
    answer: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum To {
    /// A connection, and whether it is to end.
    Connection(usize, bool),
    Address(SocketAddr),
}

impl Desk {
    fn new(
        answering: &Answering,
        listener: TcpListener,
        datagrams: UdpSocket,
    ) -> io::Result<(Self, Arc<Waker>)> {
        let poll = Poll::new()?;
        let mut listener = mio::net::TcpListener::from_std(listener);
        let mut datagrams = mio::net::UdpSocket::from_std(datagrams);
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        poll.registry().register(&mut datagrams, DATAGRAMS, Interest::READABLE)?;
        let timer_fd = timer.as_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&timer_fd), TIMER, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let desk = Self {
            name: format!("{}\n", answering.name),
            delay: answering.delay.clone(),
            poll,
            timer,
            listener,
            datagrams,
            connections: HashMap::new(),
            next: FIRST,
            first: None,
            n_requests: 0,
            held: BinaryHeap::new(),
            buffer: vec![0; BUFFER],
        };
        Ok((desk, waker))
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(N_EVENTS);
        let mut rest = None;
        loop {
            match self.poll.poll(&mut events, rest) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            if rest.take().is_some() {
                rest = self.accept();
            }
            for event in &events {
                match event.token() {
                    LISTENER => rest = self.accept(),
                    DATAGRAMS => self.answer_datagrams(),
                    WAKER => return Ok(()),
                    TIMER => {}
                    Token(number) => self.go_on(number),
                }
            }
            self.release()?;
        }
    }

    /// Takes every connection that waits. Says how long to rest when there is no place for more.
    fn accept(&mut self) -> Option<Duration> {
        loop {
            match self.listener.accept() {
                Ok((mut stream, _)) => {
                    let number = self.next;
                    self.next += 1;
                    let both = Interest::READABLE | Interest::WRITABLE;
                    if self.poll.registry().register(&mut stream, Token(number), both).is_ok() {
                        self.connections.insert(number, Connection::new(stream));
                        // The request has often come with the connection.
                        self.go_on(number);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    return Some(REST);
                }
                Err(_) => {}
            }
        }
    }

    fn go_on(&mut self, number: usize) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        for reply in connection.receive(&mut self.buffer, &self.name) {
            if self.delay == Delay::default() {
                connection.send(&reply);
            } else {
                let leaves = leaves(&self.delay, &mut self.first, &mut self.n_requests);
                let to = To::Connection(number, reply.is_last);
                self.held.push(Reverse(Held { leaves, to, answer: reply.bytes }));
            }
        }
        if !connection.flush() {
            self.connections.remove(&number);
        }
    }

    fn answer_datagrams(&mut self) {
        loop {
            let (n, from) = match self.datagrams.recv_from(&mut self.buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // An ICMP answer to an earlier datagram.
                Err(_) => continue,
            };
            let asked = self.buffer.get(..n).unwrap_or_default();
            let answer = connection::to_datagram(asked, &self.name);
            if self.delay == Delay::default() {
                // A datagram that cannot be sent is lost, as datagrams are.
                drop(self.datagrams.send_to(&answer, from));
            } else {
                let leaves = leaves(&self.delay, &mut self.first, &mut self.n_requests);
                self.held.push(Reverse(Held { leaves, to: To::Address(from), answer }));
            }
        }
    }

    /// Sends what is due, and sets the timer for the next.
    fn release(&mut self) -> io::Result<()> {
        let now = Instant::now();
        while let Some(Reverse(held)) = self.held.peek() {
            if held.leaves > now {
                let after = (held.leaves - now).max(Duration::from_nanos(1));
                self.timer
                    .set(Expiration::OneShot(TimeSpec::from(after)), TimerSetTimeFlags::empty())?;
                return Ok(());
            }
            let Some(Reverse(Held { to, answer, .. })) = self.held.pop() else { return Ok(()) };
            match to {
                To::Address(address) => drop(self.datagrams.send_to(&answer, address)),
                To::Connection(number, is_last) => {
                    let Some(connection) = self.connections.get_mut(&number) else { continue };
                    connection.send(&Reply { bytes: answer, is_last });
                    if !connection.flush() {
                        self.connections.remove(&number);
                    }
                }
            }
        }
        Ok(())
    }
}

fn leaves(delay: &Delay, first: &mut Option<Instant>, n_requests: &mut usize) -> Instant {
    let now = Instant::now();
    let first = *first.get_or_insert(now);
    *n_requests += 1;
    first + delay.leaves(*n_requests - 1, now - first)
}

#[cfg(test)]
mod tests;
