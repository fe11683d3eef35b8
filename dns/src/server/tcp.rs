//! TCP: what did not fit, asked again (RFC 7766).
//!
//! Questions of one connection may follow each other without waiting; each is answered when it is
//! complete, in their order, since an answer never has to wait for anything. A client that sends
//! nothing, or does not take its answers, is let go; so is one that holds too many connections.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::metrics::{Counters, Seen};
use super::{ListenError, Shared};
use crate::respond::{Ask, LARGEST_TCP, Transport, respond};

/// How long a connection may be idle, or an answer wait to be taken (RFC 7766 §6.2.3).
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at a time.
const MAX_CONNECTIONS: usize = 1024;
/// Connections of one client at a time: a search list asks two names, or four, at once.
const MAX_OF_CLIENT: usize = 64;
/// Answers are gathered up to this many octets before they are written.
const GATHER: usize = 16 * 1024;

pub(super) fn bind(listen: SocketAddr) -> Result<std::net::TcpListener, ListenError> {
    let open = || -> io::Result<std::net::TcpListener> {
        let socket = Socket::new(Domain::for_address(listen), Type::STREAM, Some(Protocol::TCP))?;
        // The next process listens before this one ends, and no question is turned away.
        socket.set_reuse_port(true)?;
        socket.set_reuse_address(true)?;
        socket.bind(&listen.into())?;
        socket.listen(1024)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    open().map_err(|source| ListenError { listen, transport: "TCP", source })
}

/// Accepts connections until dropped, and those with it.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let counters = Arc::new(Mutex::new(shared.metrics.worker()));
    let clients = Arc::new(Clients::default());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, client)) => {
                let ip = client.ip().to_canonical();
                match Clients::enter(&clients, ip, connections.len()) {
                    Some(guest) => {
                        let shared = Arc::clone(&shared);
                        let counters = Arc::clone(&counters);
                        connections.spawn(async move {
                            if let Err(error) = converse(stream, ip, &shared, &counters).await {
                                tracing::debug!(%ip, "a connection ended: {error}");
                            }
                            drop(guest);
                        });
                    }
                    None => lock(&counters).connections_refused.add(1),
                }
            }
            // Aborted before it was accepted, or no descriptor is left: neither ends the listener,
            // and the second passes only with time.
            Err(error) => {
                lock(&counters).socket_errors.add(1);
                tracing::debug!("accepting: {error}");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Connections may run on several threads, and counters have one writer at a time.
type OneWriter = Mutex<Arc<Counters>>;

fn lock(counters: &OneWriter) -> MutexGuard<'_, Arc<Counters>> {
    counters.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many connections each client has.
#[derive(Debug, Default)]
struct Clients {
    n: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection that counts.
#[derive(Debug)]
struct Guest {
    clients: Arc<Clients>,
    ip: IpAddr,
}

impl Clients {
    fn enter(clients: &Arc<Self>, ip: IpAddr, n_all: usize) -> Option<Guest> {
        let mut counts = clients.n.lock().unwrap_or_else(PoisonError::into_inner);
        let n = counts.get(&ip).copied().unwrap_or(0);
        if n_all >= MAX_CONNECTIONS || n >= MAX_OF_CLIENT {
            return None;
        }
        counts.insert(ip, n + 1);
        drop(counts);
        Some(Guest { clients: Arc::clone(clients), ip })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut counts = self.clients.n.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = counts.get_mut(&self.ip) {
            *n -= 1;
            if *n == 0 {
                counts.remove(&self.ip);
            }
        }
    }
}

/// Answers the questions of one connection until it is closed, idle or malformed.
async fn converse(
    mut stream: TcpStream,
    client: IpAddr,
    shared: &Shared,
    counters: &OneWriter,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut unread = Vec::with_capacity(512);
    let mut answers = Vec::new();
    let mut room = Vec::new();
    loop {
        match timeout(PATIENCE, stream.read_buf(&mut unread)).await {
            Ok(Ok(0)) | Err(_) => return Ok(()),
            Ok(read) => read?,
        };
        let mut at = 0;
        while let Some(question) = frame(unread.get(at..).unwrap_or_default()) {
            at += 2 + question.len();
            room.resize(LARGEST_TCP, 0);
            let view = shared.view.load();
            let allowed = shared.allows(&view, Some(client));
            let ask = Ask { transport: Transport::Tcp, turn: at, allowed };
            match respond(&view, question, ask, &mut room) {
                Ok(reply) => {
                    let n_query = question.len();
                    let client = Some(client);
                    let transport = Transport::Tcp;
                    lock(counters).count(&Seen { transport, client, n_query, allowed, reply });
                    let answer = room.get(..reply.len).unwrap_or_default();
                    answers.extend_from_slice(&u16::try_from(reply.len).unwrap_or(0).to_be_bytes());
                    answers.extend_from_slice(answer);
                }
                // Nothing sensible will follow.
                Err(drop) => {
                    lock(counters).count_dropped(drop);
                    return write(&mut stream, &answers).await;
                }
            }
            if answers.len() >= GATHER {
                write(&mut stream, &answers).await?;
                answers.clear();
            }
        }
        unread.drain(..at);
        if !answers.is_empty() {
            write(&mut stream, &answers).await?;
            answers.clear();
        }
        // An idle connection keeps no more than it began with.
        answers.shrink_to(0);
        room = Vec::new();
    }
}

/// The message at the front, if it is complete.
fn frame(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.get(..usize::from(u16::from_be_bytes(*length)))
}

async fn write(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    match timeout(PATIENCE, stream.write_all(bytes)).await {
        Ok(written) => written,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "answers are not taken")),
    }
}
