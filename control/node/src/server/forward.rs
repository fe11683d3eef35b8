//! `port-forward`: connections to ports inside a pod, over SPDY, by itself or inside of a WebSocket.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use http::{Request, Response, StatusCode};
use hyper::body::{Bytes, Incoming};
use sandbox::netns::Netns;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::spdy::{Sender, Stream};
use super::upgrade::Protocols;
use super::websocket::Within;
use super::{Asked, Body, say, upgrade};
use crate::worker::Node;

const SPDY: [&str; 1] = ["portforward.k8s.io"];
const WEBSOCKET: [&str; 1] = ["SPDY/3.1+portforward.k8s.io"];
const CHUNK: usize = 16 * 1024;

/// Answers `portForward`.
pub(super) fn answer(
    node: &Arc<Node>,
    asked: &Asked,
    request: Request<Incoming>,
) -> Response<Body> {
    let uid = asked.pod.metadata.uid.as_deref().unwrap_or_default();
    let Some(namespace) = node.runtime.network_namespace(uid) else {
        return say(StatusCode::NOT_FOUND, "the pod does not run");
    };
    let protocols = Protocols { spdy: &SPDY, websocket: &WEBSOCKET, within: Within::Spdy };
    upgrade::accept(&asked.sessions, request, protocols, move |mut streams| async move {
        let mut halves: HashMap<String, (Option<Stream>, Option<Stream>)> = HashMap::new();
        let mut connections = JoinSet::new();
        // Each connection is two streams of one request id.
        while let Some(stream) = streams.recv().await {
            while connections.try_join_next().is_some() {}
            let request = header(&stream, "requestid").to_owned();
            let pair = halves.entry(request.clone()).or_default();
            match header(&stream, "streamtype") {
                "error" => pair.0 = Some(stream),
                "data" => pair.1 = Some(stream),
                _ => continue,
            }
            if let (Some(_), Some(_)) = pair
                && let Some((Some(error), Some(data))) = halves.remove(&request)
            {
                connections.spawn(forward(namespace.clone(), error, data));
            }
        }
    })
}

fn header<'a>(stream: &'a Stream, name: &str) -> &'a str {
    let found = stream.headers.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.as_str()).unwrap_or_default()
}

async fn forward(namespace: std::path::PathBuf, error: Stream, data: Stream) {
    let port = header(&data, "port").parse().unwrap_or(0);
    let carried = match connect(&namespace, port).await {
        Ok(stream) => carry(stream, data).await,
        Err(error) => {
            data.outgoing.close().await;
            Err(error)
        }
    };
    if let Err(why) = carried {
        let text = format!("failed to connect to localhost:{port} inside the pod: {why}");
        if error.outgoing.send(text.into()).await.is_err() {
            return;
        }
    }
    error.outgoing.close().await;
}

/// Connects inside the pod: a socket belongs to the namespace it was opened in.
async fn connect(namespace: &Path, port: u16) -> io::Result<TcpStream> {
    let namespace = namespace.to_owned();
    let connected = tokio::task::spawn_blocking(move || {
        Netns::open(&namespace)?.run(|| {
            let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
            std::net::TcpStream::connect(v4).or_else(|_| std::net::TcpStream::connect(v6))
        })?
    });
    let stream = connected.await.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

async fn carry(mut stream: TcpStream, data: Stream) -> io::Result<()> {
    let (mut reads, mut writes) = stream.split();
    let Stream { mut incoming, outgoing, .. } = data;
    let there = async {
        while let Some(bytes) = incoming.recv().await {
            writes.write_all(&bytes).await?;
        }
        writes.shutdown().await
    };
    let (back, there) = tokio::join!(answer_back(&mut reads, &outgoing), there);
    back.and(there)
}

async fn answer_back(
    reads: &mut (impl tokio::io::AsyncRead + Unpin),
    outgoing: &Sender,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = match reads.read(&mut chunk).await {
            Ok(n) if n > 0 => n,
            ended => {
                outgoing.close().await;
                return ended.map(|_| ());
            }
        };
        let bytes = Bytes::copy_from_slice(chunk.get(..n).unwrap_or_default());
        outgoing.send(bytes).await?;
    }
}
