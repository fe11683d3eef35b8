//! What a guest finds in its folders: programs that were built or copied for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::jobs::Job;
use crate::debian::{entries, file_name};
use crate::setup::SCRUB;
use crate::step::Step;
use crate::workspace::{Workspace, which};

/// A file, and its place in the guest.
pub(super) type Placed = (PathBuf, PathBuf);

/// The programs that were built for the guests: tests and what they run.
#[derive(Debug)]
pub(super) struct Built {
    /// By package and test.
    tests: Vec<(&'static str, &'static str, PathBuf)>,
    /// Beside them.
    others: Vec<Placed>,
}

impl Built {
    /// Builds what these jobs ask for as this machine's own tests are built, and strips it, so that it
    /// fits the guest's memory.
    pub(super) fn build(workspace: &Workspace, dir: &Path, jobs: &[&Job]) -> anyhow::Result<Self> {
        let wanted: BTreeSet<_> = jobs.iter().flat_map(|job| job.tests.iter().copied()).collect();
        let packages: BTreeSet<&str> = wanted.iter().map(|(package, _)| *package).collect();
        let mut built = Self { tests: Vec::new(), others: Vec::new() };
        for package in packages {
            let names: Vec<&'static str> =
                wanted.iter().filter(|(it, _)| *it == package).map(|(_, name)| *name).collect();
            built.build_package(workspace, dir, package, &names)?;
        }
        if wanted.iter().any(|(package, _)| *package == "tests") {
            let messages = build(workspace, "fairlead", &["build", "--package", "fairlead"])?;
            let binary =
                executable(&messages, "bin", "fairlead").context("cargo built no fairlead")?;
            // Tests look for it above the folder that they lie in.
            built.others.push((stripped(&binary, &dir.join("fairlead"))?, "bin/fairlead".into()));
        }
        Ok(built)
    }

    /// What of it a job needs, with the libraries that it loads.
    pub(super) fn of(&self, job: &Job) -> Vec<Placed> {
        let is_its = |package: &str, name: &str| job.tests.contains(&(package, name));
        let tests = self.tests.iter().filter(|(package, name, _)| is_its(package, name));
        let mut placed: Vec<Placed> =
            tests.map(|(_, name, path)| (path.clone(), Path::new("bin/deps").join(name))).collect();
        if job.tests.iter().any(|(package, _)| *package == "tests") {
            placed.extend(self.others.iter().cloned());
        }
        let libraries: BTreeSet<PathBuf> =
            placed.iter().flat_map(|(path, _)| libraries(path)).collect();
        placed.extend(libraries.into_iter().map(|it| (it.clone(), in_guest(&it))));
        placed
    }

    fn build_package(
        &mut self,
        workspace: &Workspace,
        dir: &Path,
        package: &'static str,
        names: &[&'static str],
    ) -> anyhow::Result<()> {
        let named = names.iter().flat_map(|name| ["--test", name]);
        let args: Vec<&str> =
            ["test", "--package", package, "--no-run"].into_iter().chain(named).collect();
        let messages = build(workspace, "tests", &args)?;
        for name in names {
            let test = executable(&messages, "test", name)
                .with_context(|| format!("cargo built no test {name}"))?;
            self.tests.push((package, name, stripped(&test, &dir.join(name))?));
        }
        // The programs that tests run are built with them, and looked for where the build left them.
        for (name, path) in executables(&messages, "bin") {
            self.others.push((stripped(&path, &dir.join(name))?, in_guest(&path)));
        }
        Ok(())
    }
}

/// The files and folders of the workspace, where the build found them.
pub(super) fn of_workspace(workspace: &Workspace, names: &[&str]) -> anyhow::Result<Vec<Placed>> {
    let mut placed = Vec::new();
    for name in names {
        place(&workspace.root().join(name), &mut placed)?;
    }
    Ok(placed)
}

/// Files of the build folder. The guest's `/bin` is to tests what the folder of programs in it is, so `/` is the
/// build folder.
pub(super) fn of_target(workspace: &Workspace, names: &[&str]) -> Vec<Placed> {
    names.iter().map(|name| (workspace.target().join(name), PathBuf::from(name))).collect()
}

fn place(path: &Path, placed: &mut Vec<Placed>) -> anyhow::Result<()> {
    if path.is_dir() {
        for entry in entries(path)? {
            place(&entry, placed)?;
        }
    } else {
        placed.push((path.to_owned(), in_guest(path)));
    }
    Ok(())
}

/// Programs of this machine's in the guest's `/bin`, and where each looks for them the libraries that they
/// load.
pub(super) fn of_machine(names: &[&str]) -> anyhow::Result<Vec<Placed>> {
    let mut placed = Vec::new();
    for name in names {
        let Some(program) = which(name) else { bail!("this machine has no {name}") };
        placed.extend(libraries(&program).into_iter().map(|it| (it.clone(), in_guest(&it))));
        placed.push((program, Path::new("bin").join(name)));
    }
    Ok(placed)
}

/// What a program loads, where it looks for it.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let told = Step::new("libraries", "ldd").arg(program).text_anyway();
    told.lines().filter_map(library).collect()
}

/// The file that a line of `ldd` names.
fn library(line: &str) -> Option<PathBuf> {
    let words = line.split_whitespace();
    words.map(Path::new).find(|word| word.is_absolute()).map(Path::to_owned)
}

fn in_guest(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

/// Builds it with what cargo says on the terminal, and returns cargo's messages.
fn build(workspace: &Workspace, what: &str, args: &[&str]) -> anyhow::Result<String> {
    let cargo = || workspace.cargo(what).args(args).without_env(SCRUB);
    cargo().show()?;
    cargo().args(["--message-format", "json"]).text().with_context(|| format!("no {what} built"))
}

fn stripped(from: &Path, to: &Path) -> anyhow::Result<PathBuf> {
    Step::new("strip", "strip").arg("-o").arg(to).arg(from).show()?;
    Ok(to.to_owned())
}

/// What of that kind and name cargo's messages tell of.
fn executable(messages: &str, kind: &str, name: &str) -> Option<PathBuf> {
    let mut found = executables(messages, kind).into_iter().rev();
    found.find_map(|(known, path)| (known == name).then_some(path))
}

/// The name and the place of all that cargo's messages tell of a kind.
fn executables(messages: &str, kind: &str) -> Vec<(String, PathBuf)> {
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let target = message.get("target")?;
        let kinds = target.get("kind")?.as_array()?;
        if !kinds.iter().any(|it| it == kind) {
            return None;
        }
        let name = target.get("name")?.as_str()?.to_owned();
        Some((name, PathBuf::from(message.get("executable")?.as_str()?)))
    };
    messages.lines().filter_map(executable).collect()
}

/// Copies a file to its place, with the folders above it.
pub(super) fn install(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copying = || format!("copying {} to {}", from.display(), to.display());
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(copying)?;
    }
    fs::copy(from, to).map(drop).with_context(copying)
}

/// The file of one of these names, wherever it lies below a folder.
pub(super) fn find(dir: &Path, names: &[&str]) -> anyhow::Result<Option<PathBuf>> {
    for path in entries(dir)? {
        if path.is_dir() && !path.is_symlink() {
            if let Some(found) = find(&path, names)? {
                return Ok(Some(found));
            }
        } else if names.contains(&file_name(&path).as_str()) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{executable, library};

    #[test]
    fn the_test_is_found_in_what_cargo_says() {
        let artifact = |kind: &str, path: &str| {
            format!(
                "{{\"reason\":\"compiler-artifact\",\
                 \"target\":{{\"name\":\"netns\",\"kind\":[\"{kind}\"]}},\
                 \"executable\":{path}}}\n"
            )
        };
        let library = artifact("lib", "null");
        let test = artifact("test", "\"/t/netns-1\"");
        let program = artifact("bin", "\"/t/names-client\"");
        let messages =
            format!("{library}{test}{program}{{\"reason\":\"build-finished\",\"success\":true}}\n");
        let found = |kind, name| executable(&messages, kind, name);
        assert_eq!(found("test", "netns").as_deref(), Some(Path::new("/t/netns-1")));
        assert_eq!(found("bin", "netns").as_deref(), Some(Path::new("/t/names-client")));
        assert_eq!(found("test", "netns_cases"), None);
    }

    #[test]
    fn a_library_is_the_file_that_is_named() {
        let named = "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f4e6f543000)";
        assert_eq!(library(named), Some(PathBuf::from("/lib/x86_64-linux-gnu/libc.so.6")));
        let loader = "\t/lib64/ld-linux-x86-64.so.2 (0x00007f4e6f755000)";
        assert_eq!(library(loader), Some(PathBuf::from("/lib64/ld-linux-x86-64.so.2")));
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007f4e6f753000)"), None);
    }
}
