//! `fairlead proxy`: routes the Services of one node.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use load::devices::Means;
use load::dns::OwnDns;
use load::pinned::Pinned;
use load::pins::Pins;
use load::{Capacity, Config};
use model::applied::AppliedWriter;
use model::feed::FeedReader;
use model::notice::Notice;
use model::watch::{Health, Notices, Watch};
use proxy::backend::Backend;
use proxy::backend::ebpf::{Addresses, Ebpf, Packets};
use proxy::backend::iptables::Iptables;
use proxy::backend::ipvs::{self, Ipvs};
use proxy::backend::nftables::Nftables;
use proxy::config::{HostPorts, NodeConfig, ProxyMode};
use proxy::conntrack::Cleaner;
use proxy::left_alone::{Keeper, Seen};
use proxy::observer::Observer;
use proxy::plan::Plan;
use proxy::status::{Status, file_of};
use proxy::sync::{Round, SyncError, Syncer};
use proxy::{notices, pods, sockets, sync};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

mod checks;
pub(crate) mod choice;
mod conntrack_args;
mod ipvs_args;
mod left_alone;
mod node;
mod pages;
mod switch;

use crate::node_args::{NodeArgs, SourceArgs};
use crate::proxy::checks::Checks;
use crate::proxy::conntrack_args::ConntrackArgs;
use crate::proxy::ipvs_args::IpvsArgs;
use crate::proxy::node::SocketArgs;
use crate::proxy::pages::{PageArgs, Pages};
use crate::proxy::switch::Switch;

/// Where maps and links are by default.
const BPFFS: &str = "/sys/fs/bpf/fairlead";
/// How often the status file is written, at most.
const STATUS_PERIOD: Duration = Duration::from_millis(200);

/// Route the Services of this node, until told to stop. What is programmed stays in the kernel and
/// goes on working; the next start takes it over. `fairlead cleanup` removes it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    kernel: KernelArgs,
    /// Log more; -v 4 logs everything.
    #[arg(short, value_name = "LEVEL", default_value_t = 0)]
    v: u8,
}

/// What is programmed, and where it is kept.
#[derive(Debug, clap::Args)]
pub(crate) struct KernelArgs {
    #[command(flatten)]
    sockets: SocketArgs,
    /// The cgroup v2 directory above every pod; by default the root of the hierarchy.
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Option<PathBuf>,
    /// A directory on a BPF file system, this node's own, for maps and links.
    #[arg(long, value_name = "PATH", default_value = BPFFS)]
    bpffs: PathBuf,
    /// Attach packet programs as on kernels before 6.6.
    #[arg(long, hide = true)]
    clsact: bool,
    /// How many frontends (address, port and protocol) fit.
    #[arg(long, value_name = "N", default_value_t = Capacity::default().frontends)]
    max_frontends: u32,
    /// How many endpoints fit, over all Services.
    #[arg(long, value_name = "N", default_value_t = Capacity::default().endpoints)]
    max_endpoints: u32,
    #[command(flatten)]
    conntrack: ConntrackArgs,
    /// An eBPF object in the place of the embedded one.
    #[arg(long, value_name = "FILE", hide = true)]
    ebpf_object: Option<PathBuf>,
    /// How often to look whether somebody else changed what was programmed, and to repair it.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    iptables_sync_period: Duration,
    #[command(flatten)]
    ipvs: IpvsArgs,
    #[command(flatten)]
    pages: PageArgs,
}

/// A proxy that is prepared: what a former process left was adopted, and nothing is written yet.
pub(crate) struct Proxy {
    node_name: Arc<str>,
    bpffs: PathBuf,
    syncer: AnySyncer,
    beside: Beside,
    switch: Switch,
    status: Status,
    audit_period: Duration,
    pages: (PageArgs, [Option<SocketAddr>; 2]),
}

/// The loop of each mode.
enum AnySyncer {
    Ebpf(Box<Syncer<Ebpf>>),
    Nftables(Box<Syncer<Nftables>>),
    Iptables(Box<Syncer<Iptables>>),
    Ipvs(Box<Syncer<Ipvs>>),
}

/// What the loop of a mode is accompanied by.
#[derive(Default)]
struct Beside {
    ipvs: Option<Arc<Mutex<ipvs::Node>>>,
    addresses: Option<Arc<Mutex<Addresses>>>,
    packets: Option<Arc<Mutex<Packets>>>,
    own_dns: Option<OwnDns>,
    left_alone: Option<Keeper>,
    log: Option<load::Log>,
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// The node lacks something, or the flags mean nothing; the message says what to do.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    crate::log(args.v);
    let proxy = Proxy::prepare(&args.node, &args.kernel, None, false)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let watched = match proxy.beside.left_alone {
            Some(_) => args.source.watch_with_socket_lb(proxy.node_name()).await?,
            None => args.source.watch(proxy.node_name()).await?,
        };
        let ending = async {
            info!("{}: leaving what is programmed in place", terminated().await?);
            Ok(())
        };
        proxy.serve(watched, ending).await
    })
}

impl Proxy {
    /// Opens what is there already. `teller` is for those who wait until an address is routed; who
    /// `runs_pods` leads ports of the node to those that ask for them.
    ///
    /// # Errors
    /// The node lacks something, or the flags mean nothing; the message says what to do.
    pub(crate) fn prepare(
        node: &NodeArgs,
        kernel: &KernelArgs,
        teller: Option<AppliedWriter>,
        runs_pods: bool,
    ) -> anyhow::Result<Self> {
        let mut flags = node.as_typed()?;
        if flags.is_auto() {
            let chosen = choice::choose(&file_of(&kernel.bpffs), &kernel.bpffs)?;
            chosen.name().clone_into(&mut flags.proxy_mode);
        }
        let mode = flags.mode()?;
        let mut node = flags.meant()?;
        // Who waits for routes tells names.
        node.answers_names = teller.is_some();
        node.host_ports = if runs_pods { HostPorts::Led } else { HostPorts::Left };
        let audit_period = kernel.iptables_sync_period;
        let pages = (kernel.pages.clone(), kernel.pages.addresses()?);
        let node_name = Arc::clone(&node.node_name);
        let mut status = Status {
            pid: std::process::id(),
            mode: mode.name().to_owned(),
            node: node_name.to_string(),
            answers_names: node.answers_names,
            ..Status::default()
        };
        let (mut syncer, beside) = match mode {
            ProxyMode::Ebpf => {
                status.cgroup = kernel.config().cgroup_dir()?;
                kernel.ebpf(node)?
            }
            ProxyMode::Nftables => {
                let supports = Arc::new(Nftables::can);
                let syncer = Syncer::new(Nftables::new(), node, supports, Box::new(|_| Ok(())))?;
                (AnySyncer::Nftables(Box::new(syncer)), Beside::default())
            }
            ProxyMode::Iptables => {
                let supports = Arc::new(Iptables::can);
                let syncer = Syncer::new(Iptables::new(), node, supports, Box::new(|_| Ok(())))?;
                (AnySyncer::Iptables(Box::new(syncer)), Beside::default())
            }
            ProxyMode::Ipvs => kernel.ipvs(node)?,
        };
        if let Some(teller) = teller {
            syncer.tell(teller);
        }
        let bpffs = kernel.bpffs.clone();
        let switch = Switch::to(mode, kernel.config(), kernel.sockets.meant());
        Ok(Self { node_name, bpffs, syncer, beside, switch, status, audit_period, pages })
    }

    /// The name of this node's Node object.
    pub(crate) fn node_name(&self) -> &str {
        &self.node_name
    }

    /// The file that `fairlead status` reads.
    pub(crate) fn status_file(&self) -> PathBuf {
        file_of(&self.bpffs)
    }

    /// What leads questions to this node's own DNS server, once; the eBPF mode has it.
    pub(crate) const fn take_own_dns(&mut self) -> Option<OwnDns> {
        self.beside.own_dns.take()
    }

    /// Routes what is watched, until that ends or something is `ending`. What is programmed stays.
    ///
    /// # Errors
    /// The kernel cannot be programmed any more, or `ending` failed.
    pub(crate) async fn serve(
        self,
        watched: Watch,
        ending: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<ExitCode> {
        let (stop, stopped) = watch::channel(false);
        let (rounds, seen) = watch::channel(None);
        let (destroyed, n_destroyed) = watch::channel(0);
        let (removed, n_removed) = watch::channel(0);
        let (found, left_alone) = watch::channel(Seen::new());
        let status_file = file_of(&self.bpffs);
        let by_sockets = matches!(self.syncer, AnySyncer::Ebpf(_));
        let following = node::follow_addresses(self.beside.addresses)?;
        let following_ipvs = node::follow_ipvs(self.beside.ipvs)?;
        let packets = self.beside.packets.clone();
        let following_links = node::follow_links(self.beside.packets)?;
        // Those that the eBPF mode has connected outlive it.
        let has_sockets = by_sockets || !Pins::new(&self.bpffs).is_empty();
        let (pages, addresses) = &self.pages;
        let observer = self.syncer.observer();
        let (troubles, unchecked) = watch::channel(BTreeSet::new());
        // Behind for as long as that, a proxy is not well.
        let checks = Checks::new(observer.clone(), self.audit_period * 2, troubles);
        let of = Pages {
            observer,
            mode: self.status.mode.clone(),
            bpffs: by_sockets.then(|| self.bpffs.clone()),
            sync_period: self.audit_period,
            n_stale: [n_destroyed.clone(), n_removed.clone()],
        };
        let beside = TellBeside { destroyed: n_destroyed, removed: n_removed, left_alone };
        let mut syncing = self.syncer.spawn(watched.feed, rounds, stopped, self.audit_period)?;
        tokio::select! {
            ended = &mut syncing => return finished(ended),
            () = watched.task => warn!("the source of objects ended"),
            () = end_stale_sockets(&self.bpffs, seen.clone(), destroyed), if has_sockets => {}
            () = remove_stale_flows(seen.clone(), removed), if !by_sockets => {}
            () = following => {}
            () = following_ipvs => {}
            () = following_links => {}
            () = left_alone::keep(self.beside.left_alone, packets, seen.clone(), found) => {}
            () = node::keep_names(&status_file, seen.clone()), if by_sockets => {}
            () = node::reserve_ports(&status_file, seen.clone()), if by_sockets => {}
            () = tell_owners(seen.clone(), unchecked, watched.notices) => {}
            () = checks.serve(seen.clone()) => {}
            () = self.switch.see_to(seen.clone()) => {}
            () = tell(self.status, &status_file, seen, watched.health, beside) => {}
            () = drain_log(self.beside.log) => {}
            ended = pages.serve(*addresses, of) => ended?,
            ended = ending => ended?,
        }
        stop.send_replace(true);
        finished(syncing.await)
    }
}

impl AnySyncer {
    fn observer(&self) -> Observer {
        match self {
            Self::Ebpf(syncer) => syncer.observer(),
            Self::Nftables(syncer) => syncer.observer(),
            Self::Iptables(syncer) => syncer.observer(),
            Self::Ipvs(syncer) => syncer.observer(),
        }
    }

    fn tell(&mut self, teller: AppliedWriter) {
        match self {
            Self::Ebpf(syncer) => syncer.tell(teller),
            Self::Nftables(syncer) => syncer.tell(teller),
            Self::Iptables(syncer) => syncer.tell(teller),
            Self::Ipvs(syncer) => syncer.tell(teller),
        }
    }

    fn spawn(
        self,
        feed: FeedReader,
        rounds: watch::Sender<Option<Arc<Round>>>,
        stopped: watch::Receiver<bool>,
        audit_period: Duration,
    ) -> anyhow::Result<oneshot::Receiver<Result<(), SyncError>>> {
        match self {
            Self::Ebpf(syncer) => spawn_sync(*syncer, feed, rounds, stopped, audit_period),
            Self::Nftables(syncer) => spawn_sync(*syncer, feed, rounds, stopped, audit_period),
            Self::Iptables(syncer) => spawn_sync(*syncer, feed, rounds, stopped, audit_period),
            Self::Ipvs(syncer) => spawn_sync(*syncer, feed, rounds, stopped, audit_period),
        }
    }
}

impl KernelArgs {
    fn ebpf(&self, node: NodeConfig) -> anyhow::Result<(AnySyncer, Beside)> {
        let config = self.config();
        let cgroup = config.cgroup_dir()?;
        let left_alone = Keeper::default();
        let keeper = left_alone.clone();
        let check = Box::new(move |plan: &Plan| {
            pods::check(plan, &cgroup)?;
            // Before a call is translated that ought not to be.
            if let Err(error) = keeper.keep(&plan.left_alone) {
                warn!("{error}; trying again");
            }
            Ok(())
        });
        let backend = Ebpf::new(config).with_sockets(self.sockets.meant());
        let mut syncer = Syncer::new(backend, node, node::supports(), check)?;
        if let Some(dataplane) = syncer.backend().dataplane() {
            left_alone.open(dataplane.left_alone()?);
        }
        let beside = Beside {
            left_alone: Some(left_alone),
            addresses: syncer.backend().addresses(),
            packets: syncer.backend().packets(),
            own_dns: syncer.backend().dataplane().map(load::Dataplane::own_dns).transpose()?,
            log: syncer.backend().dataplane().and_then(load::Dataplane::take_log),
            ..Beside::default()
        };
        if let Some(packets) = &beside.packets {
            let mut packets = packets.lock().unwrap_or_else(PoisonError::into_inner);
            packets.set_lifetimes(self.conntrack.lifetimes());
        }
        Ok((AnySyncer::Ebpf(Box::new(syncer)), beside))
    }

    fn ipvs(&self, node: NodeConfig) -> anyhow::Result<(AnySyncer, Beside)> {
        let backend = Ipvs::new(self.ipvs.meant(node.masquerade_all)?);
        let beside = Beside { ipvs: Some(backend.node()), ..Beside::default() };
        let syncer = Syncer::new(backend, node, Arc::new(Ipvs::can), Box::new(|_| Ok(())))?;
        Ok((AnySyncer::Ipvs(Box::new(syncer)), beside))
    }

    fn config(&self) -> Config {
        Config {
            bpffs: self.bpffs.clone(),
            cgroup: self.cgroup.clone(),
            object: self.ebpf_object.clone(),
            capacity: Capacity {
                frontends: self.max_frontends,
                endpoints: self.max_endpoints,
                flows: self.conntrack.connections(),
            },
            means: if self.clsact { Means::Clsact } else { Means::of_this_kernel() },
        }
    }
}

/// Starts the loop on a thread of its own, since it blocks while it writes.
fn spawn_sync<B: Backend + 'static>(
    syncer: Syncer<B>,
    feed: FeedReader,
    rounds: watch::Sender<Option<Arc<Round>>>,
    stopped: watch::Receiver<bool>,
    audit_period: Duration,
) -> anyhow::Result<oneshot::Receiver<Result<(), SyncError>>> {
    let runtime = runtime::Builder::new_current_thread().enable_time().build()?;
    let (done, ended) = oneshot::channel();
    thread::Builder::new().name("sync".to_owned()).spawn(move || {
        let result = runtime.block_on(sync::run(syncer, feed, rounds, stopped, audit_period));
        // Nobody listens only when the process is ending.
        _ = done.send(result);
    })?;
    Ok(ended)
}

/// A duration as kube-proxy takes it: `30s`, `1m`, `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let duration = duration_or_zero(text)?;
    if duration.is_zero() { Err("must be more than zero".to_owned()) } else { Ok(duration) }
}

/// The same, where zero leaves things as they are.
fn duration_or_zero(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 =
        digits.parse().map_err(|error| format!("{text:?} is no duration ({error}); write 30s"))?;
    match text.trim_start_matches(digits) {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        "h" => Ok(Duration::from_secs(number * 3600)),
        _ => Err(format!("{text:?} has no unit; write 30s, 1m or 500ms")),
    }
}

fn finished(
    ended: Result<Result<(), SyncError>, oneshot::error::RecvError>,
) -> anyhow::Result<ExitCode> {
    ended.context("the sync loop died; this is a bug, please report it with the log")??;
    Ok(ExitCode::SUCCESS)
}

/// After each round that changed endpoints of such sockets, ends those that are connected to none.
async fn end_stale_sockets(
    bpffs: &Path,
    mut seen: watch::Receiver<Option<Arc<Round>>>,
    destroyed: watch::Sender<u64>,
) {
    while seen.changed().await.is_ok() {
        let Some(round) = seen.borrow_and_update().clone() else { continue };
        if !round.sockets_changed {
            continue;
        }
        let pinned = Pinned::under(bpffs);
        let ended =
            tokio::task::spawn_blocking(move || match pinned.udp_peers().and_then(|it| it.all()) {
                Ok(peers) => sockets::destroy(sockets::stale(peers, &round.plan)),
                Err(error) => {
                    warn!("cannot look for sockets whose endpoint has gone: {error}");
                    0
                }
            });
        let n = ended.await.unwrap_or_default();
        if n > 0 {
            info!(n, "ended connected sockets whose endpoint has gone");
            destroyed.send_modify(|sum| *sum += n as u64);
        }
    }
}

/// After each round that changed UDP endpoints, removes the flows that lead to none.
async fn remove_stale_flows(
    mut seen: watch::Receiver<Option<Arc<Round>>>,
    removed: watch::Sender<u64>,
) {
    let mut cleaner = Cleaner::default();
    while seen.changed().await.is_ok() {
        let Some(round) = seen.borrow_and_update().clone() else { continue };
        if !round.udp_changed {
            continue;
        }
        let cleaned = tokio::task::spawn_blocking(move || {
            let cleaned = cleaner.clean(&round.plan);
            (cleaner, cleaned)
        });
        let cleaned = match cleaned.await {
            Ok((back, cleaned)) => {
                cleaner = back;
                cleaned
            }
            Err(_) => return,
        };
        match cleaned {
            Ok(0) => {}
            Ok(n) => {
                info!(n, "removed UDP flows whose endpoint has gone");
                removed.send_modify(|sum| *sum += n as u64);
            }
            Err(error) => warn!("cannot look for UDP flows whose endpoint has gone: {error}"),
        }
    }
}

/// What is told besides of what is done beside the loop.
struct TellBeside {
    destroyed: watch::Receiver<u64>,
    removed: watch::Receiver<u64>,
    left_alone: watch::Receiver<Seen>,
}

/// Keeps the status file up to date, and logs each problem once.
async fn tell(
    mut status: Status,
    file: &Path,
    mut seen: watch::Receiver<Option<Arc<Round>>>,
    mut health: watch::Receiver<Health>,
    TellBeside { mut destroyed, mut removed, left_alone: mut alone }: TellBeside,
) {
    let mut known = BTreeSet::new();
    let mut warned = false;
    loop {
        let round = seen.borrow_and_update().clone();
        let source = health.borrow_and_update().clone();
        status.n_sockets_destroyed = *destroyed.borrow_and_update();
        status.n_flows_removed = *removed.borrow_and_update();
        status.left_alone = left_alone::in_words(&alone.borrow_and_update());
        status.source = source.source.to_string();
        status.source_errors = source
            .errors
            .iter()
            .map(|(part, error)| (part.to_string(), error.to_string()))
            .collect();
        if let Some(round) = round {
            status.show(&round);
            log_problems(&status.problems, &mut known);
        }
        if let Err(error) = status.write(file)
            && !warned
        {
            warned = true;
            warn!("cannot write {}, which `fairlead status` reads: {error}", file.display());
        }
        tokio::time::sleep(STATUS_PERIOD).await;
        tokio::select! {
            changed = seen.changed() => if changed.is_err() { return std::future::pending().await },
            Ok(()) = health.changed() => {}
            Ok(()) = destroyed.changed() => {}
            Ok(()) = removed.changed() => {}
            Ok(()) = alone.changed() => {}
        }
    }
}

/// Has the owners of objects told what is left out.
async fn tell_owners(
    mut seen: watch::Receiver<Option<Arc<Round>>>,
    mut unchecked: watch::Receiver<BTreeSet<Notice>>,
    notices: Notices,
) {
    loop {
        tokio::select! {
            changed = seen.changed() => if changed.is_err() { break },
            Ok(()) = unchecked.changed() => {}
        }
        if let Some(round) = &*seen.borrow_and_update() {
            let unchecked = unchecked.borrow_and_update();
            notices.set(notices::of(round).into_iter().chain(unchecked.iter().cloned()).collect());
        }
        tokio::time::sleep(STATUS_PERIOD).await;
    }
    std::future::pending::<()>().await;
}

fn log_problems(problems: &[String], known: &mut BTreeSet<String>) {
    for problem in problems {
        if !known.contains(problem) {
            warn!("{problem}");
        }
    }
    *known = problems.iter().cloned().collect();
}

/// Passes the programs' log on, in a build that has one.
async fn drain_log(log: Option<load::Log>) {
    let Some(mut log) = log else { return std::future::pending().await };
    loop {
        log.flush();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The name of the signal that ended the wait.
pub(crate) async fn terminated() -> anyhow::Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => Ok("SIGINT"),
        _ = terminate.recv() => Ok("SIGTERM"),
    }
}
