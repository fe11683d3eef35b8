//! `fairlead cni`: the pods' network, as containerd asks for it.

use std::process::ExitCode;

/// Link a pod's sandbox, or unlink it, as a CNI plugin does
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args) -> anyhow::Result<ExitCode> {
    Ok(::node::answer_cni()?)
}
