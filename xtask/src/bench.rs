//! `cargo xtask bench`: one benchmark, in release mode, by name.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};

use crate::build::Build;
use crate::workspace::Workspace;

/// The packages that have benchmarks.
const PACKAGES: [&str; 2] = ["tests", "loadtest"];

/// Run one benchmark in release mode; without a name, list them
#[derive(Debug, clap::Args)]
pub(crate) struct Bench {
    /// One of tests/benches or loadtest/benches
    name: Option<String>,
    /// Passed on to the benchmark
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

impl Bench {
    pub(crate) fn run(&self, workspace: &Workspace) -> anyhow::Result<()> {
        let mut known = Vec::new();
        for package in PACKAGES {
            let benches = benches(&workspace.root().join(package).join("benches"))?;
            known.extend(benches.into_iter().map(|(name, question)| (package, name, question)));
        }
        let Some(name) = &self.name else {
            for (_, name, question) in known {
                println!("{name:<12} {question}");
            }
            return Ok(());
        };
        let Some((package, ..)) = known.into_iter().find(|(_, known, _)| known == name) else {
            bail!("no benchmark is called {name}; `cargo xtask bench` lists them");
        };
        Build { release: true, ebpf_log: false }.run(workspace)?;
        workspace
            .cargo(&format!("bench {name}"))
            .args(["bench", "--package", package, "--bench", name, "--"])
            .args(&self.args)
            .show()
    }
}

/// Each file of the folder with the first sentence of its `//!`.
fn benches(dir: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(Vec::new()) };
    let mut benches = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("reading {}", dir.display()))?.path();
        let (Some(name), true) = (path.file_stem(), path.extension().is_some_and(|it| it == "rs"))
        else {
            continue;
        };
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let question = text.lines().next().unwrap_or_default().trim_start_matches("//!").trim();
        benches.push((name.to_string_lossy().into_owned(), question.to_owned()));
    }
    benches.sort();
    Ok(benches)
}

#[cfg(test)]
mod tests {
    use super::benches;

    #[test]
    fn benches_are_listed_with_their_question() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("connect.rs");
        std::fs::write(file, "//! What does a VIP cost?\nfn main() {}\n").unwrap();
        std::fs::write(dir.path().join("README.md"), "not a bench").unwrap();
        let expected = vec![("connect".to_owned(), "What does a VIP cost?".to_owned())];
        assert_eq!(benches(dir.path()).unwrap(), expected);
    }

    #[test]
    fn no_folder_means_no_benches() {
        assert!(benches("/nonexistent".as_ref()).unwrap().is_empty());
    }
}
