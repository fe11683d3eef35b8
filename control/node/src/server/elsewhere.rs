//! Streams that the runtime itself serves: the client's connection goes on to it, whatever both
//! ends speak over it.

use std::io;

use http::{HeaderMap, HeaderName, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use super::{Body, say};

/// A refusal's text is no longer than this.
const MAX_TEXT: usize = 16 * 1024;

/// Headers that a connection's two ends agree by.
const PASSED: [HeaderName; 3] =
    [header::CONNECTION, header::UPGRADE, HeaderName::from_static("x-stream-protocol-version")];

/// Answers as the server at `uri` does, and carries what both sides say among `sessions`.
pub(super) async fn answer(
    sessions: &TaskTracker,
    mut request: Request<Incoming>,
    uri: &Uri,
) -> Response<Body> {
    // Newer clients ask by WebSocket first, and by SPDY when refused: runtimes speak no version of
    // the former in which a client can say that its input has ended.
    let asks = request.headers().get(header::UPGRADE).is_some_and(|one| one == "SPDY/3.1");
    if !asks {
        return say(StatusCode::BAD_REQUEST, "unable to upgrade: missing upgrade header SPDY/3.1");
    }
    let client = hyper::upgrade::on(&mut request);
    let mut answer = match pass_on(sessions, &request, uri).await {
        Ok(answer) => answer,
        Err(error) => {
            let text = format!("error asking the runtime at {uri}: {error}");
            return say(StatusCode::INTERNAL_SERVER_ERROR, &text);
        }
    };
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = answer.status();
        let text = Limited::new(answer.into_body(), MAX_TEXT).collect().await;
        let text = text.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        return say(status, &String::from_utf8_lossy(&text));
    }
    let runtime = hyper::upgrade::on(&mut answer);
    sessions.spawn(async move {
        let carried = async {
            let (client, runtime) = tokio::try_join!(client, runtime)?;
            let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
            tokio::io::copy_bidirectional(&mut client, &mut runtime).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        };
        if let Err(error) = carried.await {
            tracing::debug!(error, "a session's connection broke");
        }
    });
    let never = |never: std::convert::Infallible| match never {};
    let mut response = Response::new(Empty::<Bytes>::new().map_err(never).boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    pass(answer.headers(), response.headers_mut());
    response
}

/// Asks the same of another server.
async fn pass_on(
    sessions: &TaskTracker,
    request: &Request<Incoming>,
    uri: &Uri,
) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    let authority = uri.authority().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let stream = TcpStream::connect(authority.as_str()).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    sessions.spawn(async move {
        let ended = connection.with_upgrades().await;
        tracing::trace!(well = ended.is_ok(), "a connection to the runtime ended");
    });
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let mut onward =
        Request::post(path).header(header::HOST, authority.as_str()).body(Empty::<Bytes>::new())?;
    pass(request.headers(), onward.headers_mut());
    Ok(sender.send_request(onward).await?)
}

fn pass(from: &HeaderMap, to: &mut HeaderMap) {
    for name in PASSED {
        for value in from.get_all(&name) {
            to.append(name.clone(), value.clone());
        }
    }
}
