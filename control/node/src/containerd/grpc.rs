//! Unary gRPC over a Unix socket: a message there, a message back.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// How long an ordinary call may take, as kubelet's default has it.
const WITHIN: Duration = Duration::from_secs(120);
/// The longest answer, as kubelet's default has it.
const MAX_ANSWER: usize = 16 << 20;

/// Why a call was not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// Nobody listens there.
    #[error("connect to {socket}: {source}")]
    Connect { socket: String, source: io::Error },
    /// The connection failed, or what came over it was no answer.
    #[error("rpc error: code = Unavailable desc = {0}")]
    Broken(String),
    /// It took too long.
    #[error("rpc error: code = DeadlineExceeded desc = context deadline exceeded")]
    Late,
    /// The runtime's own refusal, in the words that such refusals have everywhere.
    #[error("rpc error: code = {} desc = {message}", name(*.code))]
    Status { code: usize, message: String },
}

impl CallError {
    /// Whether what was asked about is not there.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { code, .. } if name(*code) == "NotFound")
    }
}

impl From<CallError> for io::Error {
    fn from(error: CallError) -> Self {
        Self::other(error)
    }
}

/// gRPC's codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

fn name(code: usize) -> &'static str {
    CODES.get(code).copied().unwrap_or("Unknown")
}

/// One connection, made again when it has broken, that all calls share.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
    link: Mutex<Option<Link>>,
}

/// The way to the runtime, and the task that carries what goes along it.
#[derive(Debug)]
struct Link {
    sender: SendRequest<Full<Bytes>>,
    _carrier: JoinSet<()>,
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), link: Mutex::default() }
    }

    /// Calls a method, for as long as ordinary ones may take.
    pub(super) async fn call<Q: Message, A: Message + Default>(
        &self,
        service: &str,
        method: &str,
        asked: &Q,
    ) -> Result<A, CallError> {
        let called = self.call_patiently(service, method, asked);
        tokio::time::timeout(WITHIN, called).await.unwrap_or(Err(CallError::Late))
    }

    /// Calls a method, however long it takes. A call that nobody waits for is cancelled.
    pub(super) async fn call_patiently<Q: Message, A: Message + Default>(
        &self,
        service: &str,
        method: &str,
        asked: &Q,
    ) -> Result<A, CallError> {
        let mut sender = self.sender().await?;
        let request = Request::post(format!("http://localhost{service}/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(frame(asked)))
            .map_err(|error| CallError::Broken(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let head = answer.headers().clone();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| CallError::Broken(error.to_string()))?;
        // An answer without a body has its status among its headers.
        let none = HeaderMap::new();
        let trailers = body.trailers().unwrap_or(&none);
        let status = if head.contains_key("grpc-status") { &head } else { trailers };
        refusal(status)?;
        let bytes = body.to_bytes();
        let message = bytes.get(5..).unwrap_or_default();
        A::decode(message).map_err(|error| CallError::Broken(error.to_string()))
    }

    async fn sender(&self) -> Result<SendRequest<Full<Bytes>>, CallError> {
        let mut kept = self.link.lock().await;
        if let Some(link) = kept.as_ref().filter(|link| !link.sender.is_closed()) {
            return Ok(link.sender.clone());
        }
        let connect =
            |source| CallError::Connect { socket: self.socket.display().to_string(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(connect)?;
        let connected = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = connected.map_err(|error| broken(&error))?;
        let mut carrier = JoinSet::new();
        carrier.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the runtime broke");
            }
        });
        *kept = Some(Link { sender: sender.clone(), _carrier: carrier });
        Ok(sender)
    }
}

fn broken(error: &hyper::Error) -> CallError {
    let source = std::error::Error::source(error).map(ToString::to_string);
    CallError::Broken(source.unwrap_or_else(|| error.to_string()))
}

/// A message behind gRPC's five bytes: not compressed, so long.
fn frame(message: &impl Message) -> Bytes {
    let encoded = message.encode_to_vec();
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(encoded.len()).unwrap_or(0).to_be_bytes());
    framed.extend(encoded);
    framed.into()
}

/// What a call's last headers say went wrong, if anything did.
fn refusal(status: &HeaderMap) -> Result<(), CallError> {
    let text = |name: &str| status.get(name).map(HeaderValue::as_bytes).unwrap_or_default();
    let code = std::str::from_utf8(text("grpc-status")).ok().and_then(|code| code.parse().ok());
    match code {
        Some(0) => Ok(()),
        None => Err(CallError::Broken("the answer has no status".to_owned())),
        Some(code) => Err(CallError::Status { code, message: decode(text("grpc-message")) }),
    }
}

/// Undoes the percent encoding of a refusal's words.
fn decode(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter().copied();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits: String = rest.by_ref().take(2).map(char::from).collect();
            bytes.push(u8::from_str_radix(&digits, 16).unwrap_or(b'%'));
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::cri::VersionRequest;
    use super::*;

    #[test]
    fn a_message_has_its_length_before_it() {
        let message = VersionRequest { version: "v1".into() };
        assert_eq!(&frame(&message)[..], [0, 0, 0, 0, 4, 0x0a, 2, b'v', b'1']);
    }

    #[test]
    fn a_refusal_says_what_everybody_s_does() {
        let mut status = HeaderMap::new();
        status.insert("grpc-status", HeaderValue::from_static("5"));
        status.insert("grpc-message", HeaderValue::from_static("no image %22web%22"));
        let refused = refusal(&status).unwrap_err();
        assert!(refused.is_not_found());
        assert_eq!(refused.to_string(), "rpc error: code = NotFound desc = no image \"web\"");
        status.insert("grpc-status", HeaderValue::from_static("0"));
        refusal(&status).unwrap();
    }
}
