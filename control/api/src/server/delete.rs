//! Delete: at once, or marked and held back by finalizers or a grace period.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::identity::format_time;
use super::write::check_preconditions;
use super::{Api, Request, Target, body, json_response, respond, success};
use crate::kinds::Kind;
use crate::object::{Key, Object, at, list_at, set, str_at};
use crate::status::{Result, Status};
use crate::store::Txn;

/// What a deletion asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct DeleteOptions {
    grace: Option<i64>,
    preconditions: Value,
    propagation: String,
    dry_run: bool,
}

impl DeleteOptions {
    pub(super) fn read(request: &Request, body: &Value) -> Result<Self> {
        let query = &request.query;
        let in_query = query.get("gracePeriodSeconds").parse().ok();
        let grace = at(body, "gracePeriodSeconds").as_i64().or(in_query);
        let orphan = at(body, "orphanDependents").as_bool();
        let propagation = match (str_at(body, "propagationPolicy"), query.get("propagationPolicy"))
        {
            ("", "") if orphan == Some(true) => "Orphan",
            ("", policy) => policy,
            (policy, _) => policy,
        };
        if !matches!(propagation, "" | "Background" | "Foreground" | "Orphan") {
            return Err(Status::new(
                422,
                "Invalid",
                format!(
                    "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported \
                     value: \"{propagation}\": supported values: \"Background\", \"Foreground\", \
                     \"Orphan\""
                ),
            ));
        }
        let dry_run =
            query.get("dryRun") == "All" || list_at(body, "dryRun").iter().any(|one| one == "All");
        Ok(Self {
            grace,
            preconditions: at(body, "preconditions").clone(),
            propagation: propagation.to_owned(),
            dry_run,
        })
    }

    fn of(request: &Request) -> Result<Self> {
        if request.body.is_empty() {
            return Self::read(request, &Value::Null);
        }
        Self::read(request, &body::parse(request)?)
    }
}

pub(super) async fn delete(api: &Arc<Api>, request: &Request, target: &Target) -> Result<Response> {
    let options = DeleteOptions::of(request)?;
    let (key, kind) = (target.key(), target.kind);
    let deleted = api.store.write(move |txn| delete_in(txn, kind, &key, &options)).await?;
    Ok(match deleted {
        Deleted::Gone(object) => {
            let value = object.value();
            let mut details = json!({
                "name": at(&value, "metadata.name"), "kind": kind.plural,
                "uid": at(&value, "metadata.uid"),
            });
            if !kind.group.is_empty() {
                details["group"] = json!(kind.group);
            }
            json_response(StatusCode::OK, &success(&details))
        }
        Deleted::Going(object) => {
            respond(StatusCode::OK, "application/json", target.serve(&object))
        }
    })
}

pub(super) async fn delete_collection(
    api: &Arc<Api>,
    request: &Request,
    target: &Target,
) -> Result<Response> {
    let options = DeleteOptions::of(request)?;
    let filter = super::read::Filter::of(request, target)?;
    let (kind, number) = (target.kind, target.number);
    let (decoder, version) = (target.again(), target.api_version());
    let deleted = api
        .store
        .write(move |txn| {
            let all = txn.list(number, filter.namespace.as_deref());
            let matching =
                all.into_iter().filter(|(key, object)| filter.matches(&decoder, key, object));
            let mut deleted = Vec::new();
            for (key, object) in matching.collect::<Vec<_>>() {
                delete_in(txn, kind, &key, &options)?;
                deleted.push(object.value());
            }
            Ok(deleted)
        })
        .await?;
    let list = json!({
        "kind": format!("{}List", kind.kind), "apiVersion": version,
        "metadata": {"resourceVersion": api.store.read().revision.to_string()}, "items": deleted,
    });
    Ok(json_response(StatusCode::OK, &list))
}

/// What a deletion came to.
pub(super) enum Deleted {
    Gone(Arc<Object>),
    /// Marked; someone holds it back, or it is given time.
    Going(Arc<Object>),
}

/// Deletes an object, or marks it, within a transaction.
pub(super) fn delete_in(
    txn: &mut Txn<'_>,
    kind: &'static Kind,
    key: &Key,
    options: &DeleteOptions,
) -> Result<Deleted> {
    let stored = txn.get(key).ok_or_else(|| Status::not_found(kind, &key.name))?;
    let mut value = stored.value();
    check_preconditions(kind, key, &value, &options.preconditions)?;
    if (kind.life.stays)(&key.name) {
        let why = format!("this {} may not be deleted", kind.kind.to_lowercase());
        return Err(Status::forbidden(kind, &key.name, &why));
    }
    let marked = !str_at(&value, "metadata.deletionTimestamp").is_empty();
    if let Some(finalizer) = match options.propagation.as_str() {
        "Orphan" => Some("orphan"),
        "Foreground" => Some("foregroundDeletion"),
        _ => None,
    } && !marked
    {
        let mut finalizers = list_at(&value, "metadata.finalizers").to_vec();
        if !finalizers.iter().any(|one| one == finalizer) {
            finalizers.push(json!(finalizer));
        }
        set(&mut value, "metadata.finalizers", json!(finalizers));
    }
    let grace = (kind.life.grace)(&value, options.grace);
    let left = at(&value, "metadata.deletionGracePeriodSeconds").as_i64();
    if !marked || left.is_some_and(|left| grace < left) {
        let time = Timestamp::now() + SignedDuration::from_secs(grace);
        set(&mut value, "metadata.deletionTimestamp", json!(format_time(time)));
        set(&mut value, "metadata.deletionGracePeriodSeconds", json!(grace));
        if kind.generation {
            let generation = at(&value, "metadata.generation").as_i64().unwrap_or(0) + 1;
            set(&mut value, "metadata.generation", json!(generation));
        }
    }
    (kind.life.going)(&mut value);
    let deleted = if is_finalized(&value) {
        Deleted::Gone(remove(txn, kind, key, value))
    } else if value == stored.value() {
        Deleted::Going(stored)
    } else {
        Deleted::Going(txn.put(key.clone(), value))
    };
    (kind.life.retire)(txn);
    if options.dry_run {
        txn.discard();
    }
    Ok(deleted)
}

/// Whether an object that is being deleted may go now.
pub(super) fn is_finalized(value: &Value) -> bool {
    !str_at(value, "metadata.deletionTimestamp").is_empty()
        && list_at(value, "metadata.finalizers").is_empty()
        && list_at(value, "spec.finalizers").is_empty()
        && at(value, "metadata.deletionGracePeriodSeconds").as_i64().unwrap_or(0) == 0
}

pub(super) fn remove(txn: &mut Txn<'_>, kind: &Kind, key: &Key, value: Value) -> Arc<Object> {
    (kind.life.release)(txn, &value);
    txn.delete(key.clone(), value)
}
