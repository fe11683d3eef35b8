//! `fairlead load-generator`: sends what it is told to on its standard input.

use std::io;
use std::process::ExitCode;

use anyhow::Context;

/// Send load as standard input says, in JSON, and answer with what came of it
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Args {}

/// Obeys until standard input ends.
pub(crate) fn run(_: Args) -> anyhow::Result<ExitCode> {
    loadtest::remote::obey(io::stdin().lock(), io::stdout().lock()).context("obeying")?;
    Ok(ExitCode::SUCCESS)
}
