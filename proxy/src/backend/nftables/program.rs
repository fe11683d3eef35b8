//! Runs the program `nft`.

use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

/// A ruleset of a hundred thousand elements takes a few seconds.
const DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at whether it has ended.
const INTERVAL: Duration = Duration::from_millis(1);

/// `nft` did not do what it was told.
#[derive(Debug, Error)]
pub(super) enum NftError {
    /// It could not be run.
    #[error("cannot run nft (Debian's package nftables)")]
    Run(#[source] io::Error),
    /// It was killed, or did not end: what it did is not known.
    #[error("nft ended with {0}")]
    Died(String),
    /// It said no, and nothing was changed.
    #[error("nft refuses: {0}")]
    Refused(String),
}

/// Carries out one transaction.
pub(super) fn transact(text: &str) -> Result<(), NftError> {
    run(&["-f", "-"], text.as_bytes()).map(drop)
}

/// Lists a table as JSON; `None` if there is no such table.
pub(super) fn list(family: &str, table: &str) -> Result<Option<Vec<u8>>, NftError> {
    match run(&["-j", "list", "table", family, table], &[]) {
        Ok(json) => Ok(Some(json)),
        Err(NftError::Refused(words)) if words.contains("No such file or directory") => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lists a chain.
pub(super) fn list_chain(family: &str, table: &str, chain: &str) -> Result<Vec<u8>, NftError> {
    run(&["list", "chain", family, table, chain], &[])
}

/// Says its version.
pub(super) fn version() -> Result<Vec<u8>, NftError> {
    run(&["--version"], &[])
}

fn run(args: &[&str], input: &[u8]) -> Result<Vec<u8>, NftError> {
    #[expect(clippy::disallowed_methods, reason = "this is the backend that runs nft")]
    let mut command = Command::new("nft");
    command.args(args).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(NftError::Run)?;
    let ended = thread::scope(|scope| {
        let out = child.stdout.take().map(|pipe| scope.spawn(|| read(pipe)));
        let err = child.stderr.take().map(|pipe| scope.spawn(|| read(pipe)));
        if let Some(mut pipe) = child.stdin.take()
            && let Err(error) = pipe.write_all(input)
        {
            // It ended early; its words say why.
            tracing::debug!("nft reads no more: {error}");
        }
        let status = wait(&mut child)?;
        let text = |reader: Option<thread::ScopedJoinHandle<'_, Vec<u8>>>| {
            reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
        };
        Ok((status, text(out), text(err)))
    });
    let (status, out, err) = ended.map_err(NftError::Run)?;
    match status.and_then(|status| status.code()) {
        Some(0) => Ok(out),
        Some(_) => Err(NftError::Refused(first_lines(&String::from_utf8_lossy(&err)))),
        None => Err(NftError::Died(match status {
            Some(status) => status.to_string(),
            None => format!("no result within {DEADLINE:?}"),
        })),
    }
}

/// Waits for its end, and kills it if that does not come.
fn wait(child: &mut Child) -> io::Result<Option<std::process::ExitStatus>> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::park_timeout(INTERVAL);
    }
}

fn read(mut pipe: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Err(error) = pipe.read_to_end(&mut bytes) {
        tracing::debug!("reading from nft: {error}");
    }
    bytes
}

/// What it says first is what is wrong; the rest quotes the whole transaction.
fn first_lines(text: &str) -> String {
    text.lines().take(2).collect::<Vec<_>>().join("; ")
}
