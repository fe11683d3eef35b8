//! A folder of Kubernetes YAML and JSON, re-read on change.
//!
//! ```text
//!  inotify ─▶ Mailbox ─▶ which files, when ─▶ Reader ─▶ documents ─▶ Folder ─▶ changes
//! ```
//!
//! A file that was written and closed, or renamed into place, is read at once; nothing waits for a
//! quiet moment. Only what might be half of something waits: a file that is gone may be coming back
//! (editors rename the old one away before they write the new one), and one that was created but
//! not closed is still being written. Now and then, and when the kernel lost events, the folder is
//! compared with what was read.
//!
//! The first list is complete once every file was read that was changed meanwhile: what it leaves out
//! is taken for gone, and a Service whose endpoints were just being replaced would have none.

mod document;
mod folder;
mod mailbox;
mod object;
mod plain;
mod reader;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use crate::cluster::Change;
use crate::source::files::folder::lists_done;
use crate::source::files::mailbox::{Mail, Mailbox, Seen};
use crate::source::files::reader::{Read, Reader, Reason, identity};
use crate::watch::HealthReport;

/// So long a file that is gone may take to come back.
const GONE_AFTER: Duration = Duration::from_millis(100);
/// A file that stays open is read as it is so long after it was last written.
const OPEN_FOR: Duration = Duration::from_secs(1);
/// The first list waits no longer than this for files that are changed again and again.
const LISTED_WITHIN: Duration = Duration::from_secs(2);
/// How often the folder is compared with what was read.
const COMPARE_EVERY: Duration = Duration::from_secs(10);

/// A folder that is being watched.
#[derive(Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    identity: (u64, u64),
    mailbox: Mailbox,
}

/// A folder cannot be watched.
#[derive(Debug, Error)]
#[error("cannot watch the folder {}; give a directory that this process may read", dir.display())]
pub struct OpenFolderError {
    dir: PathBuf,
    source: io::Error,
}

impl Files {
    /// Starts to watch a folder; what changes from now on will be seen.
    pub(crate) fn open(dir: &Path) -> Result<Self, OpenFolderError> {
        let open = || {
            let mailbox = Mailbox::watch(dir)?;
            std::fs::read_dir(dir)?;
            Ok(Self { dir: dir.to_owned(), identity: identity(dir)?, mailbox })
        };
        open().map_err(|source| OpenFolderError { dir: dir.to_owned(), source })
    }

    /// Sends what is in the folder, then what changes, until nobody listens.
    pub(crate) async fn run(
        mut self,
        node_name: Arc<str>,
        out: mpsc::Sender<Vec<Change>>,
        health: HealthReport,
    ) {
        let mut reader = Reader::new(self.dir.clone(), node_name);
        let mut due = Due::new(Instant::now());
        let mut list = List::Unread;
        loop {
            let now = Instant::now();
            let mail = self.mailbox.take();
            let compare = mail.everything || due.is_comparison(now);
            due.note(&mail, now);
            let files = due.take_ready(now);
            let news = self.mailbox.news();
            let is_first = list == List::Unread;
            let step = move || {
                let read = if is_first {
                    reader.read_all(&news)
                } else {
                    reader.follow(&files, compare, &news)
                };
                (reader, files, read)
            };
            let Ok((back, files, read)) = spawn_blocking(step).await else { return };
            reader = back;
            match read {
                Ok(mut read) => {
                    health.well(PART);
                    due.found(&read, mail.everything, now);
                    list = list.after_look(due.is_quiet() && !self.mailbox.has_mail());
                    if list == List::Complete {
                        list = List::Told;
                        read.changes.extend(lists_done());
                    }
                    if !read.changes.is_empty() && out.send(read.changes).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let what = format!("cannot list {}: {error}", self.dir.display());
                    health.failed(PART, &what, "what was read stays in force; restore it");
                    due.later(files, now);
                }
            }
            if compare {
                self.watch_again();
                due.compared(now);
            }
            tokio::select! {
                () = self.mailbox.arrived() => {}
                () = sleep_until(due.next()) => {}
                () = out.closed() => return,
            }
        }
    }

    /// Another directory may stand under the path by now.
    fn watch_again(&mut self) {
        let Ok(identity) = identity(&self.dir) else { return };
        if identity != self.identity
            && let Ok(mailbox) = Mailbox::watch(&self.dir)
        {
            mailbox.compare();
            (self.identity, self.mailbox) = (identity, mailbox);
        }
    }
}

/// What a problem with the folder itself is filed under.
const PART: &str = "folder";

/// The first list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    Unread,
    /// Files were changed while it was read.
    Unsettled {
        until: Instant,
    },
    Complete,
    Told,
}

impl List {
    fn after_look(self, is_quiet: bool) -> Self {
        let now = Instant::now();
        match self {
            Self::Unread | Self::Unsettled { .. } if is_quiet => Self::Complete,
            Self::Unread => Self::Unsettled { until: now + LISTED_WITHIN },
            Self::Unsettled { until } if until <= now => Self::Complete,
            other => other,
        }
    }
}

/// Which file is to be looked at when, and why. No clock: the moments come in.
#[derive(Debug)]
struct Due {
    files: BTreeMap<Arc<str>, (Instant, Reason)>,
    comparison: Instant,
}

impl Due {
    fn new(now: Instant) -> Self {
        Self { files: BTreeMap::new(), comparison: now + COMPARE_EVERY }
    }

    fn note(&mut self, mail: &Mail, now: Instant) {
        for (file, seen) in &mail.files {
            let at = match seen {
                Seen::Whole => (now, Reason::Changed),
                Seen::Open => (now + OPEN_FOR, Reason::Changed),
                Seen::Gone => (now + GONE_AFTER, Reason::Gone),
                Seen::Touched => {
                    self.files.entry(Arc::clone(file)).or_insert((now, Reason::Changed));
                    continue;
                }
            };
            self.files.insert(Arc::clone(file), at);
        }
    }

    fn take_ready(&mut self, now: Instant) -> BTreeMap<Arc<str>, Reason> {
        let ready = self.files.extract_if(.., |_, (at, _)| *at <= now);
        ready.map(|(file, (_, reason))| (file, reason)).collect()
    }

    fn found(&mut self, read: &Read, at_once: bool, now: Instant) {
        let wait = if at_once { Duration::ZERO } else { OPEN_FOR };
        let again = [
            (&read.torn, OPEN_FOR, Reason::Changed),
            (&read.missing, GONE_AFTER, Reason::Gone),
            (&read.differing.changed, wait, Reason::Changed),
            (&read.differing.gone, GONE_AFTER, Reason::Gone),
        ];
        for (files, wait, reason) in again {
            for file in files {
                self.files.entry(Arc::clone(file)).or_insert((now + wait, reason));
            }
        }
    }

    /// Looking failed altogether.
    fn later(&mut self, files: BTreeMap<Arc<str>, Reason>, now: Instant) {
        for (file, reason) in files {
            self.files.entry(file).or_insert((now + OPEN_FOR, reason));
        }
    }

    /// No file is to be looked at.
    fn is_quiet(&self) -> bool {
        self.files.is_empty()
    }

    fn is_comparison(&self, now: Instant) -> bool {
        self.comparison <= now
    }

    fn compared(&mut self, now: Instant) {
        self.comparison = now + COMPARE_EVERY;
    }

    fn next(&self) -> Instant {
        self.files.values().map(|(at, _)| *at).fold(self.comparison, Instant::min)
    }
}
