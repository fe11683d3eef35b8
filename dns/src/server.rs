//! Sockets around [`respond`](crate::respond::respond).
//!
//! ```text
//!  UDP   a thread and a socket a core ──batch──▶ respond ──▶ batch ─┐   answers from the view
//!  TCP   a task a connection ─────────frames──▶ respond ──▶ frames ─┤   that is current
//!                                                  ▲                ▼
//!  feed ─▶ ZoneView::update ─▶ swap ───────────────┘             Counters ─▶ /metrics
//! ```

mod admin;
mod batch;
pub mod clock;
pub mod device;
mod follow;
mod gate;
mod metrics;
mod pages;
pub mod saved;
mod sources;
mod tcp;
mod udp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use socket2::Socket;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::zone::{Origin, ZoneView};
pub use admin::{Admin, Ports};
pub use follow::follow;
pub use metrics::Metrics;
pub use sources::Sources;

/// Where and for whom to answer.
#[derive(Clone, Debug)]
pub struct Listen {
    /// UDP and TCP.
    pub addresses: Vec<SocketAddr>,
    /// UDP threads for each address.
    pub n_workers: usize,
    /// Who may ask.
    pub sources: Sources,
    /// Those of the addresses to which this node leads questions, and only while names are known:
    /// each has a port for packets besides, and is silent until then, since others answer.
    pub led: Vec<IpAddr>,
}

/// What all parts of the server share.
#[derive(Debug)]
pub(crate) struct Shared {
    view: ArcSwap<ZoneView>,
    metrics: Metrics,
    sources: Sources,
    stopping: AtomicBool,
}

impl Shared {
    /// Whether a client may ask: as configured, or since it is of this node.
    fn allows(&self, view: &ZoneView, client: Option<IpAddr>) -> bool {
        self.sources.allow(client) || client.is_some_and(|client| view.is_of_node(client))
    }
}

/// A server that answers.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    workers: Vec<udp::Worker>,
    tcp: JoinSet<()>,
    addresses: Vec<SocketAddr>,
    packet_ports: Vec<SocketAddr>,
}

/// A socket to answer on, and what for.
#[derive(Debug)]
struct Opened {
    socket: Socket,
    bound: SocketAddr,
    led: bool,
}

/// An address cannot be listened on.
#[derive(Debug, Error)]
#[error("cannot listen on {listen} ({transport})")]
pub struct ListenError {
    listen: SocketAddr,
    transport: &'static str,
    source: io::Error,
}

impl Server {
    /// Opens every socket, then begins to answer. Needs a tokio runtime for TCP.
    ///
    /// # Errors
    /// An address cannot be had; nothing is answered then.
    pub fn start(listen: &Listen, view: ZoneView) -> Result<Self, ListenError> {
        let shared = Arc::new(Shared {
            view: ArcSwap::from_pointee(view),
            metrics: Metrics::default(),
            sources: listen.sources.clone(),
            stopping: AtomicBool::new(false),
        });
        let mut sockets = Vec::new();
        let mut listeners = Vec::new();
        let for_packets = listen.led.iter().map(|ip| SocketAddr::new(*ip, 0));
        for address in listen.addresses.iter().copied().chain(for_packets) {
            // Port 0 is chosen by the first socket and shared by the others.
            let listener = tcp::bind(address)?;
            let bound = listener.local_addr().map_err(|source| ListenError {
                listen: address,
                transport: "TCP",
                source,
            })?;
            let led = listen.led.contains(&bound.ip());
            for _ in 0..listen.n_workers.max(1) {
                sockets.push(Opened { socket: udp::Worker::bind(bound)?, bound, led });
            }
            listeners.push((bound, listener));
        }
        let mut addresses: Vec<SocketAddr> = listeners.iter().map(|(bound, _)| *bound).collect();
        let packet_ports = addresses.split_off(listen.addresses.len());
        let mut server = Self {
            workers: Vec::with_capacity(sockets.len()),
            tcp: JoinSet::new(),
            addresses,
            packet_ports,
            shared,
        };
        for (idx, opened) in sockets.into_iter().enumerate() {
            let listen = opened.bound;
            let shared = Arc::clone(&server.shared);
            let worker = udp::Worker::start(format!("dns-udp-{idx}"), opened, shared);
            let error = |source| ListenError { listen, transport: "UDP", source };
            server.workers.push(worker.map_err(error)?);
        }
        for (bound, listener) in listeners {
            server.accept(bound, listener)?;
        }
        Ok(server)
    }

    fn accept(
        &mut self,
        bound: SocketAddr,
        listener: std::net::TcpListener,
    ) -> Result<(), ListenError> {
        let error = |source| ListenError { listen: bound, transport: "TCP", source };
        let listener = TcpListener::from_std(listener).map_err(error)?;
        self.tcp.spawn(tcp::accept(listener, Arc::clone(&self.shared)));
        Ok(())
    }

    /// Where it listens, ports filled in.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where what is led here packet by packet is answered, in the order of [`Listen::led`].
    pub fn packet_ports(&self) -> &[SocketAddr] {
        &self.packet_ports
    }

    /// A handle by which the view is changed and read.
    pub fn names(&self) -> Names {
        Names { shared: Arc::clone(&self.shared) }
    }

    /// Answers what has arrived, and ends.
    pub async fn stop(mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            worker.stop();
        }
        self.tcp.shutdown().await;
    }
}

/// The names that a server answers for.
#[derive(Clone, Debug)]
pub struct Names {
    shared: Arc<Shared>,
}

impl Names {
    /// What is answered now.
    pub fn view(&self) -> Arc<ZoneView> {
        self.shared.view.load_full()
    }

    /// Answers from another view, from the next batch on.
    pub fn publish(&self, view: ZoneView) {
        let is_saved = view.origin() == Origin::Saved;
        self.shared.metrics.is_saved.store(u64::from(is_saved), Ordering::Relaxed);
        self.shared.metrics.views.add(1);
        self.shared.view.store(Arc::new(view));
    }

    /// Whether the cluster has been listed.
    pub fn is_synced(&self) -> bool {
        self.shared.view.load().origin() == Origin::Watch
    }

    /// What was counted, as Prometheus reads it.
    pub fn metrics(&self) -> String {
        self.shared.metrics.render()
    }
}
