//! Debian packages that are unpacked into a folder and not installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::step::Step;

/// The folder into which the Debian package was unpacked, now or on an earlier run.
pub(crate) fn unpacked(dir: &Path, package: &str) -> anyhow::Result<PathBuf> {
    unpacked_all(dir, &[package])?;
    Ok(dir.join(package))
}

/// Leaves a folder in `dir` for each of these Debian packages. What an earlier run did not download
/// and unpack is fetched together.
pub(crate) fn unpacked_all(dir: &Path, packages: &[&str]) -> anyhow::Result<()> {
    let missing: Vec<&str> =
        packages.iter().copied().filter(|package| !dir.join(package).is_dir()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    // What a run that was cut off has left may be half a file.
    let download = dir.join("download");
    remove_dir(&download)?;
    fs::create_dir_all(&download).context("creating the download folder")?;
    if Step::new("apt", "apt-cache").arg("show").args(&missing).text().is_none() {
        // A new machine has no lists yet.
        Step::new("package lists", "apt-get").arg("update").watch(&dir.join("apt-update.log"))?;
    }
    Step::new("download", "apt-get")
        // A server that does not answer is asked again, and not waited for without end.
        .args(["-o", "Acquire::http::Timeout=30", "-o", "Acquire::Retries=3"])
        .args(["-o", "APT::Sandbox::User=root", "download"])
        .args(&missing)
        .dir(&download)
        .remedy("`apt-get update` brings the lists up to date.")
        .watch(&dir.join("download.log"))?;
    let files = entries(&download)?;
    for package in missing {
        let prefix = format!("{package}_");
        let file = files
            .iter()
            .find(|path| file_name(path).starts_with(&prefix))
            .with_context(|| format!("apt-get downloaded no {package}"))?;
        unpack(file, &dir.join("partial"), &dir.join(package))?;
    }
    remove_dir(&download)
}

/// A folder gets its name when it is whole.
fn unpack(file: &Path, partial: &Path, folder: &Path) -> anyhow::Result<()> {
    remove_dir(partial)?;
    Step::new("unpack", "dpkg").arg("-x").arg(file).arg(partial).show()?;
    fs::rename(partial, folder).context("naming the unpacked package")
}

pub(crate) fn entries(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let reading = || format!("reading {}", dir.display());
    let entries = fs::read_dir(dir).with_context(reading)?;
    entries.map(|entry| entry.map(|it| it.path()).with_context(reading)).collect()
}

pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(crate) fn remove_dir(dir: &Path) -> anyhow::Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    Ok(())
}
