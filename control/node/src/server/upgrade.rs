//! From an HTTP request to streams, by SPDY or by WebSocket: the handshake, and the connection's life.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::spdy::{Connection, Stream};
use super::websocket::{self, Within};
use super::{Body, say};

/// The header by which both sides agree on what streams mean.
const SPDY_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// What is spoken, the best first.
#[derive(Debug)]
pub(super) struct Protocols {
    pub(super) spdy: &'static [&'static str],
    pub(super) websocket: &'static [&'static str],
    /// What is within a WebSocket.
    pub(super) within: Within,
}

/// How a connection is to be carried, and the answer that says so.
struct Agreed {
    response: Response<Body>,
    websocket: Option<Within>,
}

/// Accepts the first of `protocols` that the client knows, and hands its streams over. A session
/// outlives the request that it began as, among `sessions`.
pub(super) fn accept<F>(
    sessions: &TaskTracker,
    request: Request<Incoming>,
    protocols: Protocols,
    serve: impl FnOnce(mpsc::Receiver<Stream>) -> F + Send + 'static,
) -> Response<Body>
where
    F: Future<Output = ()> + Send + 'static,
{
    let Agreed { response, websocket } = match agree(request.headers(), protocols) {
        Ok(agreed) => agreed,
        Err(refusal) => return *refusal,
    };
    let upgrading = hyper::upgrade::on(request);
    let session = async move {
        let io = match upgrading.await {
            Ok(io) => TokioIo::new(io),
            Err(error) => return tracing::debug!(%error, "a client did not upgrade"),
        };
        let carried = match websocket {
            Some(Within::Channels(names)) => websocket::carry_channels(io, &names, serve).await,
            Some(Within::Spdy) => websocket::carry_spdy(io, serve).await,
            None => {
                let (connection, streams) = Connection::new(io);
                tokio::join!(connection.run(), serve(streams)).0
            }
        };
        if let Err(error) = carried {
            tracing::debug!(%error, "a session's connection broke");
        }
    };
    sessions.spawn(session);
    response
}

fn agree(headers: &HeaderMap, protocols: Protocols) -> Result<Agreed, Box<Response<Body>>> {
    let asked = headers.get(header::UPGRADE).and_then(|one| one.to_str().ok()).unwrap_or_default();
    let is_websocket = asked.eq_ignore_ascii_case("websocket");
    if !is_websocket && asked != "SPDY/3.1" {
        let text = "unable to upgrade: missing upgrade header SPDY/3.1 or websocket";
        return Err(Box::new(say(StatusCode::BAD_REQUEST, text)));
    }
    let (name, known) = if is_websocket {
        (header::SEC_WEBSOCKET_PROTOCOL, protocols.websocket)
    } else {
        (SPDY_PROTOCOL, protocols.spdy)
    };
    let offered = headers.get_all(&name).iter().filter_map(|one| one.to_str().ok());
    let offered: Vec<&str> = offered.flat_map(|one| one.split(',')).map(str::trim).collect();
    let Some(protocol) = known.iter().copied().find(|one| offered.contains(one)) else {
        let text = format!("unable to upgrade: the client offers {offered:?}, not {known:?}");
        return Err(Box::new(say(StatusCode::FORBIDDEN, &text)));
    };
    let mut more = vec![(name, HeaderValue::from_static(protocol))];
    if is_websocket {
        let accepted = websocket::accept_key(headers).ok_or_else(|| {
            let text = "unable to upgrade: sec-websocket-key or its version is missing";
            Box::new(say(StatusCode::BAD_REQUEST, text))
        })?;
        more.push((header::SEC_WEBSOCKET_ACCEPT, accepted));
    }
    let upgrade = if is_websocket { "websocket" } else { "SPDY/3.1" };
    more.push((header::UPGRADE, HeaderValue::from_static(upgrade)));
    let websocket = is_websocket.then_some(protocols.within);
    Ok(Agreed { response: switching(more), websocket })
}

fn switching(more: Vec<(HeaderName, HeaderValue)>) -> Response<Body> {
    let never = |never: std::convert::Infallible| match never {};
    let mut response = Response::new(Empty::<Bytes>::new().map_err(never).boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().extend(more);
    response
}
