//! `fairlead cleanup`: removes what a proxy left in the kernel.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use load::pins::Pins;
use load::probe;
use proxy::backend::Backend;
use proxy::backend::nftables::{self, Nftables};
use proxy::config::ProxyMode;
use proxy::status::{Status, file_of};
use proxy::{names, reserved};

use crate::node::lead;

/// Remove everything that a proxy left in the kernel. New connections to Services are not routed
/// any more then.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory that the proxy was started with.
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf/fairlead")]
    bpffs: PathBuf,
}

/// Removes it.
///
/// # Errors
/// A proxy is running, or something cannot be removed.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    remove_tables(args, &mut out)?;
    if !is_running(args) {
        lead::forget(&file_of(&args.bpffs))?;
    }
    if !args.bpffs.exists() {
        writeln!(out, "nothing to remove: {} does not exist", args.bpffs.display())?;
        return Ok(ExitCode::SUCCESS);
    }
    probe::bpffs(&args.bpffs)?;
    let pins = Pins::new(&args.bpffs);
    let _lock = pins.lock()?;
    pins.remove_all()?;
    let file = file_of(&args.bpffs);
    reserved::release(&reserved::file_of(&file))?;
    for file in [names::file_of(&file), file] {
        if file.exists() {
            std::fs::remove_file(file)?;
        }
    }
    writeln!(out, "removed {} and all programs that were attached from it", args.bpffs.display())?;
    Ok(ExitCode::SUCCESS)
}

fn is_running(args: &Args) -> bool {
    Status::read(&file_of(&args.bpffs)).is_ok_and(|status| status.is_running())
}

/// Removes the tables of the nftables mode; without nft there never were any.
fn remove_tables(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    if !nftables::is_installed() {
        return Ok(());
    }
    let status = Status::read(&file_of(&args.bpffs)).ok();
    let running = status.filter(Status::is_running);
    if let Some(status) = running.filter(|status| status.mode == ProxyMode::Nftables.name()) {
        anyhow::bail!("the proxy {} is running; stop it first", status.pid);
    }
    Nftables::new().retire()?;
    writeln!(out, "removed the tables ip fairlead and ip6 fairlead, where they were")?;
    Ok(())
}
