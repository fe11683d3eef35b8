//! `fairlead demo`: a Deployment and a Service, made through the Kubernetes API of this machine's own
//! companion, in half a minute. Nothing needs to be installed.

mod api;
mod cluster;
mod cost;
mod heal;
mod keep;
mod objects;
mod outside;
mod screen;
mod spread;

use std::{ffi::OsString, process::ExitCode};

use anyhow::bail;

use self::{cluster::Cluster, screen::Screen};
use crate::interrupt::Interrupt;

/// Show a Deployment and a Service at work on this machine: its own Kubernetes API, pods that
/// really run, routed by eBPF
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave the pods and the proxy running at the end, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// End a demo that is running, and sweep up after one that was killed
    #[arg(long, conflicts_with_all = ["keep", "in_pod"])]
    stop: bool,
    /// Run a command in a pod of a demo that is running
    #[arg(long = "in", value_name = "POD", requires = "command", conflicts_with = "keep")]
    in_pod: Option<String>,
    /// How many requests a second each client sends; a slow machine wants fewer
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// The sandbox's name, so that tests of the demo do not meet one that somebody looks at
    #[arg(long, hide = true, default_value = "demo")]
    name: String,
    /// The command, after `--`
    #[arg(last = true, requires = "in_pod")]
    command: Vec<OsString>,
}

/// Runs the demo to its end. An error says what did not go as it should.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut screen = Screen::new();
    if args.stop {
        keep::stop(&mut screen, &args.name)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let (Some(pod), Some((program, arguments))) = (&args.in_pod, args.command.split_first()) {
        return keep::run_in(&args.name, pod, program, arguments);
    }
    let interrupt = Interrupt::catch()?;
    match show(&mut screen, &interrupt, args) {
        // Whatever failed, failed because the programs were told to end as well.
        Err(_) if interrupt.has_come() => bail!("interrupted; nothing is left behind"),
        outcome => outcome.map(|()| ExitCode::SUCCESS),
    }
}

/// Every step needs the one before it; the cluster ends with this function, however it ends.
fn show(screen: &mut Screen, interrupt: &Interrupt, args: &Args) -> anyhow::Result<()> {
    screen.title("fairlead demo: one Service, three pods, routed in the kernel by eBPF")?;
    let cluster = Cluster::build(screen, interrupt, &args.name)?;
    spread::show(screen, interrupt, &cluster, args.rate)?;
    outside::show(screen, interrupt, &cluster, args.rate)?;
    cost::show(screen, interrupt, &cluster)?;
    heal::show(screen, interrupt, &cluster, args.rate)?;
    screen.success("Every pod was hit, and no request failed.")?;
    if args.keep { keep::hold(screen, interrupt, cluster) } else { keep::suggest(screen) }
}
