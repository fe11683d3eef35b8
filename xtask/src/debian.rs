//! Debian packages that are unpacked into a folder and not installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::step::Step;

/// The folder into which the Debian package was unpacked, now or on an earlier run.
pub(crate) fn unpacked(dir: &Path, package: &str) -> anyhow::Result<PathBuf> {
    let folder = dir.join(package);
    if folder.is_dir() {
        return Ok(folder);
    }
    let download = dir.join("download");
    fs::create_dir_all(&download).context("creating the download folder")?;
    if Step::new("apt", "apt-cache").args(["show", package]).text().is_none() {
        // A new machine has no lists yet.
        Step::new("package lists", "apt-get").arg("update").watch(&dir.join("apt-update.log"))?;
    }
    Step::new("download", "apt-get")
        .args(["download", package])
        .dir(&download)
        .remedy("`apt-get update` brings the lists up to date.")
        .watch(&dir.join("download.log"))?;
    let prefix = format!("{package}_");
    let file = entries(&download)?
        .into_iter()
        .find(|path| file_name(path).starts_with(&prefix))
        .with_context(|| format!("apt-get downloaded no {package}"))?;
    // It gets its name when it is whole.
    let partial = dir.join("partial");
    remove_dir(&partial)?;
    Step::new("unpack", "dpkg").arg("-x").arg(&file).arg(&partial).show()?;
    fs::rename(&partial, &folder).context("naming the unpacked package")?;
    Ok(folder)
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
