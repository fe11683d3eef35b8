//! `fairlead pod-process`: what the node agent starts in pods, beside what they are to run.

use std::path::PathBuf;
use std::process::ExitCode;

use ::node::Role;

/// Run a part of a pod, as the node agent asks
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, clap::Subcommand)]
enum Part {
    /// Hold a pod's namespaces
    Pause {
        /// The pod's directory
        dir: PathBuf,
        /// A file by which to join a cgroup
        #[arg(long)]
        join: Vec<PathBuf>,
    },
    /// Start a container, and stay until it has ended
    Shim {
        /// The container's directory
        dir: PathBuf,
        /// A file by which to join a cgroup
        #[arg(long)]
        join: Vec<PathBuf>,
    },
    /// Become a container
    Init {
        /// The container's directory
        dir: PathBuf,
    },
    /// Run a command in a container
    Exec {
        /// The container's directory
        dir: PathBuf,
        /// Standard input is a terminal of its own
        #[arg(long)]
        tty: bool,
        /// The command
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Wait to be told to end
    Idle,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let role = match args.part {
        Part::Pause { dir, join } => Role::Pause { dir, join },
        Part::Shim { dir, join } => Role::Shim { dir, join },
        Part::Init { dir } => Role::Init(dir),
        Part::Exec { dir, tty, command } => Role::Exec { dir, tty, command },
        Part::Idle => Role::Idle,
    };
    Ok(::node::enter(&role)?)
}
