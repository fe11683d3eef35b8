//! containerd's images: the built-in ones and those of archives imported, the others pulled.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::archive::{self, Image as Packed};
use super::cri::{self, Image, ImageRequest, ImageSpec, ImageStatusResponse, PullImageResponse};
use super::grpc::{CallError, Client};
use crate::built_in;
use crate::image_name::{in_full, is_reference, split_tag};
use crate::runtime::ImageError;

/// How soon the runtime has heard of what was imported.
const HEARD_WITHIN: Duration = Duration::from_secs(30);

/// When a file was written, and how long it is.
type Written = (i64, i64, u64);

/// The images of one node's containerd.
#[derive(Debug)]
pub(super) struct Images {
    client: Arc<Client>,
    socket: PathBuf,
    /// Where archives are.
    folder: PathBuf,
    /// Of the archives: when they were written, and what is in them.
    local: Mutex<BTreeMap<PathBuf, (Written, BTreeSet<String>)>>,
}

impl Images {
    pub(super) fn new(client: Arc<Client>, socket: &Path, folder: PathBuf) -> Self {
        Self { client, socket: socket.to_owned(), folder, local: Mutex::default() }
    }

    /// Imports the built-in images, and one for sandboxes if there is none.
    pub(super) async fn bring_along(&self, sandbox_image: &str) -> io::Result<()> {
        let mut wanted = Vec::new();
        for image in &built_in::ALL {
            let image = Packed::built_in(image)?;
            let there = self.status(&image.name).await?;
            if there.is_none_or(|there| there.id != image.id()) {
                wanted.push(image);
            }
        }
        let pause = Packed::pause(sandbox_image)?;
        let known = wanted.iter().any(|image| image.name == pause.name);
        if !known && self.status(&pause.name).await?.is_none() {
            wanted.push(pause);
        }
        if wanted.is_empty() {
            return Ok(());
        }
        fs::create_dir_all(&self.folder)?;
        let file = self.folder.join(".built-in.tar");
        fs::write(&file, archive::pack(&wanted)?)?;
        self.import(&file).await?;
        fs::remove_file(&file)?;
        for image in wanted {
            self.hear_of(&image.name, Some(&image.id())).await?;
        }
        Ok(())
    }

    /// Finds an image, or fetches it; says what a status calls it.
    pub(super) async fn find(&self, name: &str, policy: &str) -> Result<String, ImageError> {
        let absent = |why: &dyn std::fmt::Display| ImageError::Absent(why.to_string());
        let short = name.split_once('@').map_or(name, |(name, _)| name);
        if !is_reference(short) {
            return Err(ImageError::Invalid(name.into()));
        }
        if let Err(error) = self.import_archives().await {
            tracing::warn!(%error, folder = %self.folder.display(), "importing images failed");
        }
        let full = in_full(name);
        let there = self.status(&full).await.map_err(|error| absent(&error))?;
        let is_ours = built_in_of(name).is_some() || self.is_local(&full);
        match there {
            Some(image) if is_ours || policy != "Always" => Ok(shown(&image)),
            None if policy == "Never" => Err(ImageError::NeverPull(name.into())),
            _ => self.pull(&full).await.map_err(|error| absent(&error)),
        }
    }

    /// What the runtime knows of an image.
    pub(super) async fn status(&self, name: &str) -> Result<Option<Image>, CallError> {
        let asked = request(name);
        let status: ImageStatusResponse =
            self.client.call(cri::IMAGES, "ImageStatus", &asked).await?;
        Ok(status.image)
    }

    async fn pull(&self, name: &str) -> Result<String, CallError> {
        let pulled: PullImageResponse =
            self.client.call_patiently(cri::IMAGES, "PullImage", &request(name)).await?;
        Ok(match self.status(name).await? {
            Some(image) => shown(&image),
            None => pulled.image_ref,
        })
    }

    fn is_local(&self, name: &str) -> bool {
        let local = self.local.lock().unwrap_or_else(PoisonError::into_inner);
        local.values().any(|(_, names)| names.contains(name))
    }

    /// Imports the archives that are new since the last look.
    async fn import_archives(&self) -> io::Result<()> {
        for (file, written) in archives(&self.folder)? {
            let is_known = {
                let local = self.local.lock().unwrap_or_else(PoisonError::into_inner);
                local.get(&file).is_some_and(|(known, _)| *known == written)
            };
            if is_known {
                continue;
            }
            let names: BTreeSet<String> = archive::names(&file)?.into_iter().collect();
            self.import(&file).await?;
            for name in &names {
                self.hear_of(name, None).await?;
            }
            let mut local = self.local.lock().unwrap_or_else(PoisonError::into_inner);
            local.insert(file, (written, names));
        }
        Ok(())
    }

    /// The CRI has no call that imports; containerd's own client has.
    async fn import(&self, file: &Path) -> io::Result<()> {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(&self.socket)
            .args(["--namespace", "k8s.io", "images", "import", "--no-unpack"])
            .arg(file)
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| {
                io::Error::other(format!("ctr, which comes with containerd: {error}"))
            })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(io::Error::other(format!("ctr images import {}: {said}", file.display())))
    }

    /// The CRI hears of imported images by an event.
    async fn hear_of(&self, name: &str, id: Option<&str>) -> io::Result<()> {
        let deadline = Instant::now() + HEARD_WITHIN;
        loop {
            let there = self.status(name).await?;
            if there.is_some_and(|image| id.is_none_or(|id| image.id == id)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("the runtime does not know {name:?}")));
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The built-in image of a name, if it is one's.
fn built_in_of(name: &str) -> Option<&'static built_in::BuiltIn> {
    let short = name.strip_prefix("docker.io/").unwrap_or(name);
    let (repository, tag) = split_tag(short);
    let all: &'static [built_in::BuiltIn] = &built_in::ALL;
    all.iter().find(|one| one.name == repository && matches!(tag, "" | "latest"))
}

/// Whether containers of an image look around with the host's programs.
pub(super) fn shows_host(name: &str) -> bool {
    built_in_of(name).is_some_and(|one| one.name != archive::PAUSE)
}

fn request(name: &str) -> ImageRequest {
    ImageRequest { image: Some(ImageSpec { image: name.to_owned() }) }
}

/// As a status shows it: by the digest it was pulled by, if it was.
fn shown(image: &Image) -> String {
    image.repo_digests.first().unwrap_or(&image.id).clone()
}

/// The archives of a folder, and when they were written.
fn archives(folder: &Path) -> io::Result<Vec<(PathBuf, Written)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && path.extension().is_some_and(|form| form == "tar") {
            let meta = fs::metadata(&path)?;
            found.push((path, (meta.mtime(), meta.mtime_nsec(), meta.size())));
        }
    }
    found.sort();
    Ok(found)
}
