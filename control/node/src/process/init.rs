//! The first process of a container: makes what it sees, drops what it may not do, and becomes it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::dup2_stdin;

use super::files::{self, Launch};
use super::{rights, rootfs};

/// Becomes the container that `dir` describes. Standard input is where failures are told; it
/// closes when the container begins.
pub(super) fn run(dir: &Path) -> io::Result<ExitCode> {
    let mut report = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let Err(error) = become_container(dir);
    report.write_all(error.to_string().as_bytes())?;
    Ok(ExitCode::FAILURE)
}

fn become_container(dir: &Path) -> io::Result<std::convert::Infallible> {
    let launch: Launch = files::read(&dir.join("launch.json"))?.ok_or(io::ErrorKind::NotFound)?;
    let spec = &launch.spec;
    for join in &launch.cgroups {
        fs::write(join, "0").map_err(|error| at("joining", join, &error))?;
    }
    // Without CAP_SYS_RESOURCE it can only be raised.
    if let Err(error) = fs::write("/proc/self/oom_score_adj", spec.limits.oom_score_adj.to_string())
    {
        tracing::debug!(%error, "oom_score_adj stays as it is");
    }
    let input = open_input(dir, spec.stdin)?;
    rootfs::enter(dir, &launch)?;
    dup2_stdin(&input)?;
    drop(input);
    let cwd = if spec.working_dir.is_empty() { "/" } else { spec.working_dir.as_str() };
    std::env::set_current_dir(cwd).map_err(|error| at("chdir to cwd", Path::new(cwd), &error))?;
    rights::drop_to(&spec.security)?;
    // Should its shim be killed, nobody would read what it says or know how it ends.
    set_pdeathsig(Signal::SIGKILL)?;
    Err(start(&launch.argv, spec.env.iter()))
}

/// Replaces this process by a program; returns only why it did not.
pub(super) fn start<'a>(
    argv: &[String],
    env: impl Iterator<Item = (&'a String, &'a String)>,
) -> io::Error {
    let env: Vec<(&String, &String)> = env.collect();
    match find(argv, &env) {
        Err(error) => error,
        Ok((program, rest)) => {
            #[expect(clippy::disallowed_methods, reason = "a container's program is to be run")]
            let mut command = Command::new(&program);
            if let Some(name) = argv.first() {
                command.arg0(name);
            }
            let error = command.args(rest).env_clear().envs(env).exec();
            io::Error::new(error.kind(), format!("exec: {}: {error}", program.display()))
        }
    }
}

/// The program that a command names, looked for along `PATH`, and the command's arguments.
pub(super) fn find<'a>(
    argv: &'a [String],
    env: &[(&String, &String)],
) -> io::Result<(PathBuf, &'a [String])> {
    let Some((name, rest)) = argv.split_first() else {
        return Err(io::Error::other("no command specified"));
    };
    if name.contains('/') {
        return Ok((name.into(), rest));
    }
    let path = env.iter().find(|(name, _)| *name == "PATH").map_or("", |(_, value)| value.as_str());
    let found = path.split(':').map(|dir| Path::new(dir).join(name)).find(|file| file.is_file());
    let missing = || {
        let message = format!("exec: {name:?}: executable file not found in $PATH");
        io::Error::new(io::ErrorKind::NotFound, message)
    };
    Ok((found.ok_or_else(missing)?, rest))
}

/// What the container reads: nothing, or what is written to a FIFO that never runs dry.
fn open_input(dir: &Path, stdin: bool) -> io::Result<File> {
    if stdin {
        File::options().read(true).write(true).open(dir.join("stdin"))
    } else {
        File::open("/dev/null")
    }
}

fn at(doing: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{doing} {}: {error}", path.display()))
}
