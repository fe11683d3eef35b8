//! `fairlead dns`: answers for the names of the cluster.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::Context;
use dns::config::{Options, Zone};
use dns::corefile::Corefile;
use dns::server::{Admin, Listen, Names, Ports, Server, Sources, clock, device, follow, saved};
use dns::zone::{Origin, ZoneView};
use ipnet::IpNet;
use model::applied::AppliedReader;
use model::feed::FeedReader;
use model::watch::Watch;
use tokio::runtime;
use tracing::{info, warn};

use crate::node_args::{SourceArgs, host_name};
use crate::proxy::terminated;

/// Where a node that runs pods answers them.
const LINK_LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 20, 53));
/// More threads than this answer nothing sooner on one node.
const MAX_WORKERS: usize = 8;

/// Answer for the names of Services, endpoints and pods, from the objects as they are now. Without
/// --listen, on the loopback addresses and for this machine only. Names outside the cluster are
/// refused.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    serve: ServeArgs,
    /// The name of this node's Node object; the host name when absent.
    #[arg(long, value_name = "NODE", default_value = "")]
    hostname_override: String,
    /// Log more; -v 4 logs everything.
    #[arg(short, value_name = "LEVEL", default_value_t = 0)]
    v: u8,
}

/// What is answered for, and where.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    names: NameArgs,
    /// Where to listen, over UDP and TCP, for anybody; repeat it for more addresses.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<SocketAddr>,
    /// Answer this node and its pods there, and nobody else: an address, best a link-local one such as
    /// 169.254.20.53, which is added to the loopback device and kept; repeat it for the other family.
    #[arg(long, value_name = "ADDR")]
    link_local: Vec<IpAddr>,
    /// UDP threads for each address; by default one a core, eight at most.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Where /health is asked, if the Corefile does not say; "" is nowhere.
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:8080")]
    health_address: String,
    /// Where /ready is asked, likewise.
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:8181")]
    ready_address: String,
    /// Where /metrics is read, likewise.
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:9153")]
    metrics_address: String,
    /// Keep the names here, and answer from it after a restart until the cluster is listed, if it
    /// is ten minutes old at most; by default /var/lib/fairlead/names.json, with an API server.
    #[arg(long, value_name = "FILE")]
    snapshot: Option<PathBuf>,
}

/// What names there are.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct NameArgs {
    /// A Corefile; its kubernetes, health, ready and prometheus plugins are followed.
    #[arg(long, value_name = "FILE")]
    corefile: Option<PathBuf>,
    /// The domain of the cluster's names; with a Corefile, one that it serves.
    #[arg(long, value_name = "DOMAIN")]
    cluster_domain: Option<String>,
}

/// A server that answers, and what is kept beside it.
pub(crate) struct Dns {
    server: Server,
    admin: Option<Admin>,
    snapshot: Option<PathBuf>,
    lameduck: Duration,
    link_local: Vec<IpAddr>,
    /// Those of them that were added to the node for this process only.
    added: Vec<IpAddr>,
}

/// Whether the node leads questions to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Led {
    /// As soon as it has names, and as long as it lives. Its addresses outlive it.
    ByNode,
    /// Its clients know its addresses, which go with it.
    ByClients,
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// An address cannot be had, or the flags mean nothing; the message says what to do.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    crate::log(args.v);
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let node_name = match args.hostname_override.as_str() {
            "" => host_name()?,
            name => name.to_owned(),
        };
        let Watch { feed, health: _health, task, .. } =
            args.source.watch_everything(&node_name).await?;
        let dns = Dns::start(&args.serve, &args.source, Led::ByClients).await?;
        tokio::select! {
            () = task => warn!("the source of objects ended"),
            () = dns.follow(feed, None) => {}
            signal = terminated() => info!("{}: ending", signal?),
        }
        dns.stop().await;
        Ok(ExitCode::SUCCESS)
    })
}

impl Dns {
    /// Opens every address and begins to answer: from what was saved, or SERVFAIL. Needs a runtime.
    ///
    /// # Errors
    /// An address cannot be had, or the flags mean nothing; the message says what to do.
    pub(crate) async fn start(
        args: &ServeArgs,
        source: &SourceArgs,
        led: Led,
    ) -> anyhow::Result<Self> {
        let corefile = args.names.corefile()?;
        for problem in corefile.iter().flat_map(|corefile| &corefile.problems) {
            warn!("{problem}");
        }
        let mut added = Vec::new();
        if !args.link_local.is_empty() {
            added = device::ensure(&args.link_local).await?;
        }
        let mut listen = args.listen(corefile.as_ref());
        if led == Led::ByNode {
            added.clear();
            listen.led = reachable(&listen.addresses);
            listen.led.dedup();
        }
        let mut options = args.names.options(corefile.as_ref())?;
        options.addresses = reachable(&listen.addresses);
        let ports = args.ports(corefile.as_ref())?;
        let lameduck = corefile.map_or(Duration::ZERO, |corefile| corefile.lameduck);
        let snapshot = args.snapshot_file(source);
        let server = Server::start(&listen, first_view(options, snapshot.as_deref()))?;
        for address in server.addresses() {
            info!("answering on {address}");
        }
        let admin = admin(ports, &server.names());
        let link_local = args.link_local.clone();
        Ok(Self { server, admin, snapshot, lameduck, link_local, added })
    }

    /// The names that it answers for.
    pub(crate) fn names(&self) -> Names {
        self.server.names()
    }

    /// Where it listens.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        self.server.addresses()
    }

    /// Where it answers what is led to it packet by packet.
    pub(crate) fn packet_ports(&self) -> &[SocketAddr] {
        self.server.packet_ports()
    }

    /// Those of its addresses that others can ask.
    pub(crate) fn for_others(&self) -> Vec<SocketAddr> {
        let is_own =
            |ip: IpAddr| ip.is_loopback() || ip.is_unspecified() || self.link_local.contains(&ip);
        let addresses = self.server.addresses().iter().copied();
        addresses.filter(|address| !is_own(address.ip())).collect()
    }

    /// Those of its addresses that nobody but this node can ask.
    pub(crate) fn link_local(&self) -> &[IpAddr] {
        &self.link_local
    }

    /// Answers from what the feed says, until it ends. With `applied`, a name waits until its
    /// address is routed.
    pub(crate) async fn follow(&self, feed: FeedReader, applied: Option<AppliedReader>) {
        let names = self.server.names();
        tokio::select! {
            () = follow(feed, names.clone(), applied) => {}
            () = keep(self.snapshot.clone(), names) => {}
        }
    }

    /// Says that no questions should be sent here, waits as the Corefile says, and ends.
    pub(crate) async fn stop(self) {
        let names = self.server.names();
        if let Some(admin) = &self.admin {
            admin.retire();
            tokio::time::sleep(self.lameduck).await;
        }
        self.server.stop().await;
        if !self.added.is_empty()
            && let Err(error) = device::remove(&self.added).await
        {
            warn!("{error}");
        }
        if let Some(file) = self.snapshot.filter(|_| names.is_synced())
            && let Err(error) = saved::write(&file, names.view().snapshot())
        {
            warn!("{error}");
        }
        if let Some(admin) = self.admin {
            admin.stop().await;
        }
    }
}

impl NameArgs {
    fn corefile(&self) -> anyhow::Result<Option<Corefile>> {
        let Some(path) = &self.corefile else { return Ok(None) };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the Corefile {}", path.display()))?;
        Ok(Some(Corefile::parse(&text).with_context(|| path.display().to_string())?))
    }

    /// What to answer for.
    ///
    /// # Errors
    /// Corefile and flag contradict each other, or mean nothing.
    pub(crate) fn read(&self) -> anyhow::Result<Options> {
        self.options(self.corefile()?.as_ref())
    }

    fn options(&self, corefile: Option<&Corefile>) -> anyhow::Result<Options> {
        let mut options =
            corefile.map_or_else(Options::default, |corefile| corefile.options.clone());
        if let Some(domain) = &self.cluster_domain {
            let zone = Zone::parse(domain)
                .with_context(|| format!("--cluster-domain={domain}: write cluster.local"))?;
            let served = options.zones.iter().any(|served| served.lower == zone.lower);
            anyhow::ensure!(
                served || corefile.is_none(),
                "--cluster-domain={domain}: the Corefile does not serve it; name it there"
            );
            if corefile.is_none() {
                options.zones = vec![zone];
            }
        }
        Ok(options)
    }
}

impl ServeArgs {
    /// The domain of the cluster's names.
    pub(crate) fn cluster_domain(&self) -> &str {
        self.names.cluster_domain.as_deref().unwrap_or("cluster.local")
    }

    /// For a node that runs pods: its own pods are answered at a link-local address, and other nodes
    /// at its own addresses, unless the flags say where.
    pub(crate) fn for_pods(&self, node: &[IpAddr]) -> Self {
        let mut args = self.clone();
        if args.listen.is_empty() {
            args.listen = node.iter().map(|ip| SocketAddr::new(*ip, 53)).collect();
        }
        if args.link_local.is_empty() {
            args.link_local = vec![LINK_LOCAL];
        }
        args
    }

    fn listen(&self, corefile: Option<&Corefile>) -> Listen {
        let n_cores = available_parallelism().map_or(1, usize::from);
        let n_workers = self.threads.unwrap_or_else(|| n_cores.min(MAX_WORKERS));
        if !self.listen.is_empty() {
            let port = self.listen.first().map_or(53, SocketAddr::port);
            let own = self.link_local.iter().map(|ip| SocketAddr::new(*ip, port));
            let addresses = self.listen.iter().copied().chain(own).collect();
            return Listen { addresses, n_workers, sources: Sources::Any, led: Vec::new() };
        }
        let port = corefile.map_or(53, |corefile| corefile.port);
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        // A host without IPv6 has one of them.
        let exists = |ip: &IpAddr| UdpSocket::bind((*ip, 0)).is_ok();
        let own = loopback.into_iter().filter(exists).chain(self.link_local.iter().copied());
        let addresses = own.map(|ip| SocketAddr::new(ip, port)).collect();
        // Who asks from the node itself may do so from the address that it asks.
        let sources = Sources::Local(self.link_local.iter().map(|ip| IpNet::from(*ip)).collect());
        Listen { addresses, n_workers, sources, led: Vec::new() }
    }

    fn ports(&self, corefile: Option<&Corefile>) -> anyhow::Result<Ports> {
        if let Some(corefile) = corefile {
            let Corefile { health, ready, metrics, .. } = *corefile;
            return Ok(Ports { health, ready, metrics });
        }
        let read = |flag: &str, text: &str| -> anyhow::Result<Option<SocketAddr>> {
            if text.is_empty() {
                return Ok(None);
            }
            let address =
                text.parse().with_context(|| format!("{flag}={text}: write ADDR:PORT"))?;
            Ok(Some(address))
        };
        Ok(Ports {
            health: read("--health-address", &self.health_address)?,
            ready: read("--ready-address", &self.ready_address)?,
            metrics: read("--metrics-address", &self.metrics_address)?,
        })
    }

    fn snapshot_file(&self, source: &SourceArgs) -> Option<PathBuf> {
        let default = || PathBuf::from("/var/lib/fairlead/names.json");
        let by_default = source.objects.is_none().then(default);
        self.snapshot.clone().or(by_default)
    }
}

/// The addresses by which others reach this server.
fn reachable(listen: &[SocketAddr]) -> Vec<IpAddr> {
    let addresses = listen.iter().map(SocketAddr::ip);
    addresses.filter(|ip| !ip.is_loopback() && !ip.is_unspecified()).collect()
}

/// What is answered until the cluster is listed.
fn first_view(options: Options, snapshot: Option<&std::path::Path>) -> ZoneView {
    let options = Arc::new(options);
    let Some(file) = snapshot.filter(|file| file.exists()) else {
        return ZoneView::empty(options);
    };
    match saved::read(file) {
        Ok(snapshot) => {
            info!("answering from {} until the cluster is listed", file.display());
            ZoneView::build(options, &snapshot, Origin::Saved, clock::serial())
        }
        Err(error) => {
            info!("not answering before the cluster is listed: {error}");
            ZoneView::empty(options)
        }
    }
}

/// Names are answered for even where their pages cannot be read.
fn admin(ports: Ports, names: &Names) -> Option<Admin> {
    Admin::start(ports, names)
        .inspect_err(|error| {
            let why = std::error::Error::source(error).map(ToString::to_string);
            warn!("no health, readiness or metrics: {error}: {}", why.unwrap_or_default());
        })
        .ok()
}

async fn keep(file: Option<PathBuf>, names: Names) {
    match file {
        Some(file) => saved::keep(file, names).await,
        None => std::future::pending().await,
    }
}
