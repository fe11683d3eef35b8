//! SPDY/3.1 as kubectl speaks it for exec, attach and port-forward: streams over one connection.
//!
//! Neither side limits the flow of a stream: as upstream's library, which ignores window updates.

mod frame;

use std::collections::HashMap;
use std::io;

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::mpsc;

use frame::Decoder;
pub(super) use frame::{Frame, Headers};

/// Chunks on their way to a slow reader of a stream, and frames on their way to a slow client.
const QUEUE: usize = 32;

/// A stream that the client has opened.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) headers: Headers,
    /// What the client sends; ends when it has said all.
    pub(super) incoming: mpsc::Receiver<Bytes>,
    pub(super) outgoing: Sender,
}

/// The way back to the client, on one stream.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    id: u32,
    frames: mpsc::Sender<Frame>,
}

impl Sender {
    /// The way back on one of a connection's streams, among its frames.
    pub(super) fn new(id: u32, frames: mpsc::Sender<Frame>) -> Self {
        Self { id, frames }
    }

    /// Sends; an error means that the connection is gone.
    pub(super) async fn send(&self, bytes: Bytes) -> io::Result<()> {
        let frame = Frame::Data { id: self.id, bytes, is_last: false };
        let sent = self.frames.send(frame).await;
        sent.map_err(io::Error::other)
    }

    /// Says that nothing more comes.
    pub(super) async fn close(&self) {
        let frame = Frame::Data { id: self.id, bytes: Bytes::new(), is_last: true };
        if self.frames.send(frame).await.is_err() {
            tracing::trace!("a stream's connection is gone already");
        }
    }
}

/// A connection: give it to [`run`](Connection::run), and take streams from the receiver.
#[derive(Debug)]
pub(super) struct Connection<T> {
    io: T,
    opened: mpsc::Sender<Stream>,
}

impl<T: AsyncRead + AsyncWrite> Connection<T> {
    pub(super) fn new(io: T) -> (Self, mpsc::Receiver<Stream>) {
        let (opened, streams) = mpsc::channel(QUEUE);
        (Self { io, opened }, streams)
    }

    /// Carries frames to and fro until the client has gone.
    pub(super) async fn run(self) -> io::Result<()> {
        let (reading, writing) = split(self.io);
        let (frames, queued) = mpsc::channel(QUEUE);
        tokio::select! {
            read = read(reading, frames, self.opened) => read,
            written = write(writing, queued) => written,
        }
    }
}

async fn write<T: AsyncWrite>(
    mut io: WriteHalf<T>,
    mut frames: mpsc::Receiver<Frame>,
) -> io::Result<()> {
    let mut encoder = frame::Encoder::default();
    while let Some(frame) = frames.recv().await {
        io.write_all(&encoder.encode(&frame)?).await?;
        io.flush().await?;
    }
    Ok(())
}

async fn read<T: AsyncRead>(
    mut io: ReadHalf<T>,
    frames: mpsc::Sender<Frame>,
    opened: mpsc::Sender<Stream>,
) -> io::Result<()> {
    let mut decoder = Decoder::default();
    let mut streams: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    let gone = io::Error::other::<mpsc::error::SendError<Frame>>;
    loop {
        let mut head = [0; 8];
        if let Err(error) = io.read_exact(&mut head).await {
            let closed = error.kind() == io::ErrorKind::UnexpectedEof;
            return if closed { Ok(()) } else { Err(error) };
        }
        let mut body = vec![0; frame::length(head)?];
        io.read_exact(&mut body).await?;
        match decoder.decode(head, body)? {
            Frame::Open { id, headers, is_last } => {
                let (sender, incoming) = mpsc::channel(QUEUE);
                if !is_last {
                    streams.insert(id, sender);
                }
                frames.send(Frame::Accept { id }).await.map_err(gone)?;
                let outgoing = Sender::new(id, frames.clone());
                let stream = Stream { headers, incoming, outgoing };
                if opened.send(stream).await.is_err() {
                    return Ok(());
                }
            }
            Frame::Data { id, bytes, is_last } => {
                // One that nobody reads any more is no reason to end the others.
                let unread = match streams.get(&id) {
                    Some(stream) if !bytes.is_empty() => stream.send(bytes).await.is_err(),
                    _ => false,
                };
                if is_last || unread {
                    streams.remove(&id);
                }
            }
            Frame::Reset { id } => {
                streams.remove(&id);
            }
            Frame::Ping { id } => frames.send(Frame::Ping { id }).await.map_err(gone)?,
            Frame::GoAway => return Ok(()),
            Frame::Accept { .. } | Frame::Other => {}
        }
    }
}
