//! Endpoints that go as pods of Kubernetes do, and come again.

use std::net::Ipv6Addr;

use sandbox::manifest::{Endpoint, Service, State};
use sandbox::{Pod, hello};
use socket2::{Domain, Socket, Type};
use tests::cluster::Cluster;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use super::kills::Lives;

/// How many steps an endpoint of which nobody knows any more goes on accepting: a connection may have
/// been led to it just before.
const GRACE: u32 = 10;

/// The endpoints of a Service, each of which goes and comes, but for one.
pub(super) struct Flapping<'a> {
    cluster: &'a Cluster,
    service: &'a Service,
    runtime: Runtime,
    steady: Endpoint,
    webs: Vec<Web>,
    n_came: u64,
}

struct Web {
    pod: Pod,
    server: Option<Server>,
    /// Connections of servers that are closed.
    kept: Vec<JoinSet<()>>,
    phase: Phase,
}

/// ```text
/// Ready ─▶ Terminating ─▶ Gone ─▶ Forgotten ─▶ Closed ─▶ Ready
/// └── in the slice ───┘
/// └── accepting ──────────────────────────┘
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Ready,
    Terminating,
    /// In the time of that process.
    Gone(u64),
    /// A later one is in sync, since so many steps.
    Forgotten(u32),
    Closed,
}

impl<'a> Flapping<'a> {
    pub(super) fn new(
        cluster: &'a Cluster,
        service: &'a Service,
        steady: Endpoint,
        pods: Vec<Pod>,
    ) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let webs = pods.into_iter().map(|pod| Web::open(pod, &runtime)).collect();
        let flapping = Self { cluster, service, runtime, steady, webs, n_came: 0 };
        flapping.write();
        flapping
    }

    /// How many have come again.
    pub(super) fn n_came(&self) -> u64 {
        self.n_came
    }

    /// One goes, unless half of them are away; the others get on. Says whether one went.
    pub(super) fn step(&mut self, lives: &Lives) -> bool {
        for web in &mut self.webs {
            let came = web.get_on(&self.runtime, lives);
            self.n_came += u64::from(came);
        }
        let n_ready = self.webs.iter().filter(|web| web.phase == Phase::Ready).count();
        let goes = n_ready * 2 > self.webs.len();
        if goes {
            self.one_goes();
        }
        self.write();
        // Whoever is started after this finds what was written.
        for web in &mut self.webs {
            if let Phase::Gone(since) = &mut web.phase {
                *since = (*since).min(lives.now());
            }
        }
        goes
    }

    /// The next one in turn that is ready.
    fn one_goes(&mut self) {
        // Whoever went last is the last to go again.
        self.webs.rotate_left(1);
        let mut ready = self.webs.iter_mut().filter(|web| web.phase == Phase::Ready);
        ready.next().unwrap().phase = Phase::Terminating;
    }

    fn write(&self) {
        let flapping = self.webs.iter().filter_map(Web::endpoint);
        let endpoints: Vec<_> = flapping.chain([self.steady.clone()]).collect();
        self.cluster.folder().write_endpoints(self.service, &endpoints).unwrap();
    }
}

impl Web {
    fn open(pod: Pod, runtime: &Runtime) -> Self {
        let server = Some(Server::open(&pod, runtime));
        Self { pod, server, kept: Vec::new(), phase: Phase::Ready }
    }

    fn endpoint(&self) -> Option<Endpoint> {
        let endpoint = Endpoint::of(&self.pod);
        match self.phase {
            Phase::Ready => Some(endpoint),
            Phase::Terminating => Some(endpoint.in_state(State::Terminating)),
            Phase::Gone(_) | Phase::Forgotten(_) | Phase::Closed => None,
        }
    }

    /// Says whether it has come again.
    fn get_on(&mut self, runtime: &Runtime, lives: &Lives) -> bool {
        self.phase = match self.phase {
            Phase::Ready => Phase::Ready,
            Phase::Terminating => Phase::Gone(u64::MAX),
            Phase::Gone(since) if lives.later_is_in_sync(since) => Phase::Forgotten(0),
            Phase::Gone(since) => Phase::Gone(since),
            Phase::Forgotten(GRACE) => {
                self.kept.push(self.server.take().unwrap().close(runtime));
                Phase::Closed
            }
            Phase::Forgotten(steps) => Phase::Forgotten(steps + 1),
            Phase::Closed => {
                self.server = Some(Server::open(&self.pod, runtime));
                self.phase = Phase::Ready;
                return true;
            }
        };
        false
    }
}

/// Accepts until it is closed. What it has accepted it answers as long as the client wants.
struct Server {
    close: oneshot::Sender<()>,
    accepting: JoinHandle<JoinSet<()>>,
}

impl Server {
    fn open(pod: &Pod, runtime: &Runtime) -> Self {
        let listener = pod.netns().run(listener).unwrap();
        let _inside = runtime.enter();
        let listener = TcpListener::from_std(listener.into()).unwrap();
        let (close, closed) = oneshot::channel();
        let accepting = runtime.spawn(accept(listener, closed, pod.name().to_owned()));
        Self { close, accepting }
    }

    /// The connections that it has go on.
    fn close(self, runtime: &Runtime) -> JoinSet<()> {
        self.close.send(()).unwrap();
        runtime.block_on(self.accepting).unwrap()
    }
}

/// At every address of both families.
fn listener() -> Socket {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    // Connections of before go on.
    socket.set_reuse_address(true).unwrap();
    socket.bind(&std::net::SocketAddr::from((Ipv6Addr::UNSPECIFIED, hello::PORT)).into()).unwrap();
    socket.listen(1024).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

async fn accept(
    listener: TcpListener,
    mut closed: oneshot::Receiver<()>,
    name: String,
) -> JoinSet<()> {
    let answer = format!("{name}\n");
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        tokio::select! {
            _ = &mut closed => break,
            accepted = listener.accept() => {
                let (stream, _) = accepted.unwrap();
                connections.spawn(converse(stream, answer.clone()));
            }
        }
    }
    // Who is connected already is not sent away.
    let listener = listener.into_std().unwrap();
    while let Ok((stream, _)) = listener.accept() {
        stream.set_nonblocking(true).unwrap();
        let stream = TcpStream::from_std(stream).unwrap();
        connections.spawn(converse(stream, answer.clone()));
    }
    connections
}

/// A line back for each line.
async fn converse(stream: TcpStream, answer: String) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while let Ok(1..) = stream.read_line(&mut line).await {
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
        line.clear();
    }
}
