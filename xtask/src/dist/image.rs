//! An image as the Open Container Initiative lays it out, in one archive: the same input gives the same
//! bytes, whenever and wherever it is made.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// What a container is made of.
#[derive(Debug)]
pub(super) struct Image {
    /// What it is called once it is imported.
    pub(super) name: String,
    /// From the bottom up.
    pub(super) layers: Vec<Layer>,
    /// What a container runs.
    pub(super) entrypoint: String,
    /// Where that finds programs.
    pub(super) path: String,
}

/// Files that lie over those of the layers below.
#[derive(Debug, Default)]
pub(super) struct Layer(BTreeMap<String, Entry>);

#[derive(Debug)]
enum Entry {
    Folder,
    File { from: PathBuf, mode: u32 },
    Link(String),
}

impl Layer {
    pub(super) fn add_file(&mut self, path: &str, from: &Path, mode: u32) {
        self.add(path, Entry::File { from: from.to_owned(), mode });
    }

    pub(super) fn add_link(&mut self, path: &str, target: &str) {
        self.add(path, Entry::Link(target.to_owned()));
    }

    pub(super) fn add_folder(&mut self, path: &str) {
        self.add(path, Entry::Folder);
    }

    /// Adds what a folder holds, but for some paths in it.
    pub(super) fn add_tree(&mut self, root: &Path, left_out: &[&str]) -> anyhow::Result<()> {
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for from in crate::debian::entries(&folder)? {
                let path = from.strip_prefix(root).unwrap_or(&from).display().to_string();
                if left_out.contains(&path.as_str()) {
                    continue;
                }
                let reading = || format!("reading {}", from.display());
                let metadata = fs::symlink_metadata(&from).with_context(reading)?;
                if metadata.is_symlink() {
                    let target = fs::read_link(&from).with_context(reading)?;
                    self.add_link(&path, &target.display().to_string());
                } else if metadata.is_dir() {
                    self.add_folder(&path);
                    folders.push(from);
                } else {
                    // Who may run it, anybody may.
                    let mode =
                        if metadata.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
                    self.add_file(&path, &from, mode);
                }
            }
        }
        Ok(())
    }

    /// The folders above it come with it.
    fn add(&mut self, path: &str, entry: Entry) {
        for (end, _) in path.match_indices('/') {
            if let Some(above) = path.get(..end) {
                self.0.entry(above.to_owned()).or_insert(Entry::Folder);
            }
        }
        match entry {
            Entry::Folder => _ = self.0.entry(path.to_owned()).or_insert(Entry::Folder),
            other => _ = self.0.insert(path.to_owned(), other),
        }
    }

    fn archive(&self) -> anyhow::Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        for (path, entry) in &self.0 {
            let adding = || format!("adding {path}");
            match entry {
                Entry::Folder => {
                    let mut header = header(EntryType::Directory, 0o755, 0);
                    archive.append_data(&mut header, path, io::empty()).with_context(adding)?;
                }
                Entry::Link(target) => {
                    let mut header = header(EntryType::Symlink, 0o777, 0);
                    archive.append_link(&mut header, path, target).with_context(adding)?;
                }
                Entry::File { from, mode } => {
                    let bytes = fs::read(from).with_context(adding)?;
                    let mut header = header(EntryType::Regular, *mode, bytes.len());
                    archive.append_data(&mut header, path, &*bytes).with_context(adding)?;
                }
            }
        }
        archive.into_inner().context("ending a layer")
    }
}

impl Image {
    /// Writes the archive.
    pub(super) fn write(&self, to: &Path) -> anyhow::Result<()> {
        let mut blobs = Blobs::default();
        let mut layers = Vec::new();
        for layer in &self.layers {
            layers.push(blobs.add("application/vnd.oci.image.layer.v1.tar", layer.archive()?));
        }
        let digests: Vec<&Value> = layers.iter().filter_map(|layer| layer.get("digest")).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": { "Entrypoint": [self.entrypoint], "Env": [format!("PATH={}", self.path)] },
            "rootfs": { "type": "layers", "diff_ids": digests },
        });
        let config = blobs.add("application/vnd.oci.image.config.v1+json", text(&config));
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": config,
            "layers": layers,
        });
        let mut manifest = blobs.add(manifest_type, text(&manifest));
        if let Some(manifest) = manifest.as_object_mut() {
            let tag = self.name.rsplit(':').next().unwrap_or_default();
            let names = json!({
                "io.containerd.image.name": self.name,
                "org.opencontainers.image.ref.name": tag,
            });
            manifest.insert("annotations".to_owned(), names);
        }
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        let layout = json!({ "imageLayoutVersion": "1.0.0" });

        let mut files = blobs.0;
        files.insert("index.json".to_owned(), text(&index));
        files.insert("oci-layout".to_owned(), text(&layout));
        let mut archive = Builder::new(Vec::new());
        for (path, bytes) in &files {
            let mut header = header(EntryType::Regular, 0o644, bytes.len());
            archive.append_data(&mut header, path, &**bytes).context("adding a blob")?;
        }
        let bytes = archive.into_inner().context("ending the archive")?;
        let writing = || format!("writing {}", to.display());
        let mut file = fs::File::create(to).with_context(writing)?;
        file.write_all(&bytes).with_context(writing)
    }
}

/// Blobs by their paths.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Adds one; returns what names it.
    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest: String =
            Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let size = bytes.len();
        self.0.insert(format!("blobs/sha256/{digest}"), bytes);
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size })
    }
}

fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// Nobody's in particular, and of no time.
fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Makes an image out of a folder that is written anew.
    fn made(dir: &Path) -> Vec<u8> {
        let root = dir.join("root");
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        fs::create_dir_all(root.join("usr/share/doc/it")).unwrap();
        fs::write(root.join("usr/lib/it.so.1"), "library").unwrap();
        std::os::unix::fs::symlink("it.so.1", root.join("usr/lib/it.so")).unwrap();
        fs::write(root.join("usr/share/doc/it/README"), "words").unwrap();
        let binary = dir.join("binary");
        fs::write(&binary, "program").unwrap();
        let (mut below, mut above) = (Layer::default(), Layer::default());
        below.add_tree(&root, &["usr/share/doc"]).unwrap();
        above.add_file("usr/bin/it", &binary, 0o755);
        let image = Image {
            name: "docker.io/library/it:latest".to_owned(),
            layers: vec![below, above],
            entrypoint: "/usr/bin/it".to_owned(),
            path: "/usr/bin".to_owned(),
        };
        image.write(&dir.join("it.tar")).unwrap();
        fs::read(dir.join("it.tar")).unwrap()
    }

    /// The files of an archive.
    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.path().unwrap().display().to_string(), bytes)
        });
        entries.collect()
    }

    #[test]
    fn the_same_files_give_the_same_image_wherever_and_whenever() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = made(one.path());
        fs::File::open(one.path().join("binary"))
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH)
            .unwrap();
        assert!(first == made(other.path()));
    }

    #[test]
    fn every_blob_is_what_its_name_says_and_the_index_leads_to_all() {
        let dir = tempfile::tempdir().unwrap();
        let all = files(&made(dir.path()));
        let blob = |digest: &Value| {
            let digest = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
            all[&format!("blobs/sha256/{digest}")].clone()
        };
        for (path, bytes) in &all {
            if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                let is: String =
                    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(is, digest);
            }
        }
        let index: Value = serde_json::from_slice(&all["index.json"]).unwrap();
        let manifest: Value =
            serde_json::from_slice(&blob(&index["manifests"][0]["digest"])).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"]["digest"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/it");
        assert_eq!(config["rootfs"]["diff_ids"][1], manifest["layers"][1]["digest"]);
        let below = files(&blob(&manifest["layers"][0]["digest"]));
        let paths: Vec<&str> = below.keys().map(String::as_str).collect();
        assert_eq!(paths, ["usr", "usr/lib", "usr/lib/it.so", "usr/lib/it.so.1", "usr/share"]);
        let above = files(&blob(&manifest["layers"][1]["digest"]));
        assert_eq!(above["usr/bin/it"], b"program");
    }
}
