//! `fairlead status`: what this node's proxy does, and what the kernel holds.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use load::pinned::Pinned;
use proxy::backend::ebpf::usage::{self, Served, Usage};
use proxy::backend::iptables::Iptables;
use proxy::backend::ipvs::Ipvs;
use proxy::backend::nftables;
use proxy::names;
use proxy::status::{Status, file_of};

/// How many problems are shown unless all are asked for.
const SHOWN_PROBLEMS: usize = 10;

/// Say what this node's proxy does. Exits with 0 when it runs and everything is in the kernel.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory that the proxy was started with.
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf/fairlead")]
    bpffs: PathBuf,
    /// Show every problem.
    #[arg(long)]
    all: bool,
    /// Show what each Service port was asked and served, with its endpoints.
    #[arg(long)]
    services: bool,
}

/// Prints the status.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let status = Status::read(&file_of(&args.bpffs)).ok();
    let running = status.as_ref().filter(|status| status.is_running());
    let mut out = std::io::stdout().lock();
    let attached = match status.as_ref().map(|status| &*status.mode) {
        Some("nftables") => print_tables(&mut out)?,
        Some("iptables") => print_chains(&mut out)?,
        Some("ipvs") => print_virtual_services(&mut out)?,
        _ => print_kernel(&mut out, &args.bpffs)?,
    };
    match (running, status.as_ref()) {
        (Some(status), _) => print_process(&mut out, status, args.all)?,
        (None, Some(status)) => writeln!(
            out,
            "process     not running (last: {}); what is in the kernel goes on",
            status.pid
        )?,
        (None, None) => writeln!(out, "process     none was started with this --bpffs")?,
    }
    if args.services {
        print_services(&mut out, &args.bpffs)?;
    }
    let good = attached && running.is_some_and(|status| status.in_sync);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether packets come through the tables of the nftables mode.
fn print_tables(out: &mut impl Write) -> anyhow::Result<bool> {
    let hooked = nftables::is_hooked();
    let words = if hooked { "hooked" } else { "not hooked, or not there" };
    writeln!(out, "kernel      tables ip fairlead and ip6 fairlead {words}")?;
    Ok(hooked)
}

/// Whether packets come through the chains of the iptables mode.
fn print_chains(out: &mut impl Write) -> anyhow::Result<bool> {
    let hooked = Iptables::is_hooked();
    let words = if hooked { "hooked" } else { "not hooked, or not there" };
    writeln!(out, "kernel      chains KUBE-SERVICES of iptables {words}")?;
    Ok(hooked)
}

/// Whether Services' addresses are this node's, where IPVS takes them.
fn print_virtual_services(out: &mut impl Write) -> anyhow::Result<bool> {
    let hooked = Ipvs::is_hooked();
    let words = if hooked { "has addresses" } else { "has no addresses, or is not there" };
    writeln!(out, "kernel      kube-ipvs0 {words}")?;
    Ok(hooked)
}

/// Whether every program is attached.
fn print_kernel(out: &mut impl Write, bpffs: &Path) -> anyhow::Result<bool> {
    let pinned = Pinned::under(bpffs);
    let (attached, all) = (pinned.n_attached(), pinned.n_programs());
    writeln!(out, "kernel      {attached} of {all} programs attached ({})", bpffs.display())?;
    if let Ok(frontends) = pinned.n_frontends() {
        writeln!(out, "            {frontends} frontends")?;
    }
    for (counter, count) in pinned.counters().unwrap_or_default() {
        if count > 0 {
            writeln!(out, "            {count} {}", counter.name())?;
        }
    }
    Ok(attached == all)
}

fn print_process(out: &mut impl Write, status: &Status, all: bool) -> anyhow::Result<()> {
    writeln!(out, "process     {} on node {}, mode {}", status.pid, status.node, status.mode)?;
    writeln!(out, "cgroup      {}", status.cgroup.display())?;
    writeln!(out, "objects     {}", status.source)?;
    for (part, error) in &status.source_errors {
        writeln!(out, "            {part}: {error}")?;
    }
    if !status.in_sync {
        writeln!(out, "            waiting for the first full list")?;
        return Ok(());
    }
    writeln!(
        out,
        "routed      {} Services, {} frontends, {} endpoints",
        status.n_services, status.n_frontends, status.n_endpoints
    )?;
    writeln!(out, "last round  {} µs, {} failed", status.last_round_us, status.last_failed)?;
    if status.n_sockets_destroyed > 0 {
        writeln!(out, "sockets     {} stale ones ended", status.n_sockets_destroyed)?;
    }
    if let Some((first, others)) = status.left_alone.split_first() {
        writeln!(out, "left alone  {first}")?;
        for pod in others {
            writeln!(out, "            {pod}")?;
        }
    }
    if status.n_repairs > 0 {
        writeln!(out, "repairs     {} after somebody else's changes", status.n_repairs)?;
    }
    if status.n_flows_removed > 0 {
        writeln!(out, "conntrack   {} stale UDP flows removed", status.n_flows_removed)?;
    }
    let shown = if all { status.problems.len() } else { SHOWN_PROBLEMS };
    writeln!(out, "problems    {}", status.problems.len())?;
    for problem in status.problems.iter().take(shown) {
        writeln!(out, "            {problem}")?;
    }
    if status.problems.len() > shown {
        writeln!(out, "            … and more: --all shows them")?;
    }
    Ok(())
}

/// What each Service port was asked and served, both families together.
fn print_services(out: &mut impl Write, bpffs: &Path) -> anyhow::Result<()> {
    let names = names::read(&names::file_of(&file_of(bpffs))).unwrap_or_default();
    let mut services: BTreeMap<String, Usage> = BTreeMap::new();
    for usage in usage::usage(bpffs)?.into_iter().flatten().map(|(_, usage)| usage) {
        let name = usage.frontends.first().map(ToString::to_string).unwrap_or_default();
        let name = names.get(&name).cloned().unwrap_or(name);
        services.entry(name).or_default().add(usage);
    }
    for (name, usage) in services {
        write!(out, "{name}: {}", served(&usage.served))?;
        for (n, what) in [(usage.refused, "refused"), (usage.dropped, "dropped")] {
            if n > 0 {
                write!(out, ", {n} {what}")?;
            }
        }
        writeln!(out)?;
        for (address, by_endpoint) in usage.endpoints {
            writeln!(out, "            {address}: {}", served(&by_endpoint))?;
        }
    }
    Ok(())
}

/// Connections, and what passed the packet programs.
fn served(served: &Served) -> String {
    let Served { connections, packets, bytes } = served;
    let mut text = format!("{connections} connections");
    if *packets > 0 {
        text += &format!(", {packets} packets, {bytes} bytes");
    }
    text
}
