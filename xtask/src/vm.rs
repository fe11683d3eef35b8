//! `cargo xtask vm`: the same tests on Debian's other kernels, under qemu.
//!
//! ```text
//!  apt-get download ─▶ vmlinuz, modules ─┐
//!  cargo ─▶ fairlead, its tests ─────────┼─▶ initrd ─▶ qemu (TCG) ─▶ console ─▶ exit code
//!  busybox ─▶ shell, init ───────────────┘
//! ```
//!
//! What is done there is a table, [`jobs`]; [`files`] are what a [`guest`] finds in its folders. Downloads
//! stay under `target/vm`. A guest has no network and no disk; it powers itself off, and the host ends
//! it when it does not.

mod files;
mod guest;
mod jobs;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use crate::build;
use crate::debian::{file_name, unpacked};
use crate::setup::{self, Need};
use crate::workspace::Workspace;
use files::Built;
use guest::{Kernel, Outcome};
use jobs::{JOBS, Job, KERNELS};

/// Boot Debian's 6.1 and 6.12 kernels under qemu and test Services there
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Vm {
    /// Only this kernel: 6.1 or 6.12
    #[arg(long, value_parser = KERNELS)]
    kernel: Option<String>,
    /// Only these jobs, as the summary names them
    #[arg(long = "job", value_name = "JOB", value_parser = JOBS.map(|job| job.name))]
    jobs: Vec<String>,
    /// Only load the programs, and tell how large they are and what verifying them took
    #[arg(long, conflicts_with = "jobs")]
    programs: bool,
    /// More files for the guest's /bin, without the libraries that they load
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What the guest's shell runs, instead of what the job says
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, requires = "jobs")]
    command: Vec<String>,
}

impl Vm {
    pub(crate) fn run(&self, workspace: &Workspace) -> anyhow::Result<()> {
        ensure!(std::env::consts::ARCH == "x86_64", "the kernels are for x86_64 machines");
        setup::run(workspace, Need::Build)?;
        setup::run(workspace, Need::Vm)?;
        let dir = workspace.root().join("target/vm");
        let jobs: Vec<&Job> = JOBS.iter().filter(|job| self.wants(job)).collect();
        build::objects(workspace)?;
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let built = Built::build(workspace, &dir, &jobs)?;
        let busybox = unpacked(&dir, "busybox-static")?.join("bin/busybox");
        let mut summary = Vec::new();
        for release in KERNELS.into_iter().filter(|release| self.wants_kernel(release)) {
            let kernel = Kernel::fetch(&dir, release)?;
            for job in jobs.iter().filter(|job| job.kernels.contains(&release)) {
                let mut files = built.of(job);
                files.push((busybox.clone(), "bin/busybox".into()));
                files.extend(files::of_workspace(workspace, job.files)?);
                files.extend(files::of_target(workspace, job.target));
                files.extend(files::of_machine(job.programs)?);
                let bin = Path::new("bin");
                files.extend(self.files.iter().map(|it| (it.clone(), bin.join(file_name(it)))));
                let command = match &*self.command {
                    [] => job.command.to_owned(),
                    words => words.join(" "),
                };
                summary.push((release, job.name, kernel.play(job, &command, &files)?));
            }
        }
        report(&summary)
    }

    fn wants(&self, job: &Job) -> bool {
        let is_wanted = match &*self.jobs {
            [] => !self.programs || job.name == "programs",
            names => names.iter().any(|name| name == job.name),
        };
        is_wanted && job.kernels.iter().any(|release| self.wants_kernel(release))
    }

    fn wants_kernel(&self, release: &str) -> bool {
        self.kernel.as_deref().is_none_or(|it| it == release)
    }
}

/// How many of its last lines a guest repeats whose job has failed.
const TAIL: usize = 60;

/// Says what became of each job on each kernel.
///
/// # Errors
/// One has failed.
fn report(summary: &[(&str, &str, Outcome)]) -> anyhow::Result<()> {
    for (release, job, outcome) in summary.iter().filter(|(_, _, outcome)| !outcome.is_good()) {
        eprintln!("\n── Linux {release}, {job}: the end of what the guest said");
        let text = fs::read(&outcome.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let n_before = text.lines().count().saturating_sub(TAIL);
        text.lines().skip(n_before).for_each(|line| eprintln!("    {line}"));
    }
    eprintln!("\nkernel  job              outcome  tests  seconds  console");
    for (release, job, outcome) in summary {
        let word = match outcome.exit_code {
            Some(0) => "passed".to_owned(),
            Some(code) => format!("exit {code}"),
            None => "no end".to_owned(),
        };
        let (n, seconds) = (outcome.n_passed, outcome.took.as_secs());
        let console = outcome.console.display();
        eprintln!("{release:<7} {job:<16} {word:<8} {n:>5}  {seconds:>7}  {console}");
    }
    let n_failed = summary.iter().filter(|(_, _, outcome)| !outcome.is_good()).count();
    if n_failed > 0 {
        bail!(
            "{n_failed} of {} jobs failed; what the guests said is in their consoles",
            summary.len()
        );
    }
    Ok(())
}
