//! `fairlead plan`: what the kernel must do for the cluster's Services.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use model::cluster::Snapshot;
use model::problem::Problem;
use model::watch::{Health, Watch};
use proxy::backend::Unsupported;
use proxy::backend::ebpf::Ebpf;
use proxy::backend::iptables::Iptables;
use proxy::backend::ipvs::Ipvs;
use proxy::backend::nftables::Nftables;
use proxy::config::ProxyMode;
use proxy::plan::print::PlanView;
use proxy::plan::{Frontend, Plan, plan};
use tokio::runtime;
use tokio::sync::watch;

use crate::node_args::{NodeArgs, SourceArgs, host_name};

/// So long the first full list may take.
const LIST_WITHIN: Duration = Duration::from_secs(30);

/// Print what the kernel of this node must do, without touching it: every Service's frontends, and
/// where each kind of source is led.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    node: NodeArgs,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For a person.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// Prints the plan.
///
/// # Errors
/// The flags mean nothing, or the objects cannot be listed.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = args.node.meant()?;
    let mode = args.node.as_typed()?.mode()?;
    let snapshot = snapshot(&args.source, &config.node_name)?;
    let plan = plan(&snapshot, &config);
    let unread: Vec<String> =
        snapshot.problems.values().flat_map(|problems| problems.iter()).map(told).collect();
    let unsupported = unsupported(&plan, mode);
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Json => {
            let view = PlanView::from(&plan).with_problems(unread.into_iter().chain(unsupported));
            serde_json::to_writer_pretty(&mut out, &view)?;
            writeln!(out)?;
        }
        Output::Text => {
            write!(out, "{plan}")?;
            listed(&mut out, "not read", &unread)?;
            listed(&mut out, &format!("beyond --proxy-mode={}", mode.name()), &unsupported)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The cluster as routing sees it, as soon as it is listed.
///
/// # Errors
/// It cannot be watched, or takes too long.
pub(crate) fn snapshot(source: &SourceArgs, node_name: &str) -> anyhow::Result<Snapshot> {
    first(source.watch(node_name))
}

/// The cluster as names see it, as soon as it is listed.
///
/// # Errors
/// It cannot be watched, or takes too long.
pub(crate) fn snapshot_of_everything(source: &SourceArgs) -> anyhow::Result<Snapshot> {
    first(source.watch_everything(&host_name()?))
}

fn first(watch: impl Future<Output = anyhow::Result<Watch>>) -> anyhow::Result<Snapshot> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let Watch { mut feed, health, mut task, .. } = watch.await?;
        let update = tokio::select! {
            update = feed.next() => update,
            () = &mut task => None,
            () = tokio::time::sleep(LIST_WITHIN) => None,
        };
        let update = update.with_context(|| unlisted(&health))?;
        Ok(update.snapshot)
    })
}

fn unlisted(health: &watch::Receiver<Health>) -> String {
    let health = health.borrow();
    let errors: Vec<String> =
        health.errors.iter().map(|(part, error)| format!("{part}: {error}")).collect();
    let errors = if errors.is_empty() { "no answer".to_owned() } else { errors.join("; ") };
    format!("the objects of {} could not be listed: {errors}", health.source)
}

/// What of the plan the backend cannot do.
fn unsupported(plan: &Plan, mode: ProxyMode) -> Vec<String> {
    plan.frontends
        .iter()
        .filter_map(|(key, frontend)| {
            let Unsupported { field, reason } = supports(mode, frontend).err()?;
            let object = format_args!("Service {}", frontend.service.service).to_string();
            Some(told(&Problem::new(object, field, format_args!("{key}: {reason}"))))
        })
        .collect()
}

/// Whether the backend of a mode can do what a frontend asks.
pub(crate) fn supports(mode: ProxyMode, frontend: &Frontend) -> Result<(), Unsupported> {
    match mode {
        ProxyMode::Ebpf => Ebpf::can(frontend),
        ProxyMode::Nftables => Nftables::can(frontend),
        ProxyMode::Iptables => Iptables::can(frontend),
        ProxyMode::Ipvs => Ipvs::can(frontend),
    }
}

fn told(problem: &Problem) -> String {
    problem.to_string()
}

fn listed(out: &mut impl Write, title: &str, lines: &[String]) -> std::io::Result<()> {
    if !lines.is_empty() {
        writeln!(out, "\n{title}")?;
    }
    for line in lines {
        writeln!(out, "  {line}")?;
    }
    Ok(())
}
