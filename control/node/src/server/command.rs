//! `exec` and `attach`: a command's streams, or a running container's, over SPDY or WebSocket.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::{Bytes, Incoming};
use serde_json::{Value, json};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::spdy::{Sender, Stream};
use super::upgrade::Protocols;
use super::websocket::Within;
use super::{Asked, Body, elsewhere, logs, say, upgrade};
use crate::runtime::{ContainerId, Conversation, Exec, Session};
use crate::worker::Node;

/// The protocols of streams, the newest first; they differ in what is asked for here by nothing
/// but the last word, and by how a WebSocket says that there is no more input.
const SPDY: [&str; 2] = ["v4.channel.k8s.io", "v3.channel.k8s.io"];
const WEBSOCKET: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// How long a client may take to open its streams.
const OPEN_WITHIN: Duration = Duration::from_secs(30);
const CHUNK: usize = 16 * 1024;

/// Answers `exec`.
pub(super) async fn exec(
    node: &Arc<Node>,
    asked: &Asked,
    request: Request<Incoming>,
) -> Response<Body> {
    let Some(id) = running(node, asked) else { return not_running(asked) };
    let all = |name: &str| {
        let named = asked.query.iter().filter(|(key, _)| key == name);
        named.map(|(_, value)| value.clone()).collect::<Vec<String>>()
    };
    let command = all("command");
    if command.is_empty() {
        return say(
            StatusCode::BAD_REQUEST,
            "you must specify at least 1 command for the container",
        );
    }
    match node.runtime.conversation(&id, &conversation(asked, Some(&command))).await {
        Ok(None) => {}
        Ok(Some(uri)) => return elsewhere::answer(&asked.sessions, request, &uri).await,
        Err(error) => return say(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
    let exec = Exec { command, stdin: asked.is_true("stdin"), tty: asked.is_true("tty") };
    let (node, expected) = (Arc::clone(node), expected(asked));
    upgrade::accept(&asked.sessions, request, protocols(&expected), move |streams| async move {
        let Some(mut streams) = gather(streams, &expected).await else { return };
        let outcome = match node.exec(id, exec).await {
            Ok(session) => converse(session, &mut streams).await,
            Err(why) => Err(why),
        };
        streams.finish(&outcome).await;
    })
}

/// Answers `attach`: what the container says from now on, and what is said to it.
pub(super) async fn attach(
    node: &Arc<Node>,
    asked: &Asked,
    request: Request<Incoming>,
) -> Response<Body> {
    let Some(id) = running(node, asked) else { return not_running(asked) };
    match node.runtime.conversation(&id, &conversation(asked, None)).await {
        Ok(None) => {}
        Ok(Some(uri)) => return elsewhere::answer(&asked.sessions, request, &uri).await,
        Err(error) => return say(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
    let input = node.runtime.input(&id);
    let (said, lines) = mpsc::channel(64);
    let log = logs::follow(node, asked, id.attempt, said);
    let expected = expected(asked);
    upgrade::accept(&asked.sessions, request, protocols(&expected), move |streams| async move {
        let Some(mut streams) = gather(streams, &expected).await else { return };
        let out = streams.take("stdout").map(|stream| stream.outgoing);
        let stdin = streams.take("stdin");
        let typed = async {
            if let Some(stream) = stdin
                && let Ok(file) = File::options().append(true).open(input).await
            {
                write_to(stream.incoming, file).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = show(lines, out) => {}
            () = log => {}
            () = typed => {}
        }
        streams.finish(&Ok(0)).await;
    })
}

async fn show(mut lines: mpsc::Receiver<Bytes>, out: Option<Sender>) {
    while let Some(line) = lines.recv().await {
        if let Some(out) = &out
            && out.send(line).await.is_err()
        {
            return;
        }
    }
}

fn running(node: &Node, asked: &Asked) -> Option<ContainerId> {
    let status = asked.pod.status.as_ref()?;
    let inits = status.init_container_statuses.iter().flatten();
    let all = inits.chain(status.container_statuses.iter().flatten());
    let mut all = all.chain(status.ephemeral_container_statuses.iter().flatten());
    let one = all.find(|one| one.name == asked.container)?;
    one.state.as_ref()?.running.as_ref()?;
    let attempt = u32::try_from(one.restart_count).ok()?;
    Some(node.id(&asked.pod, &asked.container, attempt))
}

/// What a client asks for, as a runtime is asked in turn.
fn conversation(asked: &Asked, command: Option<&[String]>) -> Conversation {
    let tty = asked.is_true("tty");
    Conversation {
        command: command.map(<[String]>::to_vec),
        stdin: asked.is_true("stdin"),
        stdout: asked.is_true("stdout"),
        stderr: asked.is_true("stderr") && !tty,
        tty,
    }
}

fn not_running(asked: &Asked) -> Response<Body> {
    let text = format!("container not found ({:?})", asked.container);
    say(StatusCode::NOT_FOUND, &text)
}

/// The streams that a client opens before anything is done.
fn expected(asked: &Asked) -> Vec<&'static str> {
    let tty = asked.is_true("tty");
    let mut all = vec!["error"];
    all.extend(asked.is_true("stdin").then_some("stdin"));
    all.extend(asked.is_true("stdout").then_some("stdout"));
    all.extend((asked.is_true("stderr") && !tty).then_some("stderr"));
    all.extend(tty.then_some("resize"));
    all
}

fn protocols(expected: &[&'static str]) -> Protocols {
    let within = Within::Channels(expected.to_vec());
    Protocols { spdy: &SPDY, websocket: &WEBSOCKET, within }
}

/// A client's streams, by what they are for.
struct Streams {
    all: HashMap<String, Stream>,
    /// Kept, so that the connection lives.
    more: mpsc::Receiver<Stream>,
}

async fn gather(mut opened: mpsc::Receiver<Stream>, expected: &[&str]) -> Option<Streams> {
    let mut all = HashMap::new();
    let gathered = async {
        while !expected.iter().all(|form| all.contains_key(*form)) {
            let Some(stream) = opened.recv().await else { return false };
            let form = stream.headers.iter().find(|(name, _)| name == "streamtype");
            let form = form.map(|(_, value)| value.clone()).unwrap_or_default();
            all.insert(form, stream);
        }
        true
    };
    let whole = tokio::time::timeout(OPEN_WITHIN, gathered).await;
    matches!(whole, Ok(true)).then_some(Streams { all, more: opened })
}

impl Streams {
    fn take(&mut self, form: &str) -> Option<Stream> {
        self.all.remove(form)
    }

    /// Says how it ended, and that this is all.
    async fn finish(mut self, outcome: &Result<i32, String>) {
        let Some(error) = self.take("error") else { return };
        let text = verdict(outcome).to_string();
        if error.outgoing.send(text.into()).await.is_ok() {
            error.outgoing.close().await;
        }
        for stream in self.all.values() {
            stream.outgoing.close().await;
        }
        // The client closes the connection when it has read all that.
        let gone = async { while self.more.recv().await.is_some() {} };
        if tokio::time::timeout(OPEN_WITHIN, gone).await.is_err() {
            tracing::debug!("a client of exec stays after the end");
        }
    }
}

/// The last word of a session, as the API's protocol version 4 has it.
fn verdict(outcome: &Result<i32, String>) -> Value {
    match outcome {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(why) => json!({
            "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
            "message": format!("error executing command in container: {why}"),
        }),
    }
}

/// Carries a command's streams until it ends; gives its exit code.
async fn converse(mut session: Session, streams: &mut Streams) -> Result<i32, String> {
    let text = |error: io::Error| error.to_string();
    let stdin = streams.take("stdin").map(|stream| stream.incoming);
    let out = streams.take("stdout").map(|stream| stream.outgoing);
    let err = streams.take("stderr").map(|stream| stream.outgoing);
    let resize = streams.take("resize").map(|stream| stream.incoming);
    let code = if let Some(terminal) = session.terminal.take() {
        let copy = |fd: &OwnedFd| fd.try_clone().map(|fd| File::from_std(fd.into()));
        let (reads, writes) = (copy(&terminal).map_err(text)?, copy(&terminal).map_err(text)?);
        tokio::select! {
            // A terminal's reader ends with the last of its programs.
            status = async {
                read_from(reads, out.clone()).await;
                session.child.wait().await
            } => status,
            () = typed(stdin, Some(writes)) => session.child.wait().await,
            () = sized(resize, &terminal) => session.child.wait().await,
        }
    } else {
        let (stdout, stderr) = (session.child.stdout.take(), session.child.stderr.take());
        let input = session.child.stdin.take();
        let said = async {
            tokio::join!(maybe_read(stdout, out.clone()), maybe_read(stderr, err.clone()));
            session.child.wait().await
        };
        tokio::select! {
            status = said => status,
            () = typed(stdin, input) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    };
    for stream in [out, err].into_iter().flatten() {
        stream.close().await;
    }
    Ok(code.map_err(text)?.code().unwrap_or(137))
}

/// Never ends: that nothing more is typed is no reason to stop listening.
async fn typed(stdin: Option<mpsc::Receiver<Bytes>>, to: Option<impl AsyncWrite + Unpin>) {
    if let (Some(stdin), Some(to)) = (stdin, to) {
        write_to(stdin, to).await;
    }
    std::future::pending::<()>().await;
}

async fn write_to(mut from: mpsc::Receiver<Bytes>, mut to: impl AsyncWrite + Unpin) {
    while let Some(bytes) = from.recv().await {
        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}

async fn maybe_read(from: Option<impl AsyncRead + Unpin>, to: Option<Sender>) {
    if let Some(from) = from {
        read_from(from, to).await;
    }
}

async fn read_from(mut from: impl AsyncRead + Unpin, to: Option<Sender>) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = match from.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(n) => n,
        };
        let bytes = Bytes::copy_from_slice(chunk.get(..n).unwrap_or_default());
        if let Some(to) = &to
            && to.send(bytes).await.is_err()
        {
            return;
        }
    }
}

/// Follows the size of the client's window. Never ends.
async fn sized(resize: Option<mpsc::Receiver<Bytes>>, terminal: &OwnedFd) {
    if let Some(mut resize) = resize {
        while let Some(bytes) = resize.recv().await {
            let Ok(size) = serde_json::from_slice::<Value>(&bytes) else { continue };
            let side = |name: &str| {
                size.get(name).and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok())
            };
            let (Some(columns), Some(rows)) = (side("Width"), side("Height")) else { continue };
            let size = rustix::termios::Winsize {
                ws_row: rows,
                ws_col: columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            if let Err(error) = rustix::termios::tcsetwinsize(terminal, size) {
                tracing::debug!(%error, "a terminal keeps its size");
            }
        }
    }
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_tells_the_exit_code() {
        assert_eq!(verdict(&Ok(0))["status"], "Success");
        let failed = verdict(&Ok(3));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0]["message"], "3");
        assert_eq!(verdict(&Err("no".into()))["reason"], "InternalError");
    }
}
