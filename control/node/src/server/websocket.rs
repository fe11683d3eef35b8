//! WebSocket as kubectl speaks it from 1.31 on: exec's streams as channels of one connection, and
//! port-forward's as SPDY inside of one.

use std::collections::HashMap;
use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, header};
use hyper::body::Bytes;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::spdy::{Connection, Frame, Sender, Stream};

/// What is within a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Within {
    /// These streams, each on its channel.
    Channels(Vec<&'static str>),
    /// A SPDY connection.
    Spdy,
}

/// Streams by their channels' numbers: a message's first byte.
const CHANNELS: [&str; 5] = ["stdin", "stdout", "stderr", "error", "resize"];
/// The channel of how it ended, which is the last word.
const ERROR: u32 = 3;
/// Says of another channel that nothing more comes on it (protocol 5).
const CLOSE: u8 = 255;
/// What RFC 6455 §1.3 adds to a client's key.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Messages and chunks on their way.
const QUEUE: usize = 32;
/// A larger message than this is no client of ours.
const MAX_MESSAGE: usize = 1 << 20;
const CHUNK: usize = 16 * 1024;

type Socket<T> = WebSocketStream<T>;

/// What answers a client's key.
pub(super) fn accept_key(headers: &HeaderMap) -> Option<HeaderValue> {
    let is_known = headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|one| one == "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| is_known)?;
    let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key.as_bytes());
    digest.update(GUID);
    HeaderValue::try_from(STANDARD.encode(digest.finish())).ok()
}

async fn server<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> Socket<T> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Without a status, clients take the end for an error.
fn normal_end() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

/// Carries streams as channels until the client has gone or been told how it ended.
pub(super) async fn carry_channels<T, F>(
    io: T,
    names: &[&'static str],
    serve: impl FnOnce(mpsc::Receiver<Stream>) -> F,
) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()>,
{
    let (writes, reads) = server(io).await.split();
    let (opened, streams) = mpsc::channel(CHANNELS.len());
    let (frames, queued) = mpsc::channel(QUEUE);
    let mut incoming = HashMap::new();
    for (channel, name) in (0_u32..).zip(CHANNELS) {
        if !names.contains(&name) {
            continue;
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        incoming.insert(channel, sender);
        let stream = Stream {
            headers: vec![("streamtype".to_owned(), name.to_owned())],
            incoming: receiver,
            outgoing: Sender::new(channel, frames.clone()),
        };
        opened.send(stream).await.map_err(io::Error::other)?;
    }
    let carried = async move {
        // As long as it is there, the client is.
        let _opened = opened;
        tokio::select! {
            read = read_channels(reads, incoming) => read,
            written = write_channels(writes, queued) => written,
        }
    };
    tokio::join!(carried, serve(streams)).0
}

async fn read_channels<T: AsyncRead + AsyncWrite + Unpin>(
    mut socket: SplitStream<Socket<T>>,
    mut streams: HashMap<u32, mpsc::Sender<Bytes>>,
) -> io::Result<()> {
    while let Some(message) = socket.next().await {
        let bytes = match message.map_err(io::Error::other)? {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            Message::Close(_) => return Ok(()),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
        };
        let (closed, channel, rest) = match *bytes {
            [CLOSE, channel, ..] => (true, channel, Bytes::new()),
            [channel, ..] => (false, channel, bytes.slice(1..)),
            [] => continue,
        };
        let channel = u32::from(channel);
        // One that nobody reads any more is no reason to end the others.
        let unread = match streams.get(&channel) {
            Some(stream) if !rest.is_empty() => stream.send(rest).await.is_err(),
            _ => false,
        };
        if closed || unread {
            streams.remove(&channel);
        }
    }
    Ok(())
}

async fn write_channels<T: AsyncRead + AsyncWrite + Unpin>(
    mut socket: SplitSink<Socket<T>, Message>,
    mut frames: mpsc::Receiver<Frame>,
) -> io::Result<()> {
    // A client may wait for a first word to know that the connection is made.
    let first = u8::try_from(ERROR).unwrap_or(CLOSE);
    socket.send(Message::Binary(vec![first].into())).await.map_err(io::Error::other)?;
    while let Some(frame) = frames.recv().await {
        let Frame::Data { id, bytes, is_last } = frame else { continue };
        if !bytes.is_empty() {
            let mut message = Vec::with_capacity(1 + bytes.len());
            message.push(u8::try_from(id).unwrap_or(CLOSE));
            message.extend_from_slice(&bytes);
            socket.send(Message::Binary(message.into())).await.map_err(io::Error::other)?;
        }
        if is_last && id == ERROR {
            return socket.send(normal_end()).await.map_err(io::Error::other);
        }
    }
    Ok(())
}

/// Carries a SPDY connection inside of a WebSocket until the client has gone.
pub(super) async fn carry_spdy<T, F>(
    io: T,
    serve: impl FnOnce(mpsc::Receiver<Stream>) -> F,
) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()>,
{
    let (mut writes, mut reads) = server(io).await.split();
    let (inner, outer) = duplex(CHUNK);
    let (mut from, mut to) = tokio::io::split(outer);
    let (connection, streams) = Connection::new(inner);
    let inward = async {
        while let Some(message) = reads.next().await {
            match message.map_err(io::Error::other)? {
                Message::Binary(bytes) => to.write_all(&bytes).await?,
                Message::Close(_) => break,
                _ => {}
            }
        }
        Ok(())
    };
    let outward = async {
        let mut chunk = vec![0; CHUNK];
        loop {
            let n = from.read(&mut chunk).await?;
            if n == 0 {
                return writes.send(normal_end()).await.map_err(io::Error::other);
            }
            let bytes = Bytes::copy_from_slice(chunk.get(..n).unwrap_or_default());
            writes.send(Message::Binary(bytes)).await.map_err(io::Error::other)?;
        }
    };
    let carried = async {
        tokio::select! {
            ended = inward => ended,
            ended = outward => ended,
            ended = connection.run() => ended,
        }
    };
    tokio::join!(carried, serve(streams)).0
}

#[cfg(test)]
mod tests;
