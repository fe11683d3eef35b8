//! One request on a socket of its own: connect, ask, read who answers, close.

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use nix::errno::Errno;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

/// What a line or datagram asks: anything that is no HTTP request.
pub(super) const QUESTION: &[u8] = b"who are you?\n";
const HTTP_QUESTION: &[u8] =
    b"GET / HTTP/1.1\r\nhost: hello\r\nuser-agent: fairlead\r\nconnection: close\r\n\r\n";
const SOURCE_QUESTION: &[u8] =
    b"GET /source HTTP/1.1\r\nhost: hello\r\nuser-agent: fairlead\r\nconnection: close\r\n\r\n";

/// How a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A TCP connection a request; a line is sent, a line is the answer.
    Tcp,
    /// As many TCP connections as requests a second, which are kept: each is asked once a second.
    TcpKept,
    /// A TCP connection a request; HTTP/1.1.
    Http,
    /// The same, and the answer is the address that the request comes from.
    HttpSource,
    /// A connected UDP socket a request.
    Udp,
    /// One unconnected UDP socket for all requests, one after the other.
    UdpUnconnected,
    /// One connected UDP socket for all requests, until it fails: then another.
    UdpConnected,
}

impl Protocol {
    /// Every one.
    pub const ALL: [Self; 7] = [
        Self::Tcp,
        Self::TcpKept,
        Self::Http,
        Self::HttpSource,
        Self::Udp,
        Self::UdpUnconnected,
        Self::UdpConnected,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::TcpKept => "tcp-kept",
            Self::Http => "http",
            Self::HttpSource => "http-source",
            Self::Udp => "udp",
            Self::UdpUnconnected => "udp-unconnected",
            Self::UdpConnected => "udp-connected",
        }
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|protocol| protocol.word() == word)
            .ok_or_else(|| format!("{word:?} is none of {}", Self::ALL.map(Self::word).join(", ")))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Who answered, and from where as the socket has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The name that the server gave.
    pub name: String,
    /// `getpeername()`, or the sender of the datagram.
    pub peer: SocketAddr,
}

/// The step at which a request failed, and how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {reason}")]
pub struct Failure {
    step: &'static str,
    reason: String,
}

impl Failure {
    pub(super) fn new(step: &'static str, reason: impl Into<String>) -> Self {
        Self { step, reason: reason.into() }
    }

    /// Names an error as errno(3) does.
    pub(super) fn at(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| match error.raw_os_error() {
            Some(errno) => Self::new(step, format!("{:?}", Errno::from_raw(errno))),
            None => Self::new(step, error.to_string()),
        }
    }
}

/// Sends one request on a socket of its own.
pub(super) async fn send(protocol: Protocol, target: SocketAddr) -> Result<Answer, Failure> {
    match protocol {
        Protocol::Tcp | Protocol::TcpKept => send_tcp(target, QUESTION, read_line).await,
        Protocol::Http => send_tcp(target, HTTP_QUESTION, read_http).await,
        Protocol::HttpSource => send_tcp(target, SOURCE_QUESTION, read_http).await,
        Protocol::Udp | Protocol::UdpUnconnected | Protocol::UdpConnected => {
            let socket = connected(target).await?;
            send_connected(&socket).await
        }
    }
}

/// A UDP socket connected to `target`.
pub(super) async fn connected(target: SocketAddr) -> Result<UdpSocket, Failure> {
    let socket = unconnected(target).await?;
    socket.connect(target).await.map_err(Failure::at("connect"))?;
    Ok(socket)
}

/// A UDP socket of `target`'s family.
pub(super) async fn unconnected(target: SocketAddr) -> Result<UdpSocket, Failure> {
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    UdpSocket::bind(any).await.map_err(Failure::at("bind"))
}

/// Question and answer on a connected UDP socket.
pub(super) async fn send_connected(socket: &UdpSocket) -> Result<Answer, Failure> {
    let mut answer = [0; 512];
    socket.send(QUESTION).await.map_err(Failure::at("send"))?;
    let n_read = socket.recv(&mut answer).await.map_err(Failure::at("recv"))?;
    let peer = socket.peer_addr().map_err(Failure::at("getpeername"))?;
    Ok(Answer { name: name_in(answer.get(..n_read).unwrap_or_default()), peer })
}

/// Question and answer on an unconnected UDP socket.
pub(super) async fn send_unconnected(
    socket: &UdpSocket,
    target: SocketAddr,
) -> Result<Answer, Failure> {
    let mut answer = [0; 512];
    socket.send_to(QUESTION, target).await.map_err(Failure::at("sendto"))?;
    let (n_read, peer) = socket.recv_from(&mut answer).await.map_err(Failure::at("recvfrom"))?;
    Ok(Answer { name: name_in(answer.get(..n_read).unwrap_or_default()), peer })
}

async fn send_tcp(
    target: SocketAddr,
    question: &[u8],
    read: impl AsyncFnOnce(&mut TcpStream) -> io::Result<String>,
) -> Result<Answer, Failure> {
    let mut stream = opened(target).await?;
    ask(&mut stream, question, read).await
}

/// A TCP connection to `target`.
pub(super) async fn opened(target: SocketAddr) -> Result<TcpStream, Failure> {
    TcpStream::connect(target).await.map_err(Failure::at("connect"))
}

/// A line there and one back on a connection that goes on.
pub(super) async fn send_kept(stream: &mut TcpStream) -> Result<Answer, Failure> {
    ask(stream, QUESTION, read_line).await
}

async fn ask(
    stream: &mut TcpStream,
    question: &[u8],
    read: impl AsyncFnOnce(&mut TcpStream) -> io::Result<String>,
) -> Result<Answer, Failure> {
    let peer = stream.peer_addr().map_err(Failure::at("getpeername"))?;
    stream.write_all(question).await.map_err(Failure::at("write"))?;
    let name = read(stream).await.map_err(Failure::at("read"))?;
    if name.is_empty() {
        return Err(Failure::new("read", "closed without an answer"));
    }
    Ok(Answer { name, peer })
}

/// Up to the end of the line: more is not sent.
async fn read_line(stream: &mut TcpStream) -> io::Result<String> {
    let mut answer = Vec::new();
    let mut buffer = [0; 512];
    while !answer.ends_with(b"\n") {
        let n_read = stream.read(&mut buffer).await?;
        if n_read == 0 {
            return Ok(String::new());
        }
        answer.extend_from_slice(buffer.get(..n_read).unwrap_or_default());
    }
    Ok(name_in(&answer))
}

/// The body of a response that ends with the connection.
async fn read_http(stream: &mut TcpStream) -> io::Result<String> {
    let mut answer = Vec::new();
    stream.take(64 * 1024).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return Ok(String::new()) };
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(io::Error::other(head.lines().next().unwrap_or_default().to_owned()));
    }
    Ok(name_in(body.as_bytes()))
}

fn name_in(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).trim_end().to_owned()
}
