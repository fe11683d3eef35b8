//! What the kernel says of the folder, gathered until somebody looks. Bounded by the number of
//! files: later news of a file replaces earlier news.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use crate::source::files::reader::is_object_file;

/// Gathers news of one folder while it lives.
#[derive(Debug)]
pub(super) struct Mailbox {
    news: Arc<News>,
    _watcher: RecommendedWatcher,
}

/// The news of one folder, as the reader of its files sees them.
#[derive(Debug, Default)]
pub(super) struct News {
    state: Mutex<State>,
    arrived: Notify,
    caught_up: Condvar,
}

#[derive(Debug, Default)]
struct State {
    mail: Mail,
    /// Somebody waits for the folder itself to be reported opened.
    is_awaited: bool,
}

/// The kernel reports what happens within microseconds; this is for one that does not at all.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(1);

/// All news since the last look.
#[derive(Debug, Default)]
pub(super) struct Mail {
    pub(super) files: BTreeMap<Arc<str>, Seen>,
    /// Any file may differ: events were lost, or the files' common link was switched.
    pub(super) everything: bool,
}

/// How a file was last seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Written and closed, or renamed or linked into place.
    Whole,
    /// Created or written, and not closed yet.
    Open,
    /// Deleted or renamed away.
    Gone,
    /// Its permissions or times changed; says nothing against what else was seen.
    Touched,
}

impl Mailbox {
    pub(super) fn watch(dir: &Path) -> io::Result<Self> {
        let news = Arc::new(News::default());
        let sender = Arc::clone(&news);
        let folder = dir.to_owned();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<Event>| match event {
                Ok(event) => sender.note(&folder, &event),
                Err(_) => sender.compare(),
            })
            .map_err(io::Error::other)?;
        watcher.watch(dir, RecursiveMode::NonRecursive).map_err(io::Error::other)?;
        Ok(Self { news, _watcher: watcher })
    }

    /// Waits until there is mail. Safe to cancel.
    pub(super) async fn arrived(&self) {
        self.news.arrived.notified().await;
    }

    pub(super) fn take(&self) -> Mail {
        std::mem::take(&mut self.news.lock().mail)
    }

    /// Whether [`Mailbox::take`] would give anything.
    pub(super) fn has_mail(&self) -> bool {
        let state = self.news.lock();
        state.mail.everything || !state.mail.files.is_empty()
    }

    pub(super) fn news(&self) -> Arc<News> {
        Arc::clone(&self.news)
    }

    /// Asks for a comparison of everything.
    pub(super) fn compare(&self) {
        self.news.compare();
    }
}

impl News {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until everything that happened to the folder before this call has been noted. Events
    /// come in order, so it makes one, by opening the folder, and waits for that. Blocks.
    pub(super) fn catch_up(&self, folder: &Path) {
        self.lock().is_awaited = true;
        if fs::File::open(folder).is_err() {
            return;
        }
        let awaited = |state: &mut State| state.is_awaited;
        let state = self.lock();
        drop(self.caught_up.wait_timeout_while(state, CATCH_UP_WITHIN, awaited));
    }

    /// Whether a file was changed again since the mail was taken.
    pub(super) fn is_superseded(&self, file: &str) -> bool {
        self.lock().mail.files.get(file).is_some_and(|seen| *seen != Seen::Touched)
    }

    fn compare(&self) {
        self.lock().mail.everything = true;
        self.arrived.notify_one();
    }

    fn note(&self, folder: &Path, event: &Event) {
        if event.need_rescan() || event.paths.iter().any(|path| path == folder) {
            match event.kind {
                EventKind::Access(AccessKind::Open(_)) => {
                    self.lock().is_awaited = false;
                    self.caught_up.notify_all();
                }
                EventKind::Access(_) => {}
                _ => self.compare(),
            }
            return;
        }
        let Some(path) = event.paths.first() else { return };
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return };
        let Some(seen) = seen(path, event.kind) else { return };
        // The link by which a ConfigMap's volume switches all its files at once.
        if name == "..data" {
            self.compare();
        } else if is_object_file(name) {
            let mut state = self.lock();
            let known = state.mail.files.entry(name.into()).or_insert(seen);
            if seen != Seen::Touched {
                *known = seen;
            }
            drop(state);
            self.arrived.notify_one();
        }
    }
}

fn seen(path: &Path, kind: EventKind) -> Option<Seen> {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Some(Seen::Whole),
        EventKind::Modify(ModifyKind::Name(RenameMode::From))
        | EventKind::Remove(RemoveKind::File | RemoveKind::Other | RemoveKind::Any) => {
            Some(Seen::Gone)
        }
        EventKind::Create(CreateKind::File) => {
            // A link to something that exists is never closed by whom made it.
            let is_link = fs::symlink_metadata(path)
                .is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1);
            Some(if is_link { Seen::Whole } else { Seen::Open })
        }
        EventKind::Modify(ModifyKind::Data(_)) => Some(Seen::Open),
        EventKind::Modify(ModifyKind::Metadata(_)) => Some(Seen::Touched),
        _ => None,
    }
}
