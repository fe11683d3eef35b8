//! What a pod's node answers: logs, exec, attach, port-forward. The request goes on to the node's
//! agent; whatever protocol both ends speak then passes through.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::path::Resource;
use super::{Api, Request, Verb};
use crate::auth::Attributes;
use crate::kinds;
use crate::object::{Key, at, list_at, str_at};
use crate::status::{Result, Status};

/// A refusal's text is no longer than this.
const MAX_TEXT: usize = 16 * 1024;

/// What may be asked of a pod's node, and the agent's name for it.
const PARTS: [(&str, &str); 4] = [
    ("log", "containerLogs"),
    ("exec", "exec"),
    ("attach", "attach"),
    ("portforward", "portForward"),
];

/// The agent's name for what a path asks of a pod's node, if it does.
pub(super) fn part(resource: &Resource) -> Option<&'static str> {
    let is_pod = resource.group.is_empty() && resource.version == "v1" && resource.plural == "pods";
    let subresource = resource.subresource.as_deref().filter(|_| is_pod)?;
    PARTS.into_iter().find(|(name, _)| *name == subresource).map(|(_, part)| part)
}

/// Where a node's agent listens, and the key that opens it.
struct Agent {
    address: (IpAddr, u16),
    key: String,
}

pub(super) async fn answer(
    api: &Arc<Api>,
    request: &Request,
    resource: &Resource,
    part: &str,
    upgrade: Option<OnUpgrade>,
) -> Result<Response> {
    let (namespace, name) = (text(&resource.namespace), text(&resource.name));
    let asked = Attributes {
        group: "",
        resource: "pods",
        subresource: text(&resource.subresource),
        namespace,
        name,
    };
    let verb =
        if part == "containerLogs" || request.method != "POST" { Verb::Get } else { Verb::Create };
    api.auth.permit(&api.store, &request.user, verb.name(), &asked)?;
    if part == "containerLogs" && request.method != "GET" {
        return Err(Status::method_not_allowed());
    }
    let pod = api.store.read().get(&Key::new(kinds::number("pods"), namespace, name));
    let no_pod = || {
        let kind = kinds::KINDS.get(kinds::number("pods"));
        kind.map_or_else(Status::no_such_path, |kind| Status::not_found(kind, name))
    };
    let pod = pod.ok_or_else(no_pod)?.value();
    let path = if part == "portForward" {
        format!("/portForward/{namespace}/{name}")
    } else {
        format!("/{part}/{namespace}/{name}/{}", container(request, &pod)?)
    };
    let query = &request.query_text;
    let uri = if query.is_empty() { path } else { format!("{path}?{query}") };
    let agent = agent(api, &pod)?;
    pass_on(api, request, &agent, &uri, upgrade).await
}

fn text(part: &Option<String>) -> &str {
    part.as_deref().unwrap_or_default()
}

/// The container that is meant: named, or the only one.
fn container(request: &Request, pod: &Value) -> Result<String> {
    let name = str_at(pod, "metadata.name");
    let inits = list_at(pod, "spec.initContainers");
    let mains = list_at(pod, "spec.containers");
    let named = request.query.get("container");
    let known = |one: &Value| str_at(one, "name") == named;
    if named.is_empty() {
        return match mains {
            [only] => Ok(str_at(only, "name").to_owned()),
            several => {
                let names: Vec<&str> = several.iter().map(|one| str_at(one, "name")).collect();
                Err(Status::bad_request(format!(
                    "a container name must be specified for pod {name}, choose one of: [{}]",
                    names.join(" ")
                )))
            }
        };
    }
    let ephemeral = list_at(pod, "spec.ephemeralContainers");
    if mains.iter().chain(inits).chain(ephemeral).any(known) {
        return Ok(named.to_owned());
    }
    Err(Status::bad_request(format!("container {named} is not valid for pod {name}")))
}

/// The agent of the node that a pod is on, as that node's status has it.
fn agent(api: &Api, pod: &Value) -> Result<Agent> {
    let node_name = str_at(pod, "spec.nodeName");
    if node_name.is_empty() {
        let name = str_at(pod, "metadata.name");
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let unknown = |what: &str| {
        let message = format!("node {node_name:?} {what}: is its agent running?");
        Status::new(503, "ServiceUnavailable", message)
    };
    let state = api.store.read();
    let node = state.get(&Key::new(kinds::number("nodes"), "", node_name));
    let node = node.ok_or_else(|| unknown("does not exist"))?.value();
    let secret = format!("fairlead-node-{node_name}");
    let secret = state.get(&Key::new(kinds::number("secrets"), "kube-system", &secret));
    let key = secret.and_then(|secret| {
        let bytes = STANDARD.decode(str_at(&secret.value(), "data.key")).ok()?;
        String::from_utf8(bytes).ok()
    });
    let address = list_at(&node, "status.addresses").iter().find_map(|one| {
        let address = str_at(one, "address").parse().ok();
        address.filter(|_: &IpAddr| one["type"] == "InternalIP")
    });
    let port = at(&node, "status.daemonEndpoints.kubeletEndpoint.Port").as_u64();
    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    match (address, port, key) {
        (Some(address), Some(port), Some(key)) => Ok(Agent { address: (address, port), key }),
        _ => Err(unknown("has no agent that answers for its pods")),
    }
}

/// Headers that a connection's two ends agree by.
const PASSED: [&str; 8] = [
    "connection",
    "upgrade",
    "x-stream-protocol-version",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "sec-websocket-extensions",
    "sec-websocket-accept",
];

fn passed(from: &HeaderMap, to: &mut HeaderMap) {
    for name in PASSED {
        for value in from.get_all(name) {
            to.append(HeaderName::from_static(name), value.clone());
        }
    }
}

async fn pass_on(
    api: &Arc<Api>,
    request: &Request,
    agent: &Agent,
    uri: &str,
    upgrade: Option<OnUpgrade>,
) -> Result<Response> {
    let (ip, port) = agent.address;
    let unreachable = |error: &dyn std::fmt::Display| {
        let message = format!("dial tcp {ip}:{port}: {error}");
        Status::new(500, "InternalError", message)
    };
    let stream = TcpStream::connect(agent.address).await.map_err(|error| unreachable(&error))?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|error| unreachable(&error))?;
    // It carries the answer's body, which may outlive this request for as long as a log is read.
    let stop = api.stop.clone();
    api.tunnels.spawn(async move {
        tokio::select! {
            ended = connection.with_upgrades() => {
                tracing::trace!(well = ended.is_ok(), "a connection to an agent ended");
            }
            () = stop.cancelled() => {}
        }
    });
    let mut onward = http::Request::builder()
        .method(request.method.clone())
        .uri(uri)
        .body(Empty::<Bytes>::new())
        .map_err(Status::internal)?;
    passed(&request.headers, onward.headers_mut());
    let bearer = HeaderValue::try_from(format!("Bearer {}", agent.key));
    onward.headers_mut().insert(header::AUTHORIZATION, bearer.map_err(Status::internal)?);
    onward.headers_mut().insert(header::HOST, HeaderValue::from_static("node"));
    let answer = sender.send_request(onward).await.map_err(|error| unreachable(&error))?;
    match (answer.status(), upgrade) {
        (StatusCode::SWITCHING_PROTOCOLS, Some(client)) => Ok(tunnel(api, answer, client)),
        (status, _) if status.is_success() => Ok(stream_back(answer)),
        (status, _) => Err(refusal(status, answer).await),
    }
}

/// Both ends upgraded: bytes go to and fro until one of them has had enough.
fn tunnel(api: &Arc<Api>, mut answer: http::Response<Incoming>, client: OnUpgrade) -> Response {
    let agent = hyper::upgrade::on(&mut answer);
    let stop = api.stop.clone();
    api.tunnels.spawn(async move {
        let carried = async {
            let (client, agent) = tokio::try_join!(client, agent)?;
            let (mut client, mut agent) = (TokioIo::new(client), TokioIo::new(agent));
            tokio::io::copy_bidirectional(&mut client, &mut agent).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        };
        tokio::select! {
            carried = carried => if let Err(error) = carried {
                tracing::debug!(error, "a tunnel to a pod broke");
            },
            () = stop.cancelled() => {}
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    passed(answer.headers(), response.headers_mut());
    response
}

fn stream_back(answer: http::Response<Incoming>) -> Response {
    let (head, body) = answer.into_parts();
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = head.status;
    if let Some(form) = head.headers.get(header::CONTENT_TYPE) {
        response.headers_mut().insert(header::CONTENT_TYPE, form.clone());
    }
    response
}

/// The agent's refusal in the API's words.
async fn refusal(status: StatusCode, answer: http::Response<Incoming>) -> Status {
    let body = Limited::new(answer.into_body(), MAX_TEXT).collect().await;
    let bytes = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    let reason = match status.as_u16() {
        400 => "BadRequest",
        403 => "Forbidden",
        404 => "NotFound",
        _ => "InternalError",
    };
    let code = if reason == "InternalError" { 500 } else { status.as_u16() };
    Status::new(code, reason, text)
}
