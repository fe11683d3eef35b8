//! `fairlead node`: routes the Services of one node and answers its names, from one watch.

pub(crate) mod lead;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use model::applied::applied;
use tokio::runtime;
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::lead::Lead;
use crate::dns::{Dns, Led, ServeArgs};
use crate::node_args::{NodeArgs, SourceArgs};
use crate::pods::{Place, PodArgs};
use crate::proxy::{KernelArgs, Proxy, terminated};

/// Route the Services of this node and answer for their names, until told to stop. A name is told
/// once this node routes its address, or after a second at most. With --link-local, questions to the
/// cluster's DNS are answered here while this process lives. What is programmed stays in the kernel;
/// `fairlead cleanup` removes it. With --run-pods it is also the agent that runs the node's pods, which
/// live on without it; it answers their names, and other nodes' at its own addresses.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    kernel: KernelArgs,
    #[command(flatten)]
    serve: ServeArgs,
    #[command(flatten)]
    pods: PodArgs,
    /// Log more; -v 4 logs everything.
    #[arg(short, value_name = "LEVEL", default_value_t = 0)]
    v: u8,
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// The node lacks something, an address cannot be had, or the flags mean nothing; the message says
/// what to do.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    crate::log(args.v);
    let mut serve = args.serve.clone();
    if args.pods.are_run() {
        serve = serve.for_pods(&args.pods.addresses()?);
    }
    let (teller, applied) = applied();
    let runs_pods = args.pods.are_run();
    let mut proxy = Proxy::prepare(&args.node, &args.kernel, Some(teller), runs_pods)?;
    let cgroup = match &args.kernel.cgroup {
        Some(path) => path.clone(),
        None if !args.pods.are_run() => PathBuf::new(),
        None => sandbox::cgroup::find_mount().context("or name one with --cgroup")?,
    };
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // What the proxy leaves alone (headless, foreign, aliases) has names all the same.
        let source = args.pods.joined(&args.source).await?;
        let watched = source.watch_node(proxy.node_name(), runs_pods).await?;
        let dns = Dns::start(&serve, &source, Led::ByNode).await?;
        lead::note(&proxy.status_file(), dns.link_local())?;
        let mut lead = Lead::new(proxy.take_own_dns(), &dns)?;
        let (names, services) = (watched.feed.subscribe(), watched.feed.subscribe());
        let node_name = proxy.node_name().to_owned();
        let place = Place {
            source: &source,
            node_name: &node_name,
            cgroup: &cgroup,
            domain: serve.cluster_domain(),
            names: dns.for_others(),
        };
        let stop = CancellationToken::new();
        let told = async {
            tokio::select! {
                () = dns.follow(names, Some(applied)) => {}
                () = lead::follow(&mut lead, services, args.pods.cluster_dns()) => {}
                signal = terminated() => {
                    info!("{}: leaving what is programmed in place", signal?);
                }
            }
            stop.cancel();
            Ok(())
        };
        let ending =
            async { tokio::try_join!(args.pods.run(&place, stop.clone()), told).map(|_| ()) };
        let done = Box::pin(proxy.serve(watched, ending)).await;
        // From here on the endpoints of the Service are asked.
        drop(lead);
        dns.stop().await;
        done
    })
}
