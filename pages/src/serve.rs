//! Serves pages over HTTP/1.1, to few clients at a time.

use std::convert::Infallible;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A client has so long to ask.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections to one address at a time.
const MAX_CONNECTIONS: usize = 64;

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The status code.
    pub status: u16,
    /// Its type.
    pub content_type: &'static str,
    /// What it says.
    pub text: String,
    /// One more header.
    pub header: Option<(&'static str, String)>,
}

impl Page {
    /// Text for people, or for Prometheus.
    pub fn text(text: impl Into<String>) -> Self {
        let content_type = "text/plain; version=0.0.4; charset=utf-8";
        Self { status: 200, content_type, text: text.into(), header: None }
    }

    /// JSON.
    pub const fn json(text: String) -> Self {
        Self { status: 200, content_type: "application/json", text, header: None }
    }

    /// The same with another status.
    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    /// The same with one more header, whose name is in lower case.
    #[must_use]
    pub fn with_header(self, name: &'static str, value: String) -> Self {
        Self { header: Some((name, value)), ..self }
    }

    /// There is no page of that path.
    pub fn not_found() -> Self {
        Self::text("404 page not found\n").with_status(404)
    }
}

/// Answers whoever connects, for ever: `answer` gets the path that is asked for. What it spawned ends
/// with it.
pub async fn serve<F, A>(listener: TcpListener, answer: F)
where
    F: Fn(String) -> A + Clone + Send + 'static,
    A: Future<Output = Page> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, answer.clone()));
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

async fn converse<F, A>(stream: TcpStream, answer: F)
where
    F: Fn(String) -> A + Send,
    A: Future<Output = Page> + Send,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let page = answer(request.uri().path().to_owned());
        async { Ok::<_, Infallible>(response(page.await)) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!("a page was not read: {error}");
    }
}

fn response(page: Page) -> Response<String> {
    let mut response = Response::new(page.text);
    *response.status_mut() =
        StatusCode::from_u16(page.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some((name, value)) = page.header
        && let Ok(value) = HeaderValue::try_from(value)
    {
        headers.insert(HeaderName::from_static(name), value);
    }
    response
}
