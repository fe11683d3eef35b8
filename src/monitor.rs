//! `fairlead monitor`: what is dropped, as it happens, and who talks through which Service.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use load::pinned::Pinned;
use nix::time::{ClockId, clock_gettime};
use proxy::names;
use proxy::status::file_of;
use proxy::told::{line, peer_line};

/// Say what is refused and dropped as it happens, with the reason. Samples: all are counted in
/// `fairlead status`, and as many are told as there is room for.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory that the proxy was started with.
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf/fairlead")]
    bpffs: PathBuf,
    /// List the connected UDP sockets of this node, and TCP sockets of Services with the annotation
    /// fairlead.dev/end-connections, with the Service's address that each named and
    /// the endpoint that it talks to, and end.
    #[arg(long)]
    sockets: bool,
    /// End after so many.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// Prints until it is stopped.
///
/// # Errors
/// No dataplane is pinned there, or it cannot be read.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let pinned = Pinned::under(&args.bpffs);
    let nothing = || format!("no dataplane can be read under {}", args.bpffs.display());
    if args.sockets {
        let peers = pinned.udp_peers().with_context(nothing)?;
        let mut out = std::io::stdout().lock();
        for (cookie, peer) in peers.all()? {
            writeln!(out, "{}", peer_line(cookie, &peer))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut drops = pinned.drops().with_context(nothing)?;
    let names = names::read(&names::file_of(&file_of(&args.bpffs))).unwrap_or_default();
    let started = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(dropped) = drops.take() else {
            drops.wait()?;
            continue;
        };
        // What waited there from before is no news.
        if Duration::from_nanos(dropped.at) < started {
            continue;
        }
        writeln!(std::io::stdout(), "{}", line(&dropped, started, &names))?;
        left -= 1;
    }
    Ok(ExitCode::SUCCESS)
}
