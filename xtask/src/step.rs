//! One program run as one step: shows that it lives, and says what to do when it fails.
#![expect(clippy::disallowed_methods, reason = "running programs is what this file is for")]

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};

/// How often a watched step shows that it lives: on a terminal, and in a log.
const BEAT_TERMINAL: Duration = Duration::from_secs(1);
const BEAT_LOG: Duration = Duration::from_secs(10);
/// A watched step that is done by then stays silent until it is.
const QUIET: Duration = Duration::from_secs(2);
/// How many of its last lines a failed step repeats.
const TAIL: usize = 30;

/// A program, what it is run for, and what a developer can do when it fails.
#[derive(Debug)]
pub(crate) struct Step {
    label: String,
    command: Command,
    remedy: Option<String>,
}

impl Step {
    pub(crate) fn new(label: &str, program: impl AsRef<OsStr>) -> Self {
        Self { label: label.to_owned(), command: Command::new(program), remedy: None }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn without_env(mut self, names: &[&str]) -> Self {
        for name in names {
            self.command.env_remove(name);
        }
        self
    }

    pub(crate) fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// What to do when this step fails, as a sentence.
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Runs it with its own output on our terminal.
    pub(crate) fn show(mut self) -> anyhow::Result<()> {
        self.announce();
        self.command.stdin(Stdio::null());
        let status = self.command.status().map_err(|source| self.not_started(source))?;
        self.check(status)
    }

    /// Runs it as [`Self::show`] does, and returns the lines of its stderr that `keep` picks.
    ///
    /// # Errors
    /// The step's failure; what was kept is lost then, having been on the terminal.
    pub(crate) fn show_keeping(mut self, keep: fn(&str) -> bool) -> anyhow::Result<Vec<String>> {
        self.announce();
        self.command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = self.command.spawn().map_err(|source| self.not_started(source))?;
        let mut kept = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            for line in BufReader::new(stderr).split(b'\n') {
                let line = line.with_context(|| format!("reading what {} says", self.label))?;
                let line = String::from_utf8_lossy(&line).into_owned();
                eprintln!("{line}");
                if keep(&line) {
                    kept.push(line);
                }
            }
        }
        let status = child.wait().with_context(|| format!("waiting for {}", self.label))?;
        self.check(status).map(|()| kept)
    }

    /// Runs it with its output in `log`, showing the time and its last line meanwhile.
    pub(crate) fn watch(mut self, log: &Path) -> anyhow::Result<()> {
        if let Some(dir) = log.parent() {
            fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        }
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.announce();
        let mut child = self.command.spawn().map_err(|source| self.not_started(source))?;
        let tail = follow(&self.label, &lines(&mut child), file)?;
        let status = child.wait().with_context(|| format!("waiting for {}", self.label))?;
        if !status.success() {
            for line in tail {
                eprintln!("    {line}");
            }
            eprintln!("    (all of it: {})", log.display());
        }
        self.check(status)
    }

    /// Runs it silently and returns what it prints; `None` when it fails or is not there.
    pub(crate) fn text(mut self) -> Option<String> {
        let output = self.command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(text)
    }

    /// As [`Self::text`], for programs whose failure still prints half an answer.
    pub(crate) fn text_anyway(mut self) -> String {
        let output = self.command.stdin(Stdio::null()).stderr(Stdio::null()).output();
        output.map(|it| String::from_utf8_lossy(&it.stdout).into_owned()).unwrap_or_default()
    }

    /// Becomes that program, so that signals and the terminal reach it alone.
    pub(crate) fn replace(mut self) -> anyhow::Result<()> {
        self.announce();
        let source = self.command.exec();
        Err(self.not_started(source))
    }

    fn announce(&self) {
        eprintln!("── {}: {}", self.label, self.words());
    }

    fn check(&self, status: ExitStatus) -> anyhow::Result<()> {
        if status.success() {
            return Ok(());
        }
        let remedy = self.remedy.as_ref().map(|it| format!("\n{it}")).unwrap_or_default();
        bail!("{} failed ({status}):\n  {}{remedy}", self.label, self.line())
    }

    fn not_started(&self, source: io::Error) -> anyhow::Error {
        let remedy = self.remedy.as_ref().map(|it| format!("\n{it}")).unwrap_or_default();
        anyhow!(source).context(format!("{}: cannot run `{}`{remedy}", self.label, self.line()))
    }

    /// The command as one would type it, with what it finds in its environment.
    fn line(&self) -> String {
        let envs = self.command.get_envs().filter_map(|(name, value)| {
            let value = value?.to_string_lossy().replace('\x1f', " ");
            Some(format!("{}={}", name.to_string_lossy(), quoted(&value)))
        });
        envs.chain([self.words()]).collect::<Vec<_>>().join(" ")
    }

    /// The command without its environment.
    fn words(&self) -> String {
        let program = short(self.command.get_program());
        let args = self.command.get_args().map(|arg| quoted(&arg.to_string_lossy()));
        [program].into_iter().chain(args).collect::<Vec<_>>().join(" ")
    }
}

/// The toolchain's cargo is spelled as a developer types it.
fn short(program: &OsStr) -> String {
    let path = Path::new(program);
    if path.ends_with("bin/cargo") && !path.starts_with("/usr") {
        return "cargo".to_owned();
    }
    program.to_string_lossy().into_owned()
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Both outputs of the child, line by line as they come.
fn lines(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = sync_channel(64);
    let stdout = child.stdout.take().map(|it| Box::new(it) as Box<dyn Read + Send>);
    let stderr = child.stderr.take().map(|it| Box::new(it) as Box<dyn Read + Send>);
    for pipe in [stdout, stderr].into_iter().flatten() {
        let sender = sender.clone();
        thread::spawn(move || send_lines(pipe, &sender));
    }
    receiver
}

fn send_lines(pipe: impl Read, sender: &SyncSender<String>) {
    for line in BufReader::new(pipe).split(b'\n') {
        let Ok(line) = line else { return };
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if sender.send(line).is_err() {
            return;
        }
    }
}

/// Writes the lines to the log, and a sign of life to the terminal; returns the last lines.
fn follow(
    label: &str,
    lines: &Receiver<String>,
    mut log: File,
) -> anyhow::Result<VecDeque<String>> {
    let terminal = io::stderr().is_terminal();
    let start = Instant::now();
    let mut next = start + QUIET;
    let mut tail = VecDeque::with_capacity(TAIL);
    loop {
        let line = match lines.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        if let Some(line) = line {
            writeln!(log, "{line}").context("writing the log")?;
            if tail.len() == TAIL {
                tail.pop_front();
            }
            if !line.is_empty() {
                tail.push_back(line);
            }
        }
        if Instant::now() >= next {
            let last = tail.back().map_or("", String::as_str);
            let beat = beat(label, start.elapsed(), last);
            let (before, after, wait) =
                if terminal { ("\r\x1b[K", "", BEAT_TERMINAL) } else { ("", "\n", BEAT_LOG) };
            eprint!("{before}{beat}{after}");
            next = Instant::now() + wait;
        }
    }
    if terminal {
        eprint!("\r\x1b[K");
    }
    eprintln!("   {label}: {} s", start.elapsed().as_secs());
    Ok(tail)
}

/// One line that fits a terminal of 80 columns.
fn beat(label: &str, elapsed: Duration, last: &str) -> String {
    let line = format!("   {label}: {} s … {}", elapsed.as_secs(), last.trim());
    line.chars().filter(|c| !c.is_control()).take(79).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Step, beat};

    #[test]
    fn failure_names_command_code_and_remedy() {
        let step = Step::new("trial", "sh").args(["-c", "exit 3"]).remedy("Try another.");
        let text = format!("{:#}", step.show().unwrap_err());
        assert!(text.contains("sh -c 'exit 3'"), "{text}");
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(text.contains("Try another."), "{text}");
    }

    #[test]
    fn missing_program_names_the_remedy() {
        let step = Step::new("trial", "/nonexistent/program").remedy("Install it.");
        let text = format!("{:#}", step.show().unwrap_err());
        assert!(text.contains("/nonexistent/program") && text.contains("Install it."), "{text}");
    }

    #[test]
    fn watched_output_lands_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("logs/trial.log");
        Step::new("trial", "sh").args(["-c", "echo one; echo two >&2"]).watch(&log).unwrap();
        let text = std::fs::read_to_string(log).unwrap();
        assert!(text.contains("one\n") && text.contains("two\n"), "{text}");
    }

    #[test]
    fn kept_lines_are_those_asked_for() {
        let step = Step::new("trial", "sh").args(["-c", "echo a >&2; echo Summary >&2"]);
        assert_eq!(step.show_keeping(|line| line.contains("Summary")).unwrap(), ["Summary"]);
    }

    #[test]
    fn sign_of_life_fits_a_terminal() {
        let line = beat("bpf-linker", Duration::from_secs(75), &"x".repeat(200));
        assert_eq!(line.chars().count(), 79);
        assert!(line.starts_with("   bpf-linker: 75 s … xxx"));
    }
}
