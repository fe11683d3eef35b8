//! `cargo xtask tidy`: the house rules that no compiler knows, as code.
//!
//! Each rule is a function from text to findings; this file reads the workspace for them.

mod arrows;
mod pages;
mod source;

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::workspace::Workspace;

/// What is wrong, where, and what the rule is.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    place: String,
    rule: String,
}

impl Finding {
    fn new(place: impl Into<String>, rule: impl Into<String>) -> Self {
        Self { place: place.into(), rule: rule.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.rule)
    }
}

/// A file's path from the workspace's root, and its text.
#[derive(Debug)]
struct Page {
    path: String,
    text: String,
}

/// Checks the workspace.
///
/// # Errors
/// When a rule is broken, after printing each finding.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    eprintln!("── tidy");
    let pages = read(workspace.root())?;
    let metadata = workspace
        .cargo("cargo metadata")
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .text()
        .context("cargo metadata failed: run it to see why")?;
    let mut findings = arrows::check(&metadata)?;
    findings.extend(pages.iter().filter(|page| is_rust(page)).flat_map(source::check));
    findings.extend(pages::check(&pages));
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy: {} findings; CONTRIBUTING.md has the reasons for the rules", findings.len());
    }
    Ok(())
}

fn is_rust(page: &Page) -> bool {
    Path::new(&page.path).extension() == Some(OsStr::new("rs"))
}

/// Every file that is ours, with its text if it is Rust or Markdown.
fn read(root: &Path) -> anyhow::Result<Vec<Page>> {
    let mut folders = vec![root.to_owned()];
    let mut pages = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in entries(&folder)? {
            let ours = !path
                .file_name()
                .is_some_and(|name| name == "target" || name.to_string_lossy().starts_with('.'));
            if ours && path.is_dir() {
                folders.push(path);
            } else if ours {
                let text = match path.extension().and_then(OsStr::to_str) {
                    Some("rs" | "md") => fs::read_to_string(&path)
                        .with_context(|| format!("reading {}", path.display()))?,
                    _ => String::new(),
                };
                let path = path.strip_prefix(root).unwrap_or(&path).display().to_string();
                pages.push(Page { path, text });
            }
        }
    }
    pages.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(pages)
}

fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let reading = || format!("reading {}", folder.display());
    let entries = fs::read_dir(folder).with_context(reading)?;
    entries.map(|entry| entry.map(|it| it.path()).with_context(reading)).collect()
}
