//! The one door for developers: set up, build, demo, test, bench and check.
//!
//! One file per command, in the order in which a newcomer meets them. All of them run other
//! programs through [`step`], which shows that they live and says what to do when they fail.
//! Nothing depends on this crate.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a developer's program talks to their terminal"
)]

mod bench;
mod build;
mod ci;
mod debian;
mod demo;
mod dist;
mod fuzz;
mod kubectl;
mod platform;
mod setup;
mod step;
mod test;
mod tidy;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::setup::Need;
use crate::workspace::Workspace;

/// Set up, build, try out and check Fairlead.
#[derive(Debug, Parser)]
#[command(
    bin_name = "cargo xtask",
    max_term_width = 80,
    after_help = "New here? `cargo xtask demo` shows what Fairlead does, on this machine and \
                  without a cluster. `cargo xtask test` runs the tests. Each installs what it \
                  needs first (Debian packages, as root) and says so."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what building and testing need and this machine lacks
    ///
    /// Debian packages for the eBPF compiler, bpf-linker, cargo-nextest, and two kubectls that
    /// are unpacked below target/ and not installed. Runs apt-get only
    /// when a package is missing. Without root or apt-get it names what is missing and how to
    /// get it, and exits with 1.
    Setup {
        /// Also what `cargo xtask vm` needs: qemu and what builds its images
        #[arg(long)]
        vm: bool,
        /// Also what benchmarks compare with: knot, unbound, dnsperf, wrk
        #[arg(long)]
        bench: bool,
    },
    /// Build the eBPF programs, then the binary that carries them
    ///
    /// Leaves target/debug/fairlead (target/release/fairlead with --release), and the eBPF
    /// objects target/ebpf/prog.o and target/ebpf/prog-log.o.
    Build(build::Build),
    /// Show a Service routed by eBPF on this machine: set up, build, run `fairlead demo`
    Demo(demo::Demo),
    /// Run the tests: set up, build, then doctests, unit tests and kernel tests
    ///
    /// The kernel tests attach eBPF programs and build network namespaces, so they need root.
    Test(test::Test),
    /// Check everything that a change must pass: format, tidy, clippy, docs, tests
    Ci(ci::Ci),
    /// Check the house rules that no compiler knows: layout, arrows, sizes, promises
    Tidy,
    /// Boot Debian's 6.1 and 6.12 kernels under qemu and test Services there
    ///
    /// Emulated, so that it needs no KVM: some minutes. Kernels are downloaded once, as Debian
    /// packages, and kept under target/vm.
    Vm(vm::Vm),
    /// Send random packets through the eBPF programs and compare
    Fuzz(fuzz::Fuzz),
    /// Build what is shipped: a static binary and an OCI image, in target/dist
    ///
    /// The image is an archive for `ctr image import` or `skopeo`; it has nft
    /// and iptables from Debian's packages beside the binary. The same sources
    /// give the same bytes.
    Dist(dist::Dist),
    /// Run one benchmark in release mode; without a name, list them
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let workspace = Workspace::find()?;
    match command {
        Command::Setup { vm, bench } => {
            setup::run(&workspace, Need::Ci)?;
            if vm {
                setup::run(&workspace, Need::Vm)?;
            }
            if bench {
                setup::run(&workspace, Need::Bench)?;
            }
            println!("setup: everything is here");
            Ok(())
        }
        Command::Build(build) => build.run(&workspace),
        Command::Demo(demo) => demo.run(&workspace),
        Command::Test(test) => test.run(&workspace),
        Command::Ci(ci) => ci.run(&workspace),
        Command::Tidy => tidy::run(&workspace),
        Command::Vm(vm) => vm.run(&workspace),
        Command::Fuzz(fuzz) => fuzz.run(&workspace),
        Command::Dist(dist) => dist.run(&workspace),
        Command::Bench(bench) => bench.run(&workspace),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Cli;

    #[test]
    fn help_fits_eighty_columns() {
        let mut cli = Cli::command();
        cli.build();
        for command in cli.get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
            }
        }
    }

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
