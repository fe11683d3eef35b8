//! `fairlead node`: a node's agent.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::node_args::{SourceArgs, host_name};
use crate::pods::{Place, PodArgs};

/// Run the pods of this node, until told to stop. They live on without it, and the next start takes
/// them over. `fairlead proxy` and `fairlead dns` run beside it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    pods: PodArgs,
    /// The name of this node's Node object; the host name when absent.
    #[arg(long, value_name = "NODE")]
    hostname_override: Option<String>,
    /// The cgroup v2 directory above every pod; by default the root of the hierarchy.
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// The domain of the cluster's names.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Log more; -v 4 logs everything.
    #[arg(short, value_name = "LEVEL", default_value_t = 0)]
    v: u8,
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// The flags mean nothing, or something that every pod needs is not to be had.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    crate::log(args.v);
    args.pods.require()?;
    let node_name = match &args.hostname_override {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    let cgroup = match &args.cgroup {
        Some(path) => path.clone(),
        None => sandbox::cgroup::find_mount().context("or name one with --cgroup")?,
    };
    let place = Place {
        source: &args.source,
        node_name: &node_name,
        cgroup: &cgroup,
        domain: &args.cluster_domain,
    };
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let told = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            stop.cancel();
            Ok(())
        };
        tokio::try_join!(args.pods.run(&place, stop.clone()), told)?;
        Ok(ExitCode::SUCCESS)
    })
}
