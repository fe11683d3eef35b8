//! `fairlead control`: the Kubernetes API on one machine.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use api::{Config, Ranges, Retention, Security, Server};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Serve the Kubernetes API from this process, until told to stop: enough of Kubernetes to run and
/// try Fairlead without a cluster. Everything is kept in the data directory.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where everything is kept; made if it is not there.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6443")]
    listen: SocketAddr,
    /// Write a kubeconfig of the administrator here.
    #[arg(long, value_name = "FILE")]
    kubeconfig_out: Option<PathBuf>,
    /// Make a token by which nodes join (good for a day; `kubectl` makes others as Secrets of type
    /// bootstrap.kubernetes.io/token), and write the command that takes it here.
    #[arg(long, value_name = "FILE", requires = "secure")]
    join_out: Option<PathBuf>,
    /// Serve HTTPS with a certificate authority made for it, and ask for tokens (RBAC). Without
    /// it, plain HTTP on loopback only.
    #[arg(long)]
    secure: bool,
    /// The address that the Service default/kubernetes leads to; by default the one listened on.
    #[arg(long, value_name = "ADDR")]
    advertise_address: Option<IpAddr>,
    /// The ranges of cluster IPs, one or two families; the first is the default.
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',', default_value = "10.96.0.0/16")]
    service_cluster_ip_range: Vec<String>,
    /// The ranges of pods' addresses, one or two families: each node that brings none is given a /24
    /// of IPv4 and a /64 of IPv6. Without it, nodes bring theirs (`--pod-cidr`).
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    cluster_cidr: Vec<String>,
    /// The range of node ports.
    #[arg(long, value_name = "FROM-TO", default_value = "30000-32767")]
    service_node_port_range: String,
    /// Addresses for Services of type LoadBalancer; without it, another program gives them.
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    load_balancer_pool: Vec<String>,
    /// How long a watcher may be away and still resume.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    history: u64,
    /// How many MiB of superseded objects are kept for that, at most.
    #[arg(long, value_name = "MIB", default_value_t = 32)]
    history_size: usize,
    /// Connections at once; more wait until some end.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_connections: usize,
    /// Serve the API only: no controllers, no scheduler.
    #[arg(long)]
    no_controllers: bool,
    /// Log more; -v 4 logs everything.
    #[arg(short, value_name = "LEVEL", default_value_t = 0)]
    v: u8,
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// The flags mean nothing, or the server cannot start; the message says what to do.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    crate::log(args.v);
    let config = args.config()?;
    let cluster_cidrs = parse_all("--cluster-cidr", &args.cluster_cidr)?;
    let runtime = runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = Server::start(config).await?;
        info!(address = %server.address(), data = %args.data.display(), "serving");
        let stop = CancellationToken::new();
        let kubeconfig = server.kubeconfig().to_owned();
        let controllers = async {
            if args.no_controllers {
                return Ok(());
            }
            controllers::run(&kubeconfig, cluster_cidrs, stop.clone()).await
        };
        let signalled = async {
            let signal = terminated().await;
            stop.cancel();
            signal
        };
        let serving = async {
            server.serve(stop.clone()).await;
            Ok(())
        };
        let ((), signal) = tokio::try_join!(
            async {
                tokio::try_join!(controllers, serving).map(|_| ()).map_err(anyhow::Error::from)
            },
            signalled,
        )?;
        info!("{signal}: stopped");
        Ok(ExitCode::SUCCESS)
    })
}

impl Args {
    fn config(&self) -> anyhow::Result<Config> {
        let ports = &self.service_node_port_range;
        let (low, high) = ports
            .split_once('-')
            .context("expected FROM-TO")
            .and_then(|(a, b)| {
                let (low, high) = (a.trim().parse::<u16>()?, b.trim().parse::<u16>()?);
                anyhow::ensure!(0 < low && low <= high, "expected a port and a higher one");
                Ok((low, high))
            })
            .with_context(|| format!("--service-node-port-range={ports}"))?;
        let ranges = Ranges {
            service_cidrs: parse_all("--service-cluster-ip-range", &self.service_cluster_ip_range)?,
            node_ports: low..=high,
            load_balancer: parse_all("--load-balancer-pool", &self.load_balancer_pool)?,
        };
        Ok(Config {
            data: self.data.clone(),
            listen: self.listen,
            security: if self.secure { Security::Https } else { Security::Http },
            advertise: self.advertise_address.unwrap_or_else(|| self.listen.ip()),
            ranges,
            retention: Retention {
                age: Duration::from_secs(self.history),
                bytes: self.history_size << 20,
            },
            max_connections: self.max_connections,
            kubeconfig: self.kubeconfig_out.clone(),
            join: self.join_out.clone(),
        })
    }
}

fn parse_all<T: std::str::FromStr>(flag: &str, texts: &[String]) -> anyhow::Result<Vec<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let parse = |text: &String| text.trim().parse().with_context(|| format!("{flag}={text}"));
    texts.iter().map(parse).collect()
}

async fn terminated() -> anyhow::Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "interrupted",
        _ = terminate.recv() => "terminated",
    })
}
