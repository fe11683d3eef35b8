//! What `--proxy-mode=auto` means on this node: chosen once, and kept.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::bail;
use load::probe;
use proxy::backend::iptables::Iptables;
use proxy::backend::nftables;
use proxy::config::ProxyMode;
use tracing::{info, warn};

/// The file in which the choice is noted, beside a status file. It is gone after a reboot, and with
/// it what was programmed.
pub(crate) fn file_of(status: &Path) -> PathBuf {
    status.with_extension("mode")
}

/// The mode that an earlier start has chosen, or else the first that works here.
///
/// # Errors
/// None works here; the message says why the first does not.
pub(super) fn choose(status: &Path, bpffs: &Path) -> anyhow::Result<ProxyMode> {
    let file = file_of(status);
    let noted = fs::read_to_string(&file).ok();
    if let Some(mode) = noted.and_then(|text| ProxyMode::parse(text.trim())) {
        info!(mode = mode.name(), "chosen by an earlier start of this node's proxy");
        return Ok(mode);
    }
    let (mode, reason) = look(bpffs)?;
    info!(mode = mode.name(), "chosen for this node: {reason}");
    if let Err(error) = note(&file, mode) {
        warn!("a later start may choose another mode: cannot write {}: {error}", file.display());
    }
    Ok(mode)
}

fn note(file: &Path, mode: ProxyMode) -> std::io::Result<()> {
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(file, mode.name())
}

fn look(bpffs: &Path) -> anyhow::Result<(ProxyMode, String)> {
    let Err(why) = can_ebpf(bpffs) else {
        return Ok((ProxyMode::Ebpf, "the kernel runs all that eBPF needs".to_owned()));
    };
    if nftables::is_usable() {
        return Ok((ProxyMode::Nftables, format!("not eBPF ({why:#}), but nft works")));
    }
    if Iptables::is_usable() {
        return Ok((
            ProxyMode::Iptables,
            format!("not eBPF ({why:#}) nor nft, but iptables works"),
        ));
    }
    bail!("{why:#}; and neither nft nor iptables works here")
}

fn can_ebpf(bpffs: &Path) -> anyhow::Result<()> {
    probe::privilege_and_kernel()?;
    // A directory that was named is meant; that it is none is for its user to know.
    if bpffs == Path::new(super::BPFFS) {
        probe::bpffs(bpffs)?;
    }
    Ok(())
}
