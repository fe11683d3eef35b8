//! Runs the programs of the backends that are made of such: `nft`, `iptables-restore`.

use std::io::{self, BufWriter, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

/// A ruleset of a hundred thousand elements takes a few seconds.
const DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at whether it has ended.
const INTERVAL: Duration = Duration::from_millis(1);

/// A program, and where it is from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    /// Its name, looked for in `PATH`.
    pub(super) name: &'static str,
    /// The Debian package that has it.
    pub(super) package: &'static str,
}

/// A program did not do what it was told.
#[derive(Debug, Error)]
pub(super) enum ProgramError {
    /// It could not be run.
    #[error("cannot run {} (Debian's package {})", .program.name, .program.package)]
    Run {
        /// Which.
        program: Program,
        /// Why.
        source: io::Error,
    },
    /// It was killed, or did not end: what it did is not known.
    #[error("{program} ended with {how}")]
    Died {
        /// Which.
        program: &'static str,
        /// How.
        how: String,
    },
    /// It said no.
    #[error("{program} refuses: {words}")]
    Refused {
        /// Which.
        program: &'static str,
        /// What it said.
        words: String,
    },
}

impl Program {
    /// Runs it with this input; gives what it printed.
    pub(super) fn run(self, args: &[&str], input: &[u8]) -> Result<Vec<u8>, ProgramError> {
        self.talk(args, |pipe| pipe.write_all(input), read)
    }

    /// Runs it; gives what is made of what it prints while it prints it. What it is told is written piece by
    /// piece.
    pub(super) fn talk<T: Send>(
        self,
        args: &[&str],
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
        hear: impl FnOnce(ChildStdout) -> T + Send,
    ) -> Result<T, ProgramError> {
        #[expect(clippy::disallowed_methods, reason = "these backends run programs")]
        let mut command = Command::new(self.name);
        command.args(args).env("LC_ALL", "C");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let run = |source| ProgramError::Run { program: self, source };
        let mut child = command.spawn().map_err(run)?;
        let ended = thread::scope(|scope| {
            let out = child.stdout.take().map(|pipe| scope.spawn(|| hear(pipe)));
            let err = child.stderr.take().map(|pipe| scope.spawn(|| read(pipe)));
            if let Some(pipe) = child.stdin.take() {
                let mut pipe = BufWriter::new(pipe);
                if let Err(error) = write(&mut pipe).and_then(|()| pipe.flush()) {
                    // It ended early; its words say why.
                    tracing::debug!("{} reads no more: {error}", self.name);
                }
                // What is left to write nobody reads.
                drop(pipe.into_parts());
            }
            let status = wait(&mut child)?;
            let out = out.and_then(|reader| reader.join().ok());
            let err = err.and_then(|reader| reader.join().ok()).unwrap_or_default();
            Ok((status, out, err))
        });
        let (status, out, err) = ended.map_err(run)?;
        let program = self.name;
        match status.and_then(|status| status.code()) {
            Some(0) => out.ok_or_else(|| ProgramError::Died {
                program,
                how: "words that were not heard to their end".to_owned(),
            }),
            Some(_) => {
                let words = first_lines(&String::from_utf8_lossy(&err));
                Err(ProgramError::Refused { program, words })
            }
            None => Err(ProgramError::Died {
                program,
                how: match status {
                    Some(status) => status.to_string(),
                    None => format!("no result within {DEADLINE:?}"),
                },
            }),
        }
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
        tracing::debug!("reading what a program says: {error}");
    }
    bytes
}

/// What it says first is what is wrong; the rest may quote the whole input.
fn first_lines(text: &str) -> String {
    text.lines().take(2).collect::<Vec<_>>().join("; ")
}
