//! The folder on disk: which files there are, which of them differ, and what is in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, BufReader, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cluster::Change;
use crate::parse::Names;
use crate::source::files::document::{self, Contents};
use crate::source::files::folder::{Folder, lists_begin};
use crate::source::files::mailbox::News;

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

/// How one look at a file ended.
#[derive(Debug)]
enum Look {
    Contents(Looks, Box<Contents>),
    TooLarge(Looks),
    Unreadable(io::Error),
    /// It was written meanwhile.
    Torn,
    Missing,
}

/// Equal looks, equal contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Looks {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Look {
    fn of_error(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound {
            Self::Missing
        } else {
            Self::Unreadable(error)
        }
    }
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
    /// Files that went before they were read, and may be coming back.
    pub(super) missing: BTreeSet<Arc<str>>,
    pub(super) differing: Differing,
}

/// Why a file is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// It may have other contents.
    Changed,
    /// It was gone, and has had the time to come back.
    Gone,
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

    /// Everything there is, as a list that is not complete yet: the news tell what was changed
    /// meanwhile.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub(super) fn read_all(&mut self, news: &News) -> io::Result<Read> {
        let files = self.differing()?.changed;
        let mut read = Read { changes: lists_begin(), ..Read::default() };
        read.changes.push(self.folder.made_node());
        for file in files {
            let look = self.look_at(&file);
            self.take(&file, look, &mut read);
        }
        news.catch_up(&self.dir);
        Ok(read)
    }

    /// Reads these files again, and compares the folder with what was read when asked to.
    ///
    /// What was read counts only if nobody began to change the file before it was read. Reading
    /// cannot tell a file that is empty from one that is empty for now, but the news can.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub(super) fn follow(
        &mut self,
        files: &BTreeMap<Arc<str>, Reason>,
        compare: bool,
        news: &News,
    ) -> io::Result<Read> {
        let mut read = Read::default();
        let mut looks = Vec::with_capacity(files.len());
        for (file, reason) in files {
            looks.push((file, reason, self.look_at(file)));
        }
        if !looks.is_empty() {
            news.catch_up(&self.dir);
        }
        for (file, reason, look) in looks {
            match look {
                // The later news bring it back here.
                _ if news.is_superseded(file) => {}
                Look::Missing if *reason == Reason::Gone => {
                    self.read.remove(file);
                    self.folder.remove(file, &mut read.changes);
                }
                look => self.take(file, look, &mut read),
            }
        }
        if compare {
            read.differing = self.differing()?;
        }
        Ok(read)
    }

    fn take(&mut self, file: &Arc<str>, look: Look, read: &mut Read) {
        match look {
            Look::Contents(looks, contents) => {
                self.read.insert(Arc::clone(file), looks);
                tracing::debug!(
                    file = &**file,
                    objects = contents.found.objects.len(),
                    other_kinds = contents.found.n_others,
                    "read"
                );
                self.folder.set(file, *contents, &mut read.changes);
            }
            Look::TooLarge(looks) => {
                self.read.insert(Arc::clone(file), looks);
                let (is, may) = (looks.size >> 20, MAX_FILE_BYTES >> 20);
                let why = format!("{is} MiB, and at most {may} are read; split it");
                self.folder.unreadable(file, why, &mut read.changes);
            }
            Look::Unreadable(error) => {
                self.read.remove(file);
                let why = format!("{error}; make it readable for this process");
                self.folder.unreadable(file, why, &mut read.changes);
            }
            Look::Torn => drop(read.torn.insert(Arc::clone(file))),
            Look::Missing => drop(read.missing.insert(Arc::clone(file))),
        }
    }

    fn look_at(&mut self, file: &str) -> Look {
        let path = self.dir.join(file);
        // A device or a pipe might block whoever opens it.
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {}
            // A directory or a device of that name is as good as no file.
            Ok(_) => return Look::Missing,
            Err(error) => return Look::of_error(error),
        }
        let opened = File::open(&path).and_then(|open| Ok((Looks::of(&open.metadata()?), open)));
        let (looks, open) = match opened {
            Ok(opened) => opened,
            Err(error) => return Look::of_error(error),
        };
        if looks.size > MAX_FILE_BYTES {
            return Look::TooLarge(looks);
        }
        let text = BufReader::with_capacity(64 << 10, (&open).take(MAX_FILE_BYTES));
        let contents = document::read(text, &mut self.names);
        // Somebody wrote while we read: this is neither the old nor the new file. Whoever put
        // another in its place left this one whole.
        if open.metadata().ok().as_ref().map(Looks::of) != Some(looks) {
            return Look::Torn;
        }
        match contents {
            Ok(contents) => Look::Contents(looks, Box::new(contents)),
            Err(error) => Look::Unreadable(error),
        }
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
