//! The HTTP face: a request becomes a path and a verb, a verb becomes a read or a transaction.

pub(crate) mod body;
mod connect;
mod delete;
mod discovery;
mod duplicates;
pub(crate) mod identity;
mod negotiate;
mod openapi;
mod path;
pub mod probe;
mod query;
mod read;
mod review;
mod subresource;
mod watch;
mod write;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::allocate::Ranges;
use crate::auth::{Authenticator, User};
use crate::kinds::{KINDS, Kind, Subresource};
use crate::object::{Key, Object};
use crate::status::{Result, Status};
use crate::store::Store;

use path::ApiPath;
use query::Query;

/// What every handler works with.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) store: Store,
    pub(crate) ranges: Arc<Ranges>,
    pub(crate) auth: Authenticator,
    /// Ends every watch when the server stops.
    pub(crate) stop: CancellationToken,
    /// Connections to pods, which outlive their requests.
    pub(crate) tunnels: TaskTracker,
}

/// A request, taken apart.
#[derive(Debug)]
pub(crate) struct Request {
    method: Method,
    path: String,
    query: Query,
    query_text: String,
    headers: HeaderMap,
    body: Bytes,
    user: User,
}

/// A request about the objects of one kind.
struct Target {
    kind: &'static Kind,
    number: usize,
    /// Served as `events.k8s.io`, stored as the core kind.
    view: Option<crate::events::View>,
    namespace: Option<String>,
    name: Option<String>,
    subresource: Option<Subresource>,
}

impl Api {
    /// Answers one request.
    pub(crate) async fn answer(self: Arc<Self>, mut request: http::Request<Body>) -> Response {
        let started = std::time::Instant::now();
        let upgrade = request.extensions_mut().remove();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = match self.take_apart(request).await {
            Ok(request) => self.route(&request, upgrade).await,
            Err(status) => Err(status),
        };
        let response = response.unwrap_or_else(|status| refuse(&status));
        let code = response.status().as_u16();
        tracing::debug!(%method, path, code, elapsed = ?started.elapsed(), "answered");
        response
    }

    async fn take_apart(&self, request: http::Request<Body>) -> Result<Request> {
        let (head, body) = request.into_parts();
        let user = self.auth.identify(&self.store, &head.headers)?;
        let query = Query::parse(head.uri.query().unwrap_or_default())?;
        let body = body::collect(body).await?;
        let path = head.uri.path().to_owned();
        let query_text = head.uri.query().unwrap_or_default().to_owned();
        let headers = head.headers;
        Ok(Request { method: head.method, path, query, query_text, headers, body, user })
    }

    async fn route(
        self: &Arc<Self>,
        request: &Request,
        upgrade: Option<OnUpgrade>,
    ) -> Result<Response> {
        let path = ApiPath::parse(&request.path)?;
        match &path {
            ApiPath::Plain(segments) => {
                self.auth.permit_path(
                    &self.store,
                    &request.user,
                    &request.method,
                    &request.path,
                )?;
                self.plain(request, segments)
            }
            ApiPath::Review { kind, namespace } => {
                review::answer(self, request, kind, namespace.as_deref())
            }
            ApiPath::Resource(resource) => {
                if let Some(part) = connect::part(resource) {
                    return connect::answer(self, request, resource, part, upgrade).await;
                }
                let target = Target::find(resource)?;
                let verb = verb(request, &target)?;
                let asked = target.attributes();
                self.auth.permit(&self.store, &request.user, verb.name(), &asked)?;
                self.resource(request, &target, verb).await
            }
        }
    }

    /// What is not about objects: health, version, discovery.
    fn plain(&self, request: &Request, segments: &[String]) -> Result<Response> {
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        if request.method != Method::GET && request.method != Method::HEAD {
            return Err(Status::method_not_allowed());
        }
        match segments.as_slice() {
            ["healthz" | "livez" | "readyz", ..] => {
                Ok(respond(StatusCode::OK, "text/plain; charset=utf-8", "ok"))
            }
            ["version"] => Ok(json_response(StatusCode::OK, &discovery::version())),
            ["openapi", "v2"] => openapi::v2(request),
            ["openapi", "v3"] => Ok(json_response(StatusCode::OK, &openapi::v3_index())),
            ["openapi", "v3", rest @ ..] => openapi::v3(&rest.join("/")),
            _ => discovery::answer(request, &segments),
        }
    }

    async fn resource(
        self: &Arc<Self>,
        request: &Request,
        target: &Target,
        verb: Verb,
    ) -> Result<Response> {
        match verb {
            Verb::Get => read::get(self, request, target),
            Verb::List => read::list(self, request, target).await,
            Verb::Watch => watch::watch(self, request, target).await,
            Verb::Create => write::create(self, request, target).await,
            Verb::Update => write::update(self, request, target).await,
            Verb::Patch => write::patch(self, request, target).await,
            Verb::Delete => delete::delete(self, request, target).await,
            Verb::DeleteCollection => delete::delete_collection(self, request, target).await,
        }
    }
}

/// What a request does, in RBAC's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

fn verb(request: &Request, target: &Target) -> Result<Verb> {
    let named = target.name.is_some();
    let verb = match (request.method.as_str(), named) {
        ("GET" | "HEAD", _) if request.query.is_true("watch") => Verb::Watch,
        ("GET" | "HEAD", true) => Verb::Get,
        ("GET" | "HEAD", false) => Verb::List,
        ("POST", false) => Verb::Create,
        ("POST", true) if target.subresource.is_some() => Verb::Create,
        ("PUT", true) => Verb::Update,
        ("PATCH", true) => Verb::Patch,
        ("DELETE", true) if target.subresource.is_none() => Verb::Delete,
        ("DELETE", false) => Verb::DeleteCollection,
        _ => return Err(Status::method_not_allowed()),
    };
    // A list over all namespaces can be read and nothing else.
    let everywhere = target.kind.namespaced && target.namespace.is_none();
    if everywhere && !matches!(verb, Verb::List | Verb::Watch) {
        return Err(Status::method_not_allowed());
    }
    Ok(verb)
}

impl Target {
    fn find(resource: &path::Resource) -> Result<Self> {
        let (group, view) = match crate::events::View::of_group(&resource.group, &resource.plural) {
            Some(view) => ("", Some(view)),
            None => (resource.group.as_str(), None),
        };
        let number = crate::kinds::find(group, &resource.version, &resource.plural)
            .ok_or_else(Status::no_such_path)?;
        let kind = KINDS.get(number).ok_or_else(Status::no_such_path)?;
        let subresource = match &resource.subresource {
            None => None,
            Some(name) => {
                let found = Subresource::parse(name).filter(|one| kind.has(*one));
                Some(found.ok_or_else(Status::no_such_path)?)
            }
        };
        if resource.namespace.is_some() != kind.namespaced
            && (resource.namespace.is_some() || resource.name.is_some())
        {
            return Err(Status::no_such_path());
        }
        Ok(Self {
            kind,
            number,
            view,
            namespace: resource.namespace.clone(),
            name: resource.name.clone(),
            subresource,
        })
    }

    /// The same target, for a watch that outlives the request.
    fn again(&self) -> Self {
        Self { namespace: self.namespace.clone(), name: self.name.clone(), ..*self }
    }

    fn key(&self) -> Key {
        let namespace = self.namespace.as_deref().unwrap_or_default();
        Key::new(self.number, namespace, self.name.as_deref().unwrap_or_default())
    }

    fn attributes(&self) -> crate::auth::Attributes<'_> {
        crate::auth::Attributes {
            group: self.view.map_or(self.kind.group, |view| view.group()),
            resource: self.kind.plural,
            subresource: self.subresource.map_or("", Subresource::name),
            namespace: self.namespace.as_deref().unwrap_or_default(),
            name: self.name.as_deref().unwrap_or_default(),
        }
    }

    fn api_version(&self) -> String {
        self.view.map_or_else(|| self.kind.api_version(), |view| view.api_version().into())
    }

    /// A stored object as this path serves it.
    fn serve(&self, object: &Object) -> Bytes {
        match self.view {
            None => object.json.clone(),
            Some(view) => Bytes::from(view.of_core(object.value()).to_string()),
        }
    }

    /// A stored object's value as this path serves it.
    fn serve_value(&self, object: &Object) -> Value {
        match self.view {
            None => object.value(),
            Some(view) => view.of_core(object.value()),
        }
    }
}

fn respond(code: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    let value = http::HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

fn json_response(code: StatusCode, value: &Value) -> Response {
    respond(code, "application/json", value.to_string())
}

/// The refusal as a response.
pub(crate) fn refuse(status: &Status) -> Response {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_response(code, &status.to_value());
    if matches!(status.code, 429 | 503) {
        let after = http::HeaderValue::from_static("1");
        response.headers_mut().insert(header::RETRY_AFTER, after);
    }
    response
}

/// `Status` of a success, as deletions and bindings answer.
fn success(details: &Value) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": details,
    })
}

/// How long a read waits for a revision it has been told of.
const CATCH_UP: Duration = Duration::from_secs(3);

impl Target {
    fn decode(&self, value: Value) -> serde_json::Result<Value> {
        match self.view {
            Some(view) => view.decode(value),
            None => (self.kind.decode)(value),
        }
    }

    /// A field selector in the names of the stored kind.
    fn core_fields(&self, selector: &str) -> String {
        match self.view {
            Some(_) => crate::events::core_fields(selector),
            None => selector.to_owned(),
        }
    }

    /// What is stored for a value that came in by this path.
    fn to_core(&self, value: Value) -> Value {
        match self.view {
            Some(view) => view.to_core(value),
            None => value,
        }
    }
}
