//! Watches: a place in the history, read on whenever there is more.
//!
//! A watcher has no queue. It remembers the revision it has sent, and reads the next events when
//! its connection can take them; one that falls out of the history is told so (410) and dropped.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::Stream;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, timeout_at};

use super::negotiate::{self, Form};
use super::read::{Filter, parse_revision, wait_for};
use super::{Api, Request, Target, respond};
use crate::object::Object;
use crate::status::{Result, Status};
use crate::store::Event;

/// Sent at once, at most, so that a long history is not copied whole.
const CHUNK: usize = 64 * 1024;
/// Events taken from the history at once.
const SOME: usize = 256;
/// How often a quiet watcher that allows bookmarks hears how far it is.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long a watch lasts when the client does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(45 * 60);

pub(super) async fn watch(api: &Arc<Api>, request: &Request, target: &Target) -> Result<Response> {
    let filter = Filter::of(request, target)?;
    let form = negotiate::form(request)?;
    let initial = request.query.get("sendInitialEvents");
    let send_initial = initial == "true";
    if send_initial && request.query.get("resourceVersionMatch") != "NotOlderThan" {
        return Err(Status::new(
            422,
            "Invalid",
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: \
             sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    let asked = request.query.get("resourceVersion");
    let from = parse_revision(asked)?;
    if send_initial {
        wait_for(api, target, from).await?;
    }
    let seconds = request.query.number("timeoutSeconds")?.filter(|seconds| *seconds > 0);
    let lasts = seconds.map_or(DEFAULT_TIMEOUT, Duration::from_secs).min(DEFAULT_TIMEOUT * 2);
    let changes = api.store.changes(target.number).ok_or_else(Status::no_such_path)?;
    let synthetic = send_initial || (from == 0 && initial != "false");
    let mut watcher = Watcher {
        api: Arc::clone(api),
        target: target.again(),
        filter,
        form,
        changes,
        sent: from,
        bookmarks: request.query.is_true("allowWatchBookmarks"),
        first_row: true,
        ends: Instant::now() + lasts,
        pending: Vec::new(),
        last: None,
        ended: false,
        bookmark_at: Instant::now() + BOOKMARK_EVERY,
    };
    if synthetic {
        watcher.begin_with_state(send_initial);
    } else if from == 0 {
        watcher.sent = api.store.read().revision;
    } else if from < api.store.read().history().compacted {
        let compacted = api.store.read().history().compacted;
        watcher
            .end_with(&Status::expired(format!("too old resource version: {from} ({compacted})")));
    }
    let mut response =
        respond(StatusCode::OK, "application/json", Body::from_stream(watcher.stream()));
    response
        .headers_mut()
        .insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
    Ok(response)
}

struct Watcher {
    api: Arc<Api>,
    target: Target,
    filter: Filter,
    form: Form,
    changes: Receiver<u64>,
    /// Everything up to this revision has been sent, or does not concern this watcher.
    sent: u64,
    bookmarks: bool,
    /// The next table is the first: it defines its columns.
    first_row: bool,
    ends: Instant,
    /// The state to begin with, last first; `None` is the bookmark that ends it.
    pending: Vec<Option<Arc<Object>>>,
    /// The watch is over once this has been sent.
    last: Option<Vec<u8>>,
    ended: bool,
    bookmark_at: Instant,
}

impl Watcher {
    fn begin_with_state(&mut self, mark_end: bool) {
        let state = self.api.store.read();
        let listed = self.filter.list(&self.target, &state);
        let revision = state.revision;
        drop(state);
        let mut pending: Vec<Option<Arc<Object>>> =
            listed.into_iter().map(|(_, object)| Some(object)).collect();
        if mark_end && self.bookmarks {
            pending.push(None);
        }
        pending.reverse();
        self.pending = pending;
        self.sent = revision;
    }

    fn stream(self) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
        futures::stream::unfold(self, |mut watcher| async move {
            let chunk = watcher.next().await?;
            Some((Ok(Bytes::from(chunk)), watcher))
        })
    }

    /// The next events, as lines of JSON; `None` when the watch is over.
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if !self.pending.is_empty() {
                return Some(self.initial());
            }
            if self.ended {
                return self.last.take();
            }
            self.changes.mark_unchanged();
            let chunk = self.read_on();
            if !chunk.is_empty() {
                return Some(chunk);
            }
            if self.bookmarks && Instant::now() >= self.bookmark_at {
                self.bookmark_at = Instant::now() + BOOKMARK_EVERY;
                return Some(self.bookmark(false));
            }
            if Instant::now() >= self.ends {
                return None;
            }
            let wake = if self.bookmarks { self.ends.min(self.bookmark_at) } else { self.ends };
            let stop = self.api.stop.clone();
            tokio::select! {
                () = stop.cancelled() => return None,
                changed = timeout_at(wake, self.changes.changed()) => {
                    if matches!(changed, Ok(Err(_))) {
                        return None;
                    }
                }
            }
        }
    }

    fn initial(&mut self) -> Vec<u8> {
        let mut chunk = Vec::new();
        while chunk.len() < CHUNK
            && let Some(next) = self.pending.pop()
        {
            match next {
                Some(object) => self.write(&mut chunk, "ADDED", &object),
                None => chunk.extend(self.bookmark(true)),
            }
        }
        chunk
    }

    /// The events since the last ones sent.
    fn read_on(&mut self) -> Vec<u8> {
        let mut chunk = Vec::new();
        while chunk.is_empty() {
            let (events, current) = match self.some_events() {
                Ok(found) => found,
                Err(status) => {
                    self.end_with(&status);
                    return self.last.take().unwrap_or_default();
                }
            };
            let all = events.len() < SOME;
            for event in &events {
                self.sent = event.object.revision;
                self.write_event(&mut chunk, event);
                if chunk.len() >= CHUNK {
                    return chunk;
                }
            }
            if all {
                self.sent = self.sent.max(current);
                break;
            }
        }
        chunk
    }

    /// A few events, and the revision of which they were read.
    fn some_events(&self) -> Result<(Vec<Event>, u64)> {
        let state = self.api.store.read();
        let events = state.history().after(self.target.number, self.sent)?;
        let events = events.take(SOME).cloned().collect();
        Ok((events, state.revision))
    }

    fn write_event(&mut self, chunk: &mut Vec<u8>, event: &Event) {
        let matches = |object: &Object| self.filter.matches(&self.target, &event.key, object);
        let before = event.previous.as_deref().is_some_and(matches);
        let now = !event.deleted && matches(&event.object);
        match (before, now) {
            (false, true) => self.write(chunk, "ADDED", &event.object),
            (true, true) => self.write(chunk, "MODIFIED", &event.object),
            (true, false) if event.deleted => self.write(chunk, "DELETED", &event.object),
            (true, false) => {
                // It no longer matches: the client sees the last version that did.
                let last = event.previous.as_ref().map(|previous| previous.value());
                let last = last.unwrap_or_default();
                let gone = Object::seal(event.key.kind, last, event.object.revision);
                self.write(chunk, "DELETED", &gone);
            }
            (false, false) => {}
        }
    }

    fn write(&mut self, chunk: &mut Vec<u8>, kind: &str, object: &Object) {
        let head = format!("{{\"type\":\"{kind}\",\"object\":");
        chunk.extend_from_slice(head.as_bytes());
        match self.form {
            Form::Object => chunk.extend_from_slice(&self.target.serve(object)),
            Form::Metadata => {
                negotiate::write_metadata(&self.target.serve(object), chunk);
            }
            Form::Table { include } => {
                let metadata = json!({"resourceVersion": object.revision.to_string()});
                let objects = [self.target.serve_value(object)];
                let first = std::mem::take(&mut self.first_row);
                let table = negotiate::table(&self.target, &objects, include, &metadata, first);
                chunk.extend_from_slice(table.to_string().as_bytes());
            }
        }
        chunk.extend_from_slice(b"}\n");
    }

    fn bookmark(&self, ends_initial_events: bool) -> Vec<u8> {
        let mut metadata = json!({"resourceVersion": self.sent.to_string()});
        if ends_initial_events {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (kind, version) = match self.form {
            Form::Object | Form::Table { .. } => (self.target.kind.kind, self.target.api_version()),
            Form::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1".into()),
        };
        let object = json!({"kind": kind, "apiVersion": version, "metadata": metadata});
        line("BOOKMARK", &object)
    }

    /// The watch ends with an error event.
    fn end_with(&mut self, status: &Status) {
        self.ended = true;
        self.pending.clear();
        self.last = Some(line("ERROR", &status.to_value()));
    }
}

fn line(kind: &str, object: &Value) -> Vec<u8> {
    let mut line = json!({"type": kind, "object": object}).to_string().into_bytes();
    line.push(b'\n');
    line
}
