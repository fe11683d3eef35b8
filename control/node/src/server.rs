//! The node's own HTTP server: logs, and commands in containers, for the API server alone.

mod command;
mod elsewhere;
mod forward;
mod logs;
mod spdy;
mod upgrade;
mod websocket;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::Pod;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::agent::Pods;
use crate::worker::Node;

/// Connections at once; more wait.
const MAX_CONNECTIONS: usize = 256;
/// How long a request's head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the server does not listen.
#[derive(Debug)]
pub(crate) struct ListenError {
    pub(crate) address: SocketAddr,
    pub(crate) source: std::io::Error,
}

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What a request is about.
pub(crate) struct Asked {
    pub(crate) pod: Arc<Pod>,
    pub(crate) container: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) sessions: TaskTracker,
}

impl Asked {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn is_true(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1"))
    }
}

/// A secret of 128 bits, new with every agent.
pub(crate) fn token() -> String {
    let mut bytes = [0; 16];
    let read = std::fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes));
    if let Err(error) = read {
        tracing::warn!(%error, "no randomness: nobody may read logs or run commands");
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { address, source })
}

/// What every request is answered from.
#[derive(Debug)]
struct Server {
    node: Arc<Node>,
    pods: watch::Receiver<Pods>,
    key: String,
    sessions: TaskTracker,
}

/// Serves for ever.
pub(crate) async fn serve(
    listener: TcpListener,
    node: Arc<Node>,
    pods: watch::Receiver<Pods>,
    key: String,
) {
    let server = Arc::new(Server { node, pods, key, sessions: TaskTracker::new() });
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let server = Arc::clone(&server);
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let server = Arc::clone(&server);
                async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            let served = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }
}

impl Server {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        if let ["healthz"] = parts.as_slice() {
            return say(StatusCode::OK, "ok");
        }
        if !self.may(&request) {
            return say(StatusCode::UNAUTHORIZED, "Unauthorized");
        }
        let (verb, namespace, pod, container) = match parts.as_slice() {
            [verb, namespace, pod, container] => (*verb, *namespace, *pod, *container),
            [verb, namespace, pod] => (*verb, *namespace, *pod, ""),
            _ => return say(StatusCode::NOT_FOUND, "404 page not found"),
        };
        let key = (namespace.to_owned(), pod.to_owned());
        let found = self.pods.borrow().get(&key).cloned();
        let Some(found) = found else {
            let text = format!("pod does not exist: {namespace}/{pod}");
            return say(StatusCode::NOT_FOUND, &text);
        };
        let query = parse_query(request.uri().query().unwrap_or_default());
        let sessions = self.sessions.clone();
        let asked = Asked { pod: found, container: container.to_owned(), query, sessions };
        match (request.method(), verb) {
            (&Method::GET, "containerLogs") => logs::answer(&self.node, &asked).await,
            (&Method::GET | &Method::POST, "exec") => {
                command::exec(&self.node, &asked, request).await
            }
            (&Method::GET | &Method::POST, "attach") => {
                command::attach(&self.node, &asked, request).await
            }
            (&Method::GET | &Method::POST, "portForward") => {
                forward::answer(&self.node, &asked, request)
            }
            _ => say(StatusCode::NOT_FOUND, "404 page not found"),
        }
    }

    fn may(&self, request: &Request<Incoming>) -> bool {
        let given = request.headers().get(header::AUTHORIZATION);
        let given = given.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        // A key of its own for every agent leaves no time to guess it byte by byte.
        given.is_some_and(|given| !self.key.is_empty() && given == self.key)
    }
}

pub(crate) fn say(code: StatusCode, text: &str) -> Response<Body> {
    let never = |never: std::convert::Infallible| match never {};
    let mut response =
        Response::new(Full::new(Bytes::from(text.to_owned())).map_err(never).boxed_unsync());
    *response.status_mut() = code;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

fn parse_query(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let split = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    };
    pairs.map(split).collect()
}

/// Undoes percent encoding.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let decoded = match byte {
            b'+' => b' ',
            b'%' => {
                let digits: String = rest.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&digits, 16).unwrap_or(b'%')
            }
            byte => byte,
        };
        bytes.push(decoded);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_taken_apart() {
        let pairs = parse_query("command=sh&command=-c&command=echo+a%26b&tty");
        let values: Vec<&str> = pairs.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["sh", "-c", "echo a&b", ""]);
        assert_eq!(pairs[3].0, "tty");
    }
}
