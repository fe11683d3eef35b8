//! `cargo xtask fuzz`: random inputs for as long as one likes.

use anyhow::bail;

use crate::build;
use crate::setup::{self, Need};
use crate::workspace::{Workspace, is_root};

/// Random inputs, compared with what the kernel makes of them
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Fuzz {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum What {
    /// Packets: the decision code on this machine against the eBPF programs
    ///
    /// Sends random packets through both, which needs root, and compares packet, verdict, counters
    /// and connection tables. A difference is made small and printed as a case for
    /// tests/cases/packet. The same seed makes the same packets.
    Packets {
        /// How many
        #[arg(long, default_value_t = 1_000_000)]
        packets: u64,
        /// Where the random numbers begin
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Stop after so many differences
        #[arg(long, default_value_t = 1)]
        differences: u64,
    },
}

impl Fuzz {
    pub(crate) fn run(&self, workspace: &Workspace) -> anyhow::Result<()> {
        let What::Packets { packets, seed, differences } = self.what;
        if !is_root() {
            bail!(
                "eBPF programs are loaded, which needs root: sudo env \"PATH=$PATH\" cargo xtask fuzz packets"
            );
        }
        setup::run(workspace, Need::Build)?;
        build::objects(workspace)?;
        let numbers = [packets, seed, differences].map(|number| number.to_string());
        workspace
            .cargo("random packets")
            .args(["run", "--quiet", "--package", "tests", "--bin", "packet-fuzz", "--"])
            .args(numbers)
            .without_env(&["FAIRLEAD_EBPF_OBJECT"])
            .show()
    }
}
