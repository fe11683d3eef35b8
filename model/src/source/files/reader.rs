//! The folder on disk: which files there are, which of them differ, and what is in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, BufReader, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cluster::Change;
use crate::parse::Names;
use crate::source::files::document;
use crate::source::files::folder::{Folder, lists_begin, lists_done};

/// Larger files are refused.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Reads files into changes. Blocks; so it runs on a thread where that is allowed.
#[derive(Debug)]
pub(super) struct Reader {
    dir: PathBuf,
    folder: Folder,
    names: Names,
    /// What each file looked like when it was read.
    read: BTreeMap<Arc<str>, Looks>,
}

/// Equal looks, equal contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Looks {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Looks {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// What one look at the folder gave.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) changes: Vec<Change>,
    /// Files that were written while they were read: neither the old nor the new ones.
    pub(super) torn: BTreeSet<Arc<str>>,
    pub(super) differing: Differing,
}

/// Which files differ from what was read.
#[derive(Debug, Default)]
pub(super) struct Differing {
    pub(super) changed: BTreeSet<Arc<str>>,
    pub(super) gone: BTreeSet<Arc<str>>,
}

impl Reader {
    pub(super) fn new(dir: PathBuf, node_name: Arc<str>) -> Self {
        Self { dir, folder: Folder::new(node_name), names: Names::default(), read: BTreeMap::new() }
    }

    /// Everything there is, as a complete list.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub(super) fn read_all(&mut self) -> io::Result<Read> {
        let files = self.differing()?.changed;
        let mut changes = lists_begin();
        changes.push(self.folder.made_node());
        let torn = self.look(&files, &mut changes);
        changes.extend(lists_done());
        Ok(Read { changes, torn, ..Read::default() })
    }

    /// Reads these files again, and compares the folder with what was read when asked to.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub(super) fn follow(&mut self, files: &BTreeSet<Arc<str>>, compare: bool) -> io::Result<Read> {
        let differing = if compare { self.differing()? } else { Differing::default() };
        let mut changes = Vec::new();
        let torn = self.look(files, &mut changes);
        Ok(Read { changes, torn, differing })
    }

    /// Reads files and says which of them changed meanwhile.
    fn look(
        &mut self,
        files: &BTreeSet<Arc<str>>,
        changes: &mut Vec<Change>,
    ) -> BTreeSet<Arc<str>> {
        files.iter().filter(|file| !self.look_at(file, changes)).cloned().collect()
    }

    fn look_at(&mut self, file: &Arc<str>, changes: &mut Vec<Change>) -> bool {
        let path = self.dir.join(&**file);
        let looks = match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => Looks::of(&metadata),
            // A directory or a device of that name is as good as no file.
            Ok(_) => return self.forget(file, changes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.forget(file, changes);
            }
            Err(error) => {
                self.unreadable(file, &error, changes);
                return true;
            }
        };
        if looks.size > MAX_FILE_BYTES {
            self.read.insert(Arc::clone(file), looks);
            let why = format!(
                "{} MiB, and at most {} are read; split it",
                looks.size >> 20,
                MAX_FILE_BYTES >> 20
            );
            self.folder.unreadable(file, why, changes);
            return true;
        }
        let contents = File::open(&path).and_then(|open| {
            let text = BufReader::with_capacity(64 << 10, open.take(MAX_FILE_BYTES));
            document::read(text, &mut self.names)
        });
        // Somebody wrote while we read: this is neither the old nor the new file.
        if fs::metadata(&path).ok().as_ref().map(Looks::of) != Some(looks) {
            return false;
        }
        match contents {
            Ok(contents) => {
                self.read.insert(Arc::clone(file), looks);
                tracing::debug!(
                    file = &**file,
                    objects = contents.found.objects.len(),
                    other_kinds = contents.found.n_others,
                    "read"
                );
                self.folder.set(file, contents, changes);
            }
            Err(error) => self.unreadable(file, &error, changes),
        }
        true
    }

    fn forget(&mut self, file: &Arc<str>, changes: &mut Vec<Change>) -> bool {
        self.read.remove(file);
        self.folder.remove(file, changes);
        true
    }

    fn unreadable(&mut self, file: &Arc<str>, error: &io::Error, changes: &mut Vec<Change>) {
        self.read.remove(file);
        let why = format!("{error}; make it readable for this process");
        self.folder.unreadable(file, why, changes);
    }

    fn differing(&self) -> io::Result<Differing> {
        let mut differing = Differing::default();
        let mut there = BTreeSet::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str().filter(|name| is_object_file(name)) else { continue };
            let file: Arc<str> = name.into();
            there.insert(Arc::clone(&file));
            let looks = fs::metadata(self.dir.join(name)).ok().as_ref().map(Looks::of);
            if looks.as_ref() != self.read.get(&file) {
                differing.changed.insert(file);
            }
        }
        differing.gone =
            self.folder.files().filter(|file| !there.contains(*file)).cloned().collect();
        Ok(differing)
    }
}

/// Which directory stands under a path.
pub(super) fn identity(dir: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(dir)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// As kubectl takes them from a folder; hidden ones are editors' and `ConfigMap` volumes' own.
pub(super) fn is_object_file(name: &str) -> bool {
    !name.starts_with('.') && [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending))
}
