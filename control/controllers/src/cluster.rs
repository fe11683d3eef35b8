//! The API as controllers use it: a few verbs over JSON, and errors that say what to do.

use http::{Method, Request};
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};

use crate::json::{hash, name, namespace, uid};
use crate::kinds::{EVENT, Kind};

/// Why a reconciliation did not come to its end. It is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReconcileError {
    /// The server refused or did not answer.
    #[error("{verb} {path}")]
    Request {
        /// What was asked.
        verb: Method,
        /// About what.
        path: String,
        /// What it answered.
        source: Box<kube::Error>,
    },
    /// A request cannot be written.
    #[error("write a request about {path}: {reason}")]
    Build {
        /// About what.
        path: String,
        /// Why not.
        reason: String,
    },
}

/// What a reconciliation step gives.
pub(crate) type Result<T, E = ReconcileError> = std::result::Result<T, E>;

/// A client of the API.
#[derive(Clone)]
pub(crate) struct Cluster {
    client: Client,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cluster")
    }
}

impl ReconcileError {
    /// The answer's status code; 0 when there was none.
    pub(crate) fn code(&self) -> u16 {
        match self {
            Self::Request { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => status.code,
                _ => 0,
            },
            Self::Build { .. } => 0,
        }
    }
}

impl Cluster {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(crate) async fn get(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>> {
        let got = self.send(Method::GET, kind.path(namespace, name), None, "").await;
        unless_gone(got)
    }

    /// The objects of a kind in a namespace (all, if empty) that a label selector matches.
    pub(crate) async fn list(
        &self,
        kind: Kind,
        namespace: &str,
        selector: &str,
    ) -> Result<Vec<Value>> {
        let query = if selector.is_empty() {
            String::new()
        } else {
            let escaped = selector.replace('%', "%25").replace('/', "%2F").replace('=', "%3D");
            format!("?labelSelector={}", escaped.replace(',', "%2C").replace(' ', "%20"))
        };
        let path = format!("{}{query}", kind.path(namespace, ""));
        let mut list = self.send(Method::GET, path, None, "").await?;
        Ok(match list["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        })
    }

    pub(crate) async fn create(&self, kind: Kind, object: &Value) -> Result<Value> {
        let path = kind.path(namespace(object), "");
        self.send(Method::POST, path, Some(&typed(kind, object)), JSON).await
    }

    /// Creates an object; that it exists already is fine.
    pub(crate) async fn ensure(&self, kind: Kind, object: &Value) -> Result<()> {
        match self.create(kind, object).await {
            Err(error) if error.code() != 409 => Err(error),
            _ => Ok(()),
        }
    }

    /// Replaces an object, if it is still as it was read.
    pub(crate) async fn replace(&self, kind: Kind, object: &Value) -> Result<Value> {
        let path = kind.path(namespace(object), name(object));
        self.send(Method::PUT, path, Some(&typed(kind, object)), JSON).await
    }

    /// Replaces an object's status, if the object is still as it was read, and the status differs.
    pub(crate) async fn replace_status(
        &self,
        kind: Kind,
        object: &Value,
        status: Value,
    ) -> Result<()> {
        if object["status"] == status {
            return Ok(());
        }
        let mut new = typed(kind, object);
        new["status"] = status;
        let path = format!("{}/status", kind.path(namespace(object), name(object)));
        unless_gone(self.send(Method::PUT, path, Some(&new), JSON).await)?;
        Ok(())
    }

    pub(crate) async fn merge(
        &self,
        kind: Kind,
        object: &Value,
        patch: &Value,
    ) -> Result<Option<Value>> {
        let path = kind.path(namespace(object), name(object));
        unless_gone(self.send(Method::PATCH, path, Some(patch), MERGE).await)
    }

    pub(crate) async fn post(&self, path: String, body: &Value) -> Result<Option<Value>> {
        unless_gone(self.send(Method::POST, path, Some(body), JSON).await)
    }

    pub(crate) async fn put(&self, path: String, body: &Value) -> Result<Option<Value>> {
        unless_gone(self.send(Method::PUT, path, Some(body), JSON).await)
    }

    /// Deletes the very object that was read; that it is gone already is fine.
    pub(crate) async fn delete(&self, kind: Kind, object: &Value) -> Result<()> {
        let body = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background",
            "preconditions": {"uid": uid(object)},
        });
        let path = kind.path(namespace(object), name(object));
        match self.send(Method::DELETE, path, Some(&body), JSON).await {
            Err(error) if !matches!(error.code(), 404 | 409) => Err(error),
            _ => Ok(()),
        }
    }

    /// Deletes everything of a kind in a namespace.
    pub(crate) async fn delete_all(&self, kind: Kind, namespace: &str) -> Result<()> {
        let body = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background",
        });
        self.send(Method::DELETE, kind.path(namespace, ""), Some(&body), JSON).await?;
        Ok(())
    }

    /// Tells what happened to an object. Said again, it counts.
    pub(crate) async fn event(&self, about: &Value, what: &Happened<'_>) {
        let Happened { from, normal, reason, message } = what;
        let now = now();
        let namespace = match namespace(about) {
            "" => "default",
            namespace => namespace,
        };
        let id = hash(&json!([uid(about), from, reason, message]));
        let event_name = format!("{}.{id}", name(about));
        let event = json!({
            "metadata": {"name": event_name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": about["apiVersion"], "kind": about["kind"], "name": name(about),
                "namespace": crate::json::namespace(about), "uid": uid(about),
                "resourceVersion": about["metadata"]["resourceVersion"],
            },
            "type": if *normal { "Normal" } else { "Warning" },
            "reason": reason, "message": message, "count": 1,
            "firstTimestamp": now, "lastTimestamp": now,
            "source": {"component": from}, "reportingComponent": from, "reportingInstance": "",
        });
        let told = match self.create(EVENT, &event).await {
            Err(error) if error.code() == 409 => self.count_again(&event).await,
            other => other.map(|_| ()),
        };
        if let Err(error) = told {
            tracing::debug!(%error, "cannot record an event");
        }
    }

    async fn count_again(&self, event: &Value) -> Result<()> {
        let Some(known) = self.get(EVENT, namespace(event), name(event)).await? else {
            return Ok(());
        };
        let count = crate::json::int_at(&known, "count") + 1;
        let patch = json!({"count": count, "lastTimestamp": event["lastTimestamp"]});
        self.merge(EVENT, event, &patch).await.map(|_| ())
    }

    async fn send(
        &self,
        verb: Method,
        path: String,
        body: Option<&Value>,
        content_type: &str,
    ) -> Result<Value> {
        let bytes = body.map(ToString::to_string).unwrap_or_default().into_bytes();
        let mut request = Request::builder().method(verb.clone()).uri(&path);
        if body.is_some() {
            request = request.header(http::header::CONTENT_TYPE, content_type);
        }
        let request = request.body(bytes).map_err(|error| ReconcileError::Build {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        let answer = self.client.request::<Value>(request).await;
        answer.map_err(|error| ReconcileError::Request { verb, path, source: Box::new(error) })
    }
}

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";

/// Something that happened to an object, for its readers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Happened<'a> {
    pub(crate) from: &'a str,
    pub(crate) normal: bool,
    pub(crate) reason: &'a str,
    pub(crate) message: &'a str,
}

fn typed(kind: Kind, object: &Value) -> Value {
    let mut object = object.clone();
    object["apiVersion"] = json!(kind.api_version());
    object["kind"] = json!(kind.kind);
    object
}

fn unless_gone(answer: Result<Value>) -> Result<Option<Value>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.code() == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Now, to the second, as the API says times.
pub(crate) fn now() -> String {
    format_time(Timestamp::now())
}

pub(crate) fn format_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
