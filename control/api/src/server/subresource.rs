//! The subresources with a kind of their own: scale, binding, eviction, token.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use super::write::{self, Options};
use super::{Api, Request, Target, body, json_response, respond, success};
use super::{delete, identity};
use crate::kinds::Subresource;
use crate::object::{Object, at, is_zero, list_at, object, set, str_at};
use crate::status::{Result, Status};

pub(super) fn get(target: &Target, sub: Subresource, object: &Object) -> Result<Response> {
    match sub {
        Subresource::Status | Subresource::EphemeralContainers => {
            Ok(respond(StatusCode::OK, "application/json", target.serve(object)))
        }
        Subresource::Scale => Ok(json_response(StatusCode::OK, &scale_of(&object.value()))),
        Subresource::Binding
        | Subresource::Eviction
        | Subresource::Token
        | Subresource::Finalize => Err(Status::method_not_allowed()),
    }
}

/// What a workload's scale is.
pub(super) fn scale_of(workload: &Value) -> Value {
    let metadata = at(workload, "metadata");
    let mut kept = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = metadata.get(field) {
            kept[field] = value.clone();
        }
    }
    let selector = at(workload, "spec.selector");
    let selector =
        if is_zero(at(selector, "matchLabels")) && is_zero(at(selector, "matchExpressions")) {
            crate::kinds::columns::labels(selector)
        } else {
            let shown = crate::kinds::columns::selector(selector);
            shown.as_str().unwrap_or_default().to_owned()
        };
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": kept,
        "spec": {"replicas": at(workload, "spec.replicas").as_i64().unwrap_or(0)},
        "status": {
            "replicas": at(workload, "status.replicas").as_i64().unwrap_or(0),
            "selector": selector,
        },
    })
}

/// The workload as a changed scale wants it.
pub(super) fn rescale(workload: &Value, scale: &Value) -> Result<Value> {
    let replicas = at(scale, "spec.replicas").as_i64().unwrap_or(0);
    if !(0..=i64::from(i32::MAX)).contains(&replicas) {
        let name = str_at(workload, "metadata.name");
        let mut status = Status::new(
            422,
            "Invalid",
            format!(
                "Scale.autoscaling \"{name}\" is invalid: spec.replicas: Invalid value: \
                 {replicas}: must be greater than or equal to 0"
            ),
        );
        status.add_causes(&[crate::status::FieldError::invalid(
            "spec.replicas",
            &json!(replicas),
            "must be greater than or equal to 0",
        )]);
        return Err(status);
    }
    let mut new = workload.clone();
    set(&mut new, "spec.replicas", json!(replicas));
    match scale["metadata"].get("resourceVersion") {
        Some(revision) => set(&mut new, "metadata.resourceVersion", revision.clone()),
        None => {
            crate::object::unset(&mut new, "metadata.resourceVersion");
        }
    }
    Ok(new)
}

pub(super) async fn create(
    api: &Arc<Api>,
    request: &Request,
    target: &Target,
    sub: Subresource,
) -> Result<Response> {
    let given = body::parse(request)?;
    let options = Options::of(request)?;
    match sub {
        Subresource::Binding => bind(api, target, &given, options).await,
        Subresource::Eviction => {
            let (named, name) = (str_at(&given, "metadata.name"), target.key().name);
            if named != &*name {
                return Err(Status::bad_request(format!(
                    "name in URL does not match name in Eviction object: {name} != {named}"
                )));
            }
            let delete = given.get("deleteOptions").cloned().unwrap_or_else(|| json!({}));
            let delete = delete::DeleteOptions::read(request, &delete)?;
            let (key, kind) = (target.key(), target.kind);
            api.store
                .write(move |txn| delete::delete_in(txn, kind, &key, &delete).map(|_| ()))
                .await?;
            Ok(json_response(StatusCode::CREATED, &success(&json!({}))))
        }
        Subresource::Token => token(api, target, &given),
        Subresource::Status
        | Subresource::Scale
        | Subresource::Finalize
        | Subresource::EphemeralContainers => Err(Status::method_not_allowed()),
    }
}

/// Puts a pod on a node.
async fn bind(
    api: &Arc<Api>,
    target: &Target,
    binding: &Value,
    options: Options,
) -> Result<Response> {
    let node = str_at(binding, "target.name").to_owned();
    if node.is_empty() {
        return Err(Status::bad_request("target.name: Required value"));
    }
    let uid = str_at(binding, "metadata.uid").to_owned();
    let (key, kind) = (target.key(), target.kind);
    let change = move |pod: &Value| {
        if !uid.is_empty() && uid != str_at(pod, "metadata.uid") {
            let why = "the UID in the precondition does not match the UID in record";
            return Err(Status::conflict(kind, str_at(pod, "metadata.name"), why));
        }
        let name = str_at(pod, "metadata.name");
        let on = str_at(pod, "spec.nodeName");
        if !on.is_empty() {
            let why = format!("pod {name} is already assigned to node \"{on}\"");
            return Err(Status::conflict(kind, name, &why));
        }
        if !str_at(pod, "metadata.deletionTimestamp").is_empty() {
            let why = format!("pod {name} is being deleted, cannot be assigned to a host");
            return Err(Status::conflict(kind, name, &why));
        }
        let mut new = pod.clone();
        set(&mut new, "spec.nodeName", json!(node));
        set_condition(&mut new, "PodScheduled", "True");
        Ok(new)
    };
    let ranges = Arc::clone(&api.ranges);
    let update = write::Update { subresource: Some(Subresource::Binding), options, ranges };
    api.store
        .write(move |txn| write::update_in(txn, kind, &key, &update, change).map(|_| ()))
        .await?;
    Ok(json_response(StatusCode::CREATED, &success(&json!({}))))
}

fn set_condition(pod: &mut Value, form: &str, status: &str) {
    let mut conditions: Vec<Value> = list_at(pod, "status.conditions").to_vec();
    conditions.retain(|one| one["type"] != form);
    conditions.push(json!({
        "type": form, "status": status, "lastProbeTime": null, "lastTransitionTime": identity::now(),
    }));
    set(pod, "status.conditions", Value::Array(conditions));
}

/// A token for a service account.
fn token(api: &Arc<Api>, target: &Target, request: &Value) -> Result<Response> {
    let key = target.key();
    let account = api.store.read().get(&key);
    let account = account.ok_or_else(|| Status::not_found(target.kind, &key.name))?.value();
    let seconds = at(request, "spec.expirationSeconds").as_i64().unwrap_or(3600);
    if !(600..=1 << 32).contains(&seconds) {
        return Err(Status::new(
            422,
            "Invalid",
            format!(
                "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: \
                 Invalid value: {seconds}: may not specify a duration less than 10 minutes"
            ),
        ));
    }
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    let token = api.auth.issue(
        &key.namespace,
        &key.name,
        str_at(&account, "metadata.uid"),
        expires.as_second(),
    );
    let mut answer = request.clone();
    object(&mut answer).insert("kind".into(), json!("TokenRequest"));
    object(&mut answer).insert("apiVersion".into(), json!("authentication.k8s.io/v1"));
    set(&mut answer, "spec.expirationSeconds", json!(seconds));
    let expires = expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    answer["status"] = json!({"token": token, "expirationTimestamp": expires});
    Ok(json_response(StatusCode::CREATED, &answer))
}
