//! The UDP path: a thread and a socket for each core, nothing allocated and nothing handed over
//! from the packet to its answer.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::batch::{BATCH, Batch};
use super::clock::Stopwatch;
use super::metrics::{Counters, Seen};
use super::{ListenError, Opened, Shared};
use crate::message::{Drop, HEADER};
use crate::respond::{Ask, Transport, respond};
use crate::zone::Origin;

/// What the kernel may hold while a worker is busy, as far as the system allows.
const RECEIVE_BUFFER: usize = 1 << 20;
/// Between two looks at whether there are names.
const INTERVAL: Duration = Duration::from_millis(5);

/// One thread that answers what one socket receives.
#[derive(Debug)]
pub(super) struct Worker {
    socket: Arc<Socket>,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Opens a socket on an address, beside others that have it already.
    pub(super) fn bind(listen: SocketAddr) -> Result<Socket, ListenError> {
        let error = |source| ListenError { listen, transport: "UDP", source };
        let open = || {
            let socket =
                Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
            socket.set_reuse_port(true)?;
            if listen.ip().is_unspecified() {
                wants_destination(&socket, listen)?;
            }
            socket.bind(&listen.into())?;
            Ok(socket)
        };
        let socket = open().map_err(error)?;
        // The default is as good as the system's limit, where that is lower.
        if let Err(cause) = socket.set_recv_buffer_size(RECEIVE_BUFFER) {
            tracing::debug!("the receive buffer stays as it is: {cause}");
        }
        Ok(socket)
    }

    /// Starts to answer.
    pub(super) fn start(name: String, opened: Opened, shared: Arc<Shared>) -> io::Result<Self> {
        let Opened { socket, bound, led } = opened;
        let socket = Arc::new(socket);
        let own = Arc::clone(&socket);
        let counters = shared.metrics.worker();
        let thread = thread::Builder::new().name(name).spawn(move || {
            let mut batch = Batch::new(bound.ip().is_unspecified());
            if led {
                stay_silent(&own, &shared, &counters, &mut batch);
            }
            serve(&own, &shared, &counters, &mut batch);
        })?;
        Ok(Self { socket, thread })
    }

    /// Answers what has been received, and ends.
    pub(super) fn stop(self) {
        // Wakes the thread, though the kernel says that there is nobody to disconnect from.
        if let Err(error) = self.socket.shutdown(std::net::Shutdown::Read) {
            tracing::trace!("{error}");
        }
        if self.thread.join().is_err() {
            tracing::error!("a worker has panicked; this is a bug, please report it with the log");
        }
    }
}

fn wants_destination(socket: &Socket, listen: SocketAddr) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};

    match listen {
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    Ok(())
}

/// Takes questions and drops them until there are names: whoever asks again is led to others, which
/// a failure would keep libraries from.
fn stay_silent(socket: &Socket, shared: &Shared, counters: &Counters, batch: &mut Batch) {
    while shared.view.load().origin() == Origin::Nothing {
        let patience = Some(INTERVAL);
        if let Err(error) = socket.set_read_timeout(patience) {
            tracing::debug!("answering before there are names: {error}");
            return;
        }
        // Nothing within the interval is an error as well.
        let n = batch.receive(socket.as_fd()).unwrap_or_default();
        counters.silent.add(n as u64);
        if shared.stopping.load(Ordering::Relaxed) {
            break;
        }
    }
    if let Err(error) = socket.set_read_timeout(None) {
        tracing::debug!("waking up now and then: {error}");
    }
}

fn serve(socket: &Socket, shared: &Shared, counters: &Counters, batch: &mut Batch) {
    let mut stopwatch = Stopwatch::default();
    let mut turn = 0_usize;
    loop {
        let n = match batch.receive(socket.as_fd()) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // An answer that could not be delivered earlier; not this socket's end.
            Err(error) => {
                tracing::debug!("receiving: {error}");
                counters.socket_errors.add(1);
                0
            }
        };
        let sampled = stopwatch.start();
        let view = shared.view.load();
        let names = batch.queries().filter_map(|query| query.get(HEADER..));
        view.look_ahead::<BATCH>(names);
        for idx in 0..n {
            turn = turn.wrapping_add(1);
            let Some(slot) = batch.slot(idx) else { continue };
            let client = slot.client();
            let allowed = shared.allows(&view, client);
            let ask = Ask { transport: Transport::Udp, turn, allowed };
            match respond(&view, slot.query, ask, slot.reply) {
                Ok(reply) => {
                    let n_query = slot.query.len();
                    counters.count(&Seen {
                        transport: Transport::Udp,
                        client,
                        n_query,
                        allowed,
                        reply,
                    });
                    batch.reply(idx, reply.len);
                }
                // A stopped socket wakes its thread with nothing.
                Err(Drop::Short) if slot.query.is_empty() => {}
                Err(drop) => counters.count_dropped(drop),
            }
        }
        drop(view);
        counters.socket_errors.add(batch.send(socket.as_fd()) as u64);
        stopwatch.stop(sampled, n as u64, counters);
        if shared.stopping.load(Ordering::Relaxed) && n <= 1 {
            return;
        }
    }
}
