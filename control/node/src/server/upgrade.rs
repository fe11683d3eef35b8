//! From an HTTP request to SPDY streams: the handshake, and the connection's life.

use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::spdy::{Connection, Stream};
use super::{Body, say};

/// The header by which both sides agree on what streams mean.
const PROTOCOL: &str = "x-stream-protocol-version";

/// Accepts SPDY with the first of `protocols` that the client knows, and hands its streams over.
/// A session outlives the request that it began as, among `sessions`.
pub(super) fn spdy<F>(
    sessions: &TaskTracker,
    request: Request<Incoming>,
    protocols: &[&'static str],
    serve: impl FnOnce(mpsc::Receiver<Stream>) -> F + Send + 'static,
) -> Response<Body>
where
    F: Future<Output = ()> + Send + 'static,
{
    let asks = request.headers().get(header::UPGRADE).is_some_and(|one| one == "SPDY/3.1");
    if !asks {
        return say(StatusCode::BAD_REQUEST, "unable to upgrade: missing upgrade header SPDY/3.1");
    }
    let offered = request.headers().get_all(PROTOCOL).iter().filter_map(|one| one.to_str().ok());
    let offered: Vec<&str> = offered.flat_map(|one| one.split(',')).map(str::trim).collect();
    let Some(protocol) = protocols.iter().copied().find(|one| offered.contains(one)) else {
        let text = format!("unable to upgrade: the client offers {offered:?}, not {protocols:?}");
        return say(StatusCode::FORBIDDEN, &text);
    };
    let upgrading = hyper::upgrade::on(request);
    let session = async move {
        match upgrading.await {
            Ok(io) => {
                let (connection, streams) = Connection::new(TokioIo::new(io));
                let (carried, ()) = tokio::join!(connection.run(), serve(streams));
                if let Err(error) = carried {
                    tracing::debug!(%error, "a session's connection broke");
                }
            }
            Err(error) => tracing::debug!(%error, "a client did not upgrade"),
        }
    };
    sessions.spawn(session);
    let never = |never: std::convert::Infallible| match never {};
    let mut response = Response::new(Empty::<Bytes>::new().map_err(never).boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(PROTOCOL, HeaderValue::from_static(protocol));
    response
}
