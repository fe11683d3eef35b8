//! `fairlead cleanup`: removes what a proxy left in the kernel.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use load::pins::Pins;
use load::probe;
use proxy::backend::Backend;
use proxy::backend::iptables::Iptables;
use proxy::backend::ipvs::Ipvs;
use proxy::backend::nftables::{self, Nftables};
use proxy::config::ProxyMode;
use proxy::status::{Status, file_of};
use proxy::{names, reserved};

use crate::node::lead;
use crate::proxy::choice;

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
    refuse_while_running(args)?;
    remove_tables(&mut out)?;
    remove_chains(&mut out)?;
    remove_virtual_services(&mut out)?;
    if !is_running(args) {
        lead::forget(&file_of(&args.bpffs))?;
        let choice = choice::file_of(&file_of(&args.bpffs));
        if choice.exists() {
            std::fs::remove_file(choice)?;
        }
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

/// A proxy of a mode that has no lock of its own would put everything back.
fn refuse_while_running(args: &Args) -> anyhow::Result<()> {
    let Ok(status) = Status::read(&file_of(&args.bpffs)) else { return Ok(()) };
    if status.is_running() && status.mode != ProxyMode::Ebpf.name() {
        anyhow::bail!("the proxy {} is running; stop it first", status.pid);
    }
    Ok(())
}

/// Removes the tables of the nftables mode; without nft there never were any.
fn remove_tables(out: &mut impl Write) -> anyhow::Result<()> {
    if !nftables::is_installed() {
        return Ok(());
    }
    Nftables::new().retire()?;
    writeln!(out, "removed the tables ip fairlead and ip6 fairlead, where they were")?;
    Ok(())
}

/// Removes the chains of the iptables mode, and kube-proxy's, which are the same.
fn remove_chains(out: &mut impl Write) -> anyhow::Result<()> {
    if Iptables::is_there() {
        Iptables::remove_all()?;
        writeln!(out, "removed the chains KUBE-* of iptables, the kubelet's aside")?;
    }
    Ok(())
}

/// Removes what the IPVS mode left.
fn remove_virtual_services(out: &mut impl Write) -> anyhow::Result<()> {
    if Ipvs::is_there() {
        Ipvs::remove_all()?;
        writeln!(
            out,
            "removed kube-ipvs0, its virtual services, and the sets and rules with them"
        )?;
    }
    Ok(())
}
