//! Get and list.

use std::sync::Arc;

use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::negotiate::{self, Form};
use super::{Api, CATCH_UP, Request, Target, json_response, respond, subresource};
use crate::object::{Key, Object};
use crate::selector::{FieldSelector, LabelSelector};
use crate::status::{Result, Status};
use crate::store::{ObjectName, State};

pub(super) fn get(api: &Api, request: &Request, target: &Target) -> Result<Response> {
    let key = target.key();
    let object = api.store.read().get(&key);
    let object = object.ok_or_else(|| Status::not_found(target.kind, &key.name))?;
    if let Some(sub) = target.subresource {
        return subresource::get(target, sub, &object);
    }
    Ok(match negotiate::form(request)? {
        Form::Object => respond(StatusCode::OK, "application/json", target.serve(&object)),
        Form::Metadata => {
            let mut body = Vec::new();
            negotiate::write_metadata(&target.serve(&object), &mut body);
            respond(StatusCode::OK, "application/json", body)
        }
        Form::Table { include } => {
            let metadata = json!({"resourceVersion": object.revision.to_string()});
            let objects = [target.serve_value(&object)];
            let table = negotiate::table(target, &objects, include, &metadata, true);
            json_response(StatusCode::OK, &table)
        }
    })
}

/// Which objects a list or watch is about.
#[derive(Debug)]
pub(super) struct Filter {
    pub(super) namespace: Option<String>,
    labels: LabelSelector,
    fields: FieldSelector,
    name: Option<String>,
}

impl Filter {
    pub(super) fn of(request: &Request, target: &Target) -> Result<Self> {
        Ok(Self {
            namespace: target.namespace.clone(),
            labels: LabelSelector::parse(request.query.get("labelSelector"))?,
            fields: FieldSelector::parse(
                target.kind,
                &target.core_fields(request.query.get("fieldSelector")),
            )?,
            name: target.name.clone(),
        })
    }

    pub(super) fn matches(&self, target: &Target, key: &Key, object: &Object) -> bool {
        self.namespace.as_deref().is_none_or(|namespace| namespace == &*key.namespace)
            && self.name.as_deref().is_none_or(|name| name == &*key.name)
            && (self.labels.is_empty() || self.labels.matches(object))
            && self.fields.matches(target.kind, key, object)
    }

    /// What is listed now. An index spares asking each, where there is one.
    pub(super) fn list(&self, target: &Target, state: &State) -> Listed {
        let kind = target.number;
        let label = target.kind.indexed.and_then(|label| self.labels.exactly(label));
        let all: &mut dyn Iterator<Item = _> = match (&self.namespace, label) {
            (Some(namespace), Some(value)) => &mut state.labelled(kind, namespace, value),
            (namespace, _) => &mut state.list(kind, namespace.as_deref()),
        };
        let all = all.map(|(name, object)| (name.clone(), Arc::clone(object)));
        self.keep(target, all)
    }

    fn keep(
        &self,
        target: &Target,
        objects: impl Iterator<Item = (ObjectName, Arc<Object>)>,
    ) -> Listed {
        let matches = |((namespace, name), object): &(ObjectName, Arc<Object>)| {
            let (namespace, name) = (Arc::clone(namespace), Arc::clone(name));
            self.matches(target, &Key { kind: target.number, namespace, name }, object)
        };
        objects.filter(matches).collect()
    }
}

/// Objects in order.
type Listed = Vec<(ObjectName, Arc<Object>)>;

/// Where the next page begins, and at which revision all pages are.
#[derive(Deserialize, Serialize)]
struct Continue {
    rv: u64,
    after: (String, String),
}

pub(super) async fn list(api: &Api, request: &Request, target: &Target) -> Result<Response> {
    let filter = Filter::of(request, target)?;
    let limit = request.query.number("limit")?.filter(|limit| *limit > 0);
    let form = negotiate::form(request)?;
    let token = parse_continue(request.query.get("continue"))?;
    let (revision, mut matching) = match &token {
        Some(token) => at_revision(api, target, &filter, token.rv).map_err(|status| {
            let message = "The provided continue parameter is too old to display a consistent \
                           list result. You must start a new list without the continue parameter.";
            if status.code == 410 { Status::expired(message) } else { status }
        })?,
        None => begin(api, request, target, &filter).await?,
    };
    if let Some(Continue { after: (namespace, name), .. }) = token {
        let after: ObjectName = (namespace.into(), name.into());
        matching.drain(..matching.partition_point(|(name, _)| *name <= after));
    }
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if let Some(limit) = limit {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        if matching.len() > limit {
            metadata["remainingItemCount"] = json!(matching.len() - limit);
            matching.truncate(limit);
            if let Some(((namespace, name), _)) = matching.last() {
                let after = (namespace.to_string(), name.to_string());
                metadata["continue"] = json!(write_continue(&Continue { rv: revision, after })?);
            }
        }
    }
    let objects: Vec<Arc<Object>> = matching.into_iter().map(|(_, object)| object).collect();
    Ok(render(target, &objects, form, &metadata))
}

fn render(target: &Target, objects: &[Arc<Object>], form: Form, metadata: &Value) -> Response {
    let values = || -> Vec<Value> { objects.iter().map(|o| target.serve_value(o)).collect() };
    match form {
        Form::Object => {
            let head = format!(
                "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
                target.kind.kind,
                target.api_version()
            );
            let size: usize = objects.iter().map(|object| object.json.len() + 1).sum();
            let mut body = Vec::with_capacity(head.len() + size + 2);
            body.extend_from_slice(head.as_bytes());
            for (i, object) in objects.iter().enumerate() {
                if i > 0 {
                    body.push(b',');
                }
                body.extend_from_slice(&target.serve(object));
            }
            body.extend_from_slice(b"]}");
            respond(StatusCode::OK, "application/json", body)
        }
        Form::Metadata => {
            let mut body = format!(
                "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"meta.k8s.io/v1\",\
                 \"metadata\":{metadata},\"items\":["
            )
            .into_bytes();
            for (i, object) in objects.iter().enumerate() {
                body.extend_from_slice(if i > 0 { b"," } else { b"" });
                negotiate::write_metadata(&target.serve(object), &mut body);
            }
            body.extend_from_slice(b"]}");
            respond(StatusCode::OK, "application/json", body)
        }
        Form::Table { include } => {
            let table = negotiate::table(target, &values(), include, metadata, true);
            json_response(StatusCode::OK, &table)
        }
    }
}

/// The first page: now, or as `resourceVersion` and `resourceVersionMatch` ask.
async fn begin(
    api: &Api,
    request: &Request,
    target: &Target,
    filter: &Filter,
) -> Result<(u64, Listed)> {
    let asked = request.query.get("resourceVersion");
    let rule = request.query.get("resourceVersionMatch");
    if !matches!(rule, "" | "Exact" | "NotOlderThan") {
        let message = format!("resourceVersionMatch: Unsupported value: \"{rule}\"");
        return Err(Status::bad_request(message));
    }
    if asked.is_empty() && !rule.is_empty() {
        return Err(Status::bad_request(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless \
             resourceVersion is provided",
        ));
    }
    let revision = parse_revision(asked)?;
    wait_for(api, target, revision).await?;
    if rule == "Exact" && revision > 0 {
        return at_revision(api, target, filter, revision);
    }
    if rule == "Exact" {
        return Err(Status::bad_request(
            "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for \
             resourceVersion \"0\"",
        ));
    }
    let state = api.store.read();
    Ok((state.revision, filter.list(target, &state)))
}

fn at_revision(
    api: &Api,
    target: &Target,
    filter: &Filter,
    revision: u64,
) -> Result<(u64, Listed)> {
    let state = api.store.read();
    if revision > state.revision {
        return Err(Status::too_large_resource_version(revision, state.revision));
    }
    if revision < state.history().compacted {
        let compacted = state.history().compacted;
        let message = format!("too old resource version: {revision} ({compacted})");
        return Err(Status::expired(message));
    }
    let objects = state.list_at(target.number, filter.namespace.as_deref(), revision)?;
    drop(state);
    Ok((revision, filter.keep(target, objects.into_iter())))
}

pub(super) fn parse_revision(text: &str) -> Result<u64> {
    if text.is_empty() {
        return Ok(0);
    }
    let bad = |error: std::num::ParseIntError| {
        Status::bad_request(format!("resourceVersion: Invalid value: \"{text}\": {error}"))
    };
    text.parse().map_err(bad)
}

/// Waits a little for a revision that the client has heard of and this server not yet.
pub(super) async fn wait_for(api: &Api, target: &Target, revision: u64) -> Result<()> {
    let deadline = tokio::time::Instant::now() + CATCH_UP;
    let mut changes = api.store.changes(target.number).ok_or_else(Status::no_such_path)?;
    loop {
        let current = api.store.read().revision;
        if current >= revision {
            return Ok(());
        }
        if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
            return Err(Status::too_large_resource_version(revision, current));
        }
    }
}

fn parse_continue(text: &str) -> Result<Option<Continue>> {
    if text.is_empty() {
        return Ok(None);
    }
    let token = URL_SAFE_NO_PAD.decode(text).ok();
    let token = token.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let bad = || Status::bad_request("continue key is not valid");
    token.map(Some).ok_or_else(bad)
}

fn write_continue(token: &Continue) -> Result<String> {
    let bytes = serde_json::to_vec(token).map_err(Status::internal)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}
