//! Health, readiness and metrics over HTTP, where CoreDNS has them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{ListenError, Names, tcp};

/// Where each is asked; `None` is nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// `/health`: whether the process lives.
    pub health: Option<SocketAddr>,
    /// `/ready`: whether it should be sent questions.
    pub ready: Option<SocketAddr>,
    /// `/metrics`.
    pub metrics: Option<SocketAddr>,
}

/// The pages and what they say.
#[derive(Debug)]
pub struct Admin {
    tasks: JoinSet<()>,
    lameduck: Arc<AtomicBool>,
    addresses: Vec<SocketAddr>,
}

#[derive(Clone, Copy, Debug)]
enum Page {
    Health,
    Ready,
    Metrics,
}

/// A client has so long to ask.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections to one page at a time.
const MAX_CONNECTIONS: usize = 64;

impl Admin {
    /// Serves the pages about these names. Needs a tokio runtime.
    ///
    /// # Errors
    /// An address cannot be had.
    pub fn start(ports: Ports, names: &Names) -> Result<Self, ListenError> {
        let lameduck = Arc::new(AtomicBool::new(false));
        let mut admin = Self { tasks: JoinSet::new(), lameduck, addresses: Vec::new() };
        for (page, address) in [
            (Page::Health, ports.health),
            (Page::Ready, ports.ready),
            (Page::Metrics, ports.metrics),
        ] {
            let Some(address) = address else { continue };
            let error = |source| ListenError { listen: address, transport: "HTTP", source };
            let listener = TcpListener::from_std(tcp::bind(address)?).map_err(error)?;
            admin.addresses.push(listener.local_addr().map_err(error)?);
            let lameduck = Arc::clone(&admin.lameduck);
            admin.tasks.spawn(serve(listener, page, names.clone(), lameduck));
        }
        Ok(admin)
    }

    /// Says from now on that no questions should be sent here.
    pub fn retire(&self) {
        self.lameduck.store(true, Ordering::Relaxed);
    }

    /// Where the pages are, ports filled in: health, readiness, metrics.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Ends.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn serve(listener: TcpListener, page: Page, names: Names, lameduck: Arc<AtomicBool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, page, names.clone(), Arc::clone(&lameduck)));
                }
                Err(error) => {
                    tracing::debug!("accepting: {error}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn converse(stream: TcpStream, page: Page, names: Names, lameduck: Arc<AtomicBool>) {
    let answer = service_fn(|request: Request<Incoming>| {
        let response = respond(request.uri().path(), page, &names, &lameduck);
        async { Ok::<_, Infallible>(response) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), answer).await {
        tracing::debug!("a page was not read: {error}");
    }
}

fn respond(path: &str, page: Page, names: &Names, lameduck: &AtomicBool) -> Response<String> {
    let (status, text) = match (page, path) {
        (Page::Health, "/health") => (StatusCode::OK, "OK".to_owned()),
        (Page::Ready, "/ready") if lameduck.load(Ordering::Relaxed) => {
            (StatusCode::SERVICE_UNAVAILABLE, "lameduck\n".to_owned())
        }
        (Page::Ready, "/ready") if names.is_synced() => (StatusCode::OK, "OK".to_owned()),
        (Page::Ready, "/ready") => (StatusCode::SERVICE_UNAVAILABLE, "kubernetes\n".to_owned()),
        (Page::Metrics, "/metrics") => (StatusCode::OK, names.metrics()),
        _ => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
