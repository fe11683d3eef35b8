//! Images in an archive, as the OCI's image layout has them: made of the built-in ones, read for
//! the names of others.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::pause;
use crate::built_in::{self, BuiltIn, HOST_DIRS, HOST_FILES, OWN_DIRS, OWN_FILES, SHARED_DIRS};
use crate::image_name::in_full;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The image that needs nothing but itself.
pub(super) const PAUSE: &str = "fairlead/pause";

/// An image that is not imported yet.
#[derive(Debug)]
pub(super) struct Image {
    /// In full.
    pub(super) name: String,
    config: Vec<u8>,
    layer: Vec<u8>,
}

impl Image {
    /// A built-in image, under its own name.
    pub(super) fn built_in(image: &BuiltIn) -> io::Result<Self> {
        if image.name == PAUSE {
            return Self::pause(&in_full(image.name));
        }
        Ok(Self::new(in_full(image.name), image.entrypoint, image.command, host_layer()?))
    }

    /// The image of sandboxes, under whatever name they expect it.
    pub(super) fn pause(name: &str) -> io::Result<Self> {
        let program = pause::program().ok_or_else(|| {
            let arch = std::env::consts::ARCH;
            io::Error::other(format!("no pause program for {arch}: use --runtime=process"))
        })?;
        let mut layer = Layer::new();
        layer.add("/pause", EntryType::Regular, 0o755, &program)?;
        Ok(Self::new(in_full(name), &["/pause"], &[], layer.finish()?))
    }

    fn new(name: String, entrypoint: &[&str], command: &[&str], layer: Vec<u8>) -> Self {
        let config = json!({
            "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
            "os": "linux",
            "config": {"Entrypoint": entrypoint, "Cmd": command, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        Self { name, config: config.to_string().into_bytes(), layer }
    }

    /// What the runtime calls it.
    pub(super) fn id(&self) -> String {
        digest(&self.config)
    }
}

/// A root of little: the files that everybody expects, and places for the host's programs.
fn host_layer() -> io::Result<Vec<u8>> {
    let mut layer = Layer::new();
    for dir in OWN_DIRS {
        let mode = if SHARED_DIRS.contains(&dir) { 0o1777 } else { 0o755 };
        layer.add(dir, EntryType::Directory, mode, &[])?;
    }
    for dir in HOST_DIRS {
        if let Ok(target) = fs::read_link(dir) {
            layer.link(dir, &target)?;
        } else {
            layer.add(dir, EntryType::Directory, 0o755, &[])?;
        }
    }
    for file in HOST_FILES {
        if Path::new(file).is_file() {
            layer.add(file, EntryType::Regular, 0o644, &fs::read(file)?)?;
        }
    }
    for (file, text) in OWN_FILES {
        layer.add(file, EntryType::Regular, 0o644, text.as_bytes())?;
    }
    layer.add(built_in::PROGRAM, EntryType::Regular, 0o755, &[])?;
    layer.finish()
}

/// An image's files. The same files always give the same bytes.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn add(&mut self, path: &str, form: EntryType, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let mut header = header(form, mode, bytes.len());
        self.0.append_data(&mut header, path.trim_start_matches('/'), bytes)
    }

    fn link(&mut self, path: &str, target: &Path) -> io::Result<()> {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        self.0.append_link(&mut header, path.trim_start_matches('/'), target)
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        self.0.into_inner()
    }
}

fn header(form: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(form);
    header.set_mode(mode);
    header.set_size(size as u64);
    header
}

/// All of them in one archive.
pub(super) fn pack(images: &[Image]) -> io::Result<Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut blob = |form: &str, bytes: &[u8]| -> Value {
        let digest = digest(bytes);
        files.insert(format!("blobs/{}", digest.replace(':', "/")), bytes.to_vec());
        json!({"mediaType": form, "digest": digest, "size": bytes.len()})
    };
    let mut manifests = Vec::new();
    for image in images {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": blob(CONFIG, &image.config),
            "layers": [blob(LAYER, &image.layer)],
        });
        let blob = blob(MANIFEST, manifest.to_string().as_bytes());
        manifests.push(named(blob, &image.name));
    }
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    files.insert("index.json".to_owned(), index.to_string().into_bytes());
    let layout = json!({"imageLayoutVersion": "1.0.0"});
    files.insert("oci-layout".to_owned(), layout.to_string().into_bytes());
    let mut archive = Layer::new();
    for (path, bytes) in &files {
        archive.add(path, EntryType::Regular, 0o644, bytes)?;
    }
    archive.finish()
}

/// What an index says of an image.
fn named(mut manifest: Value, name: &str) -> Value {
    if let Some(fields) = manifest.as_object_mut() {
        let annotations = json!({"io.containerd.image.name": name});
        fields.insert("annotations".to_owned(), annotations);
    }
    manifest
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The names, in full, of the images in an archive: of the OCI's layout, or as `docker save` writes
/// it.
pub(super) fn names(archive: &Path) -> io::Result<Vec<String>> {
    let mut archive = tar::Archive::new(File::open(archive)?);
    let mut names = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        if !matches!(path.trim_start_matches("./"), "index.json" | "manifest.json") {
            continue;
        }
        let mut text = Vec::new();
        entry.read_to_end(&mut text)?;
        let json: Value = serde_json::from_slice(&text)?;
        let manifests = json.get("manifests").and_then(Value::as_array).into_iter().flatten();
        let annotated = manifests.filter_map(|one| {
            let notes = &one["annotations"];
            notes["io.containerd.image.name"]
                .as_str()
                .or_else(|| notes["org.opencontainers.image.ref.name"].as_str())
        });
        let saved = json.as_array().into_iter().flatten();
        let tagged = saved.flat_map(|one| one["RepoTags"].as_array().into_iter().flatten());
        let all = annotated.chain(tagged.filter_map(Value::as_str));
        names.extend(all.map(in_full));
    }
    names.sort();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_tells_its_images_names() {
        let images: Vec<Image> =
            built_in::ALL.iter().map(|image| Image::built_in(image).unwrap()).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), pack(&images).unwrap()).unwrap();
        let expected =
            ["client", "hello", "pause"].map(|name| format!("docker.io/fairlead/{name}:latest"));
        assert_eq!(names(file.path()).unwrap(), expected);
    }

    #[test]
    fn the_same_image_has_the_same_id() {
        let [a, b] = [0; 2].map(|_| Image::built_in(&built_in::ALL[0]).unwrap().id());
        assert_eq!(a, b);
        assert_ne!(a, Image::built_in(&built_in::ALL[2]).unwrap().id());
    }
}
