//! A container's log: all of it, its end, or as it grows.

use std::collections::VecDeque;
use std::io::{self, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ContainerStatus;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncSeekExt, BufReader};
use tokio::sync::mpsc;

use super::{Asked, Body, say};
use crate::log::Record;
use crate::worker::Node;

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Lines on their way to a slow reader.
const QUEUE: usize = 256;

/// Which lines are wanted, and how.
#[derive(Clone, Debug, Default)]
struct Wanted {
    follow: bool,
    timestamps: bool,
    tail: Option<usize>,
    since: Option<Timestamp>,
    limit: Option<u64>,
}

pub(super) async fn answer(node: &Arc<Node>, asked: &Asked) -> Response<Body> {
    let Some(attempt) = attempt(asked) else {
        let name = asked.pod.metadata.name.as_deref().unwrap_or_default();
        let container = &asked.container;
        let what =
            if asked.is_true("previous") { "previous terminated container" } else { "container" };
        let text = format!("{what} {container:?} in pod {name:?} is waiting to start or not found");
        return say(StatusCode::BAD_REQUEST, &text);
    };
    let wanted = match Wanted::read(asked) {
        Ok(wanted) => wanted,
        Err(why) => return say(StatusCode::BAD_REQUEST, &why),
    };
    let path = node.logs_dir(&asked.pod).join(&asked.container).join(format!("{attempt}.log"));
    if let Err(error) = tokio::fs::metadata(&path).await {
        let text = format!("failed to open log file {}: {error}", path.display());
        return say(StatusCode::NOT_FOUND, &text);
    }
    let id = node.id(&asked.pod, &asked.container, attempt);
    let ended = node.runtime.ended(&id);
    let (lines, received) = mpsc::channel(QUEUE);
    let task = async move {
        let copy = copy(path, wanted, &lines, ended);
        if let Err(error) = copy.await {
            tracing::debug!(%error, "reading a log failed");
        }
    };
    let body = StreamBody::new(stream(received, task));
    let mut response = Response::new(BodyExt::boxed_unsync(body));
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// Frames, for as long as the task that makes them goes on; both end with the reader.
fn stream(
    mut received: mpsc::Receiver<Bytes>,
    task: impl Future<Output = ()> + Send + 'static,
) -> impl futures::Stream<Item = io::Result<Frame<Bytes>>> + Send {
    let mut task = Box::pin(task);
    let mut working = true;
    futures::stream::poll_fn(move |context| {
        if working && task.as_mut().poll(context).is_ready() {
            working = false;
        }
        received.poll_recv(context).map(|frame| frame.map(|bytes| Ok(Frame::data(bytes))))
    })
}

/// Tells what an attempt says from now on, until it has ended.
pub(super) fn follow(
    node: &Arc<Node>,
    asked: &Asked,
    attempt: u32,
    said: mpsc::Sender<Bytes>,
) -> impl Future<Output = ()> + Send + 'static {
    let path = node.logs_dir(&asked.pod).join(&asked.container).join(format!("{attempt}.log"));
    let ended = node.runtime.ended(&node.id(&asked.pod, &asked.container, attempt));
    let wanted = Wanted { follow: true, tail: Some(0), ..Wanted::default() };
    async move {
        if let Err(error) = copy(path, wanted, &said, ended).await {
            tracing::debug!(%error, "reading a log failed");
        }
    }
}

/// Which attempt's log is asked for, by what the status says.
fn attempt(asked: &Asked) -> Option<u32> {
    let status = asked.pod.status.as_ref()?;
    let inits = status.init_container_statuses.iter().flatten();
    let all = inits.chain(status.container_statuses.iter().flatten());
    let mut all = all.chain(status.ephemeral_container_statuses.iter().flatten());
    let one: &ContainerStatus = all.find(|one| one.name == asked.container)?;
    let current = u32::try_from(one.restart_count).ok()?;
    if asked.is_true("previous") { current.checked_sub(1) } else { Some(current) }
}

impl Wanted {
    fn read(asked: &Asked) -> Result<Self, String> {
        let number = |name: &str| -> Result<Option<u64>, String> {
            let Some(text) = asked.get(name) else { return Ok(None) };
            text.parse().map(Some).map_err(|error| format!("{name}: {text:?}: {error}"))
        };
        let seconds = number("sinceSeconds")?;
        let since = match (seconds, asked.get("sinceTime")) {
            (Some(seconds), _) => {
                let age = i64::try_from(seconds).unwrap_or(i64::MAX);
                Timestamp::now().checked_sub(SignedDuration::from_secs(age)).ok()
            }
            (None, Some(text)) => {
                Some(text.parse().map_err(|error| format!("sinceTime: {text:?}: {error}"))?)
            }
            (None, None) => None,
        };
        Ok(Self {
            follow: asked.is_true("follow"),
            timestamps: asked.is_true("timestamps"),
            tail: number("tailLines")?.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            limit: number("limitBytes")?,
            since,
        })
    }
}

/// Sends the lines that are wanted, until the container has ended or nobody reads any more.
async fn copy(
    path: PathBuf,
    wanted: Wanted,
    lines: &mpsc::Sender<Bytes>,
    ended: futures::future::BoxFuture<'static, crate::runtime::Ended>,
) -> io::Result<()> {
    let mut left = wanted.limit.unwrap_or(u64::MAX);
    let mut reader = BufReader::new(File::open(&path).await?);
    if let Some(tail) = wanted.tail {
        let start = tail_start(&mut reader, tail, wanted.since).await?;
        reader.seek(SeekFrom::Start(start)).await?;
    }
    let mut ended = ended;
    let mut is_over = !wanted.follow;
    let mut line = Vec::new();
    loop {
        let n = reader.read_until(b'\n', &mut line).await?;
        if line.ends_with(b"\n") {
            if let Some(text) = render(&line, &wanted) {
                let take = usize::try_from(left).unwrap_or(usize::MAX).min(text.len());
                left -= take as u64;
                let shown = text.get(..take).unwrap_or_default();
                if lines.send(Bytes::copy_from_slice(shown)).await.is_err() || left == 0 {
                    return Ok(());
                }
            }
            line.clear();
        } else if n == 0 {
            if is_over {
                return Ok(());
            }
            // What it said last may be written after this look: one more follows its end.
            tokio::select! {
                _ = &mut ended => is_over = true,
                () = tokio::time::sleep(LOOK) => {}
                () = lines.closed() => return Ok(()),
            }
            if was_rotated(&path, &reader).await {
                reader = BufReader::new(File::open(&path).await?);
            }
        }
    }
}

async fn was_rotated(path: &PathBuf, reader: &BufReader<File>) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (now, open) = (tokio::fs::metadata(path).await, reader.get_ref().metadata().await);
    matches!((now, open), (Ok(now), Ok(open)) if now.ino() != open.ino())
}

/// Where the last so many lines begin.
async fn tail_start(
    reader: &mut BufReader<File>,
    tail: usize,
    since: Option<Timestamp>,
) -> io::Result<u64> {
    let (mut starts, mut position) = (VecDeque::new(), 0_u64);
    let mut line = Vec::new();
    let mut continued = false;
    loop {
        line.clear();
        let n = reader.read_until(b'\n', &mut line).await?;
        if n == 0 {
            break;
        }
        let record = Record::parse(&line);
        let late = record.is_some_and(|one| since.is_none_or(|since| one.time >= since));
        if late && !continued {
            starts.push_back(position);
            if starts.len() > tail {
                starts.pop_front();
            }
        }
        continued = record.is_some_and(|one| one.is_part);
        position += n as u64;
    }
    Ok(starts.front().copied().filter(|_| tail > 0).unwrap_or(position))
}

fn render(line: &[u8], wanted: &Wanted) -> Option<Vec<u8>> {
    let record = Record::parse(line)?;
    if wanted.since.is_some_and(|since| record.time < since) {
        return None;
    }
    let mut text = Vec::with_capacity(line.len());
    if wanted.timestamps {
        text.extend_from_slice(record.time_text.as_bytes());
        text.push(b' ');
    }
    text.extend_from_slice(record.text);
    if !record.is_part {
        text.push(b'\n');
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const LOG: &str = "2026-11-21T07:00:00.000000000Z stdout F one\n\
        2026-11-21T07:00:01.000000000Z stdout P tw\n\
        2026-11-21T07:00:01.000000000Z stdout F o\n\
        2026-11-21T07:00:02.000000000Z stderr F three\n";

    async fn read(wanted: Wanted) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let (lines, mut received) = mpsc::channel(16);
        let ended = std::future::pending().boxed();
        copy(path, wanted, &lines, ended).await.unwrap();
        drop(lines);
        let mut text = Vec::new();
        while let Some(bytes) = received.recv().await {
            text.extend_from_slice(&bytes);
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn lines_are_those_that_are_wanted() {
        assert_eq!(read(Wanted::default()).await, "one\ntwo\nthree\n");
        assert_eq!(read(Wanted { tail: Some(2), ..Wanted::default() }).await, "two\nthree\n");
        assert_eq!(read(Wanted { tail: Some(0), ..Wanted::default() }).await, "");
        assert_eq!(read(Wanted { limit: Some(5), ..Wanted::default() }).await, "one\nt");
        let since = "2026-11-21T07:00:02Z".parse().ok();
        assert_eq!(read(Wanted { since, ..Wanted::default() }).await, "three\n");
        let text = read(Wanted { timestamps: true, tail: Some(1), ..Wanted::default() }).await;
        assert_eq!(text, "2026-11-21T07:00:02.000000000Z three\n");
    }
}
