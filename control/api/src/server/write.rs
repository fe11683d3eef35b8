//! Create, update, patch, delete: each one transaction.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};

use super::delete::{is_finalized, remove};
use super::identity::{drop_empty, name_it, now, stamp};
use super::subresource::{self, rescale, scale_of};
use super::{Api, Request, Target, body, json_response, respond};
use crate::admission;
use crate::allocate::Ranges;
use crate::auth::{User, escalation};
use crate::kinds::pod::ephemeral;
use crate::kinds::{Kind, Subresource, fields};
use crate::object::{Key, Object, at, is_zero, list_at, object, set, str_at, unset};
use crate::patch::managed::{self, Manager};
use crate::patch::{Patch, apply};
use crate::status::{FieldError, Result, Status};
use crate::store::Txn;

/// What a request says about its own effect.
#[derive(Clone, Debug)]
pub(super) struct Options {
    dry_run: bool,
    manager: String,
    force: bool,
    validation: String,
    user: User,
}

/// How an update is made.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) subresource: Option<Subresource>,
    pub(super) options: Options,
    pub(super) ranges: Arc<Ranges>,
}

impl Options {
    pub(super) fn of(request: &Request) -> Result<Self> {
        let dry_run = match request.query.get("dryRun") {
            "" => false,
            "All" => true,
            other => {
                return Err(Status::bad_request(format!(
                    "dryRun: Unsupported value: \"{other}\": supported values: \"All\""
                )));
            }
        };
        let agent = request.headers.get(http::header::USER_AGENT);
        let agent = agent.and_then(|agent| agent.to_str().ok()).unwrap_or("unknown");
        let manager = match request.query.get("fieldManager") {
            "" => agent.split('/').next().unwrap_or("unknown"),
            manager if manager.len() > 128 => {
                return Err(Status::bad_request(
                    "fieldManager: Too long: may not be more than 128 bytes",
                ));
            }
            manager => manager,
        };
        Ok(Self {
            dry_run,
            manager: manager.to_owned(),
            force: request.query.is_true("force"),
            validation: request.query.get("fieldValidation").to_owned(),
            user: request.user.clone(),
        })
    }

    fn updates(&self, subresource: Option<Subresource>) -> Manager {
        Manager {
            name: self.manager.clone(),
            operation: "Update",
            subresource: subresource.map_or("", Subresource::name),
        }
    }
}

pub(super) async fn create(api: &Arc<Api>, request: &Request, target: &Target) -> Result<Response> {
    if let Some(sub) = target.subresource {
        return subresource::create(api, request, target, sub).await;
    }
    let mut warnings = Vec::new();
    let mut value = body::object_of(request, target, &mut warnings)?;
    check_namespace(&value, target)?;
    if target.kind.namespaced {
        let namespace = target.namespace.clone().unwrap_or_default();
        set(&mut value, "metadata.namespace", json!(namespace));
    }
    let options = Options::of(request)?;
    let (kind, number, ranges) = (target.kind, target.number, Arc::clone(&api.ranges));
    let object = api
        .store
        .write(move |txn| create_in(txn, &ranges, (number, kind), value, &options))
        .await?;
    Ok(answer(StatusCode::CREATED, target, &object, &warnings))
}

pub(super) async fn update(api: &Arc<Api>, request: &Request, target: &Target) -> Result<Response> {
    let mut warnings = Vec::new();
    let options = Options::of(request)?;
    if target.subresource == Some(Subresource::Scale) {
        let scale = body::parse(request)?;
        return scale_with(api, target, options, move |_| Ok(scale)).await;
    }
    let value = body::object_of(request, target, &mut warnings)?;
    check_namespace(&value, target)?;
    check_name(&value, target)?;
    let ranges = Arc::clone(&api.ranges);
    let update = Update { subresource: target.subresource, options, ranges };
    let (key, kind) = (target.key(), target.kind);
    let object =
        api.store.write(move |txn| update_in(txn, kind, &key, &update, move |_| Ok(value))).await?;
    Ok(answer(StatusCode::OK, target, &object, &warnings))
}

pub(super) async fn patch(api: &Arc<Api>, request: &Request, target: &Target) -> Result<Response> {
    let patch = Patch::parse(&body::content_type(&request.headers), &request.body)?;
    let options = Options::of(request)?;
    if let Patch::Apply(config) = patch {
        return apply_config(api, request, target, options, config).await;
    }
    if target.subresource == Some(Subresource::Scale) {
        let change = move |mut scale: Value| patch.apply_to(&mut scale).map(|()| scale);
        return scale_with(api, target, options, change).await;
    }
    let (key, kind, ranges) = (target.key(), target.kind, Arc::clone(&api.ranges));
    let decoder = target.again();
    let update = Update { subresource: target.subresource, options, ranges };
    let (object, warnings) = api
        .store
        .write(move |txn| {
            let mut warnings = Vec::new();
            let validation = update.options.validation.clone();
            let change = |old: &Value| {
                let mut new = decoder.view.map_or_else(|| old.clone(), |v| v.of_core(old.clone()));
                patch.apply_to(&mut new)?;
                body::check_kind(&new, &decoder)?;
                body::decode(&decoder, new, &validation, &mut warnings)
            };
            let object = update_in(txn, kind, &key, &update, change)?;
            Ok((object, warnings))
        })
        .await?;
    Ok(answer(StatusCode::OK, target, &object, &warnings))
}

/// Changes a workload through its scale.
async fn scale_with(
    api: &Arc<Api>,
    target: &Target,
    options: Options,
    change: impl FnOnce(Value) -> Result<Value> + Send + 'static,
) -> Result<Response> {
    let (key, kind, ranges) = (target.key(), target.kind, Arc::clone(&api.ranges));
    let update = Update { subresource: Some(Subresource::Scale), options, ranges };
    let object = api
        .store
        .write(move |txn| {
            let change = |old: &Value| {
                let scale = change(scale_of(old))?;
                rescale(old, &scale)
            };
            update_in(txn, kind, &key, &update, change)
        })
        .await?;
    Ok(json_response(StatusCode::OK, &scale_of(&object.value())))
}

async fn apply_config(
    api: &Arc<Api>,
    request: &Request,
    target: &Target,
    options: Options,
    config: Value,
) -> Result<Response> {
    if request.query.get("fieldManager").is_empty() {
        return Err(Status::bad_request(
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required \
             for apply patch",
        ));
    }
    if target.subresource == Some(Subresource::Scale) {
        return Err(Status::unsupported_media_type(
            "application/json-patch+json, application/merge-patch+json",
        ));
    }
    body::check_kind(&config, target)?;
    check_name(&config, target)?;
    check_namespace(&config, target)?;
    if !is_zero(at(&config, "metadata.managedFields")) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let mut warnings = Vec::new();
    // For its checks only: what the manager leaves out must stay left out.
    body::decode(target, config.clone(), &options.validation, &mut warnings)?;
    let config = match target.view {
        Some(view) => view.to_core(config),
        None => config,
    };
    let (key, kind, number) = (target.key(), target.kind, target.number);
    let (subresource, ranges, decoder) =
        (target.subresource, Arc::clone(&api.ranges), target.again());
    let (created, object) = api
        .store
        .write(move |txn| {
            let manager = Manager {
                name: options.manager.clone(),
                operation: "Apply",
                subresource: subresource.map_or("", Subresource::name),
            };
            if txn.get(&key).is_none() {
                if subresource.is_some() {
                    return Err(Status::not_found(kind, &key.name));
                }
                let value = created_by_apply(&decoder, &key, &config, &manager)?;
                return Ok((true, create_in(txn, &ranges, (number, kind), value, &options)?));
            }
            let update = Update { subresource, options, ranges };
            let force = update.options.force;
            let change = |old: &Value| {
                let (merged, entries) = apply::apply(old, &config, &manager, force)?;
                let mut new = body::decode(&decoder, merged, "Ignore", &mut Vec::new())?;
                stamp_entries(&mut new, entries, &manager);
                Ok(new)
            };
            Ok((false, update_in(txn, kind, &key, &update, change)?))
        })
        .await?;
    let code = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(answer(code, target, &object, &warnings))
}

/// The object that an apply makes where there was none, owned by its manager.
fn created_by_apply(
    target: &Target,
    key: &Key,
    config: &Value,
    manager: &Manager,
) -> Result<Value> {
    let empty = json!({"metadata": {}});
    let (merged, entries) = apply::apply(&empty, config, manager, true)?;
    let mut value = body::decode(target, merged, "Ignore", &mut Vec::new())?;
    set(&mut value, "metadata.name", json!(&*key.name));
    if target.kind.namespaced {
        set(&mut value, "metadata.namespace", json!(&*key.namespace));
    }
    stamp_entries(&mut value, entries, manager);
    Ok(value)
}

fn stamp_entries(value: &mut Value, mut entries: Vec<managed::Entry>, manager: &Manager) {
    for entry in entries.iter_mut().filter(|entry| entry.is_of(manager)) {
        entry.touch(&now());
    }
    managed::write(value, entries);
}

fn answer(code: StatusCode, target: &Target, object: &Object, warnings: &[String]) -> Response {
    let mut response = respond(code, "application/json", target.serve(object));
    for warning in warnings {
        let text = format!("299 - {}", json!(warning));
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
    response
}

fn check_namespace(value: &Value, target: &Target) -> Result<()> {
    let given = str_at(value, "metadata.namespace");
    let wanted = target.namespace.as_deref().unwrap_or_default();
    if given.is_empty() || given == wanted {
        return Ok(());
    }
    Err(Status::bad_request(
        "the namespace of the provided object does not match the namespace sent on the request",
    ))
}

fn check_name(value: &Value, target: &Target) -> Result<()> {
    let given = str_at(value, "metadata.name");
    let wanted = target.name.as_deref().unwrap_or_default();
    if given == wanted || (given.is_empty() && target.subresource.is_none()) {
        return Ok(());
    }
    Err(Status::bad_request(format!(
        "the name of the object ({given}) does not match the name on the URL ({wanted})"
    )))
}

/// Creates an object within a transaction.
pub(super) fn create_in(
    txn: &mut Txn<'_>,
    ranges: &Ranges,
    (number, kind): (usize, &'static Kind),
    mut value: Value,
    options: &Options,
) -> Result<Arc<Object>> {
    if !is_zero(at(&value, "metadata.resourceVersion")) {
        return Err(Status::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    name_it(txn, number, &mut value)?;
    let name = str_at(&value, "metadata.name").to_owned();
    let namespace = str_at(&value, "metadata.namespace").to_owned();
    let key = Key::new(number, &namespace, &name);
    admission::check_namespace(txn, kind, &namespace, &name)?;
    if txn.get(&key).is_some() {
        return Err(Status::already_exists(kind, &name));
    }
    let manager = options.updates(None);
    let applied = at(&value, "metadata.managedFields").clone();
    stamp(&mut value);
    if kind.has(Subresource::Status) && !kind.life.begins_with_status {
        object(&mut value).remove("status");
    }
    if kind.generation {
        set(&mut value, "metadata.generation", json!(1));
    }
    (kind.life.admit)(txn, kind, &mut value)?;
    kind.default(&mut value, None);
    check(kind, &name, &value, None)?;
    escalation::check(txn.committed(), &options.user, kind, &value, None)?;
    (kind.life.allocate)(txn, ranges, &key, &mut value, None)?;
    if is_zero(&applied) {
        managed::update(None, &mut value, &manager, &kind.api_version(), &now());
    } else {
        set(&mut value, "metadata.managedFields", applied);
    }
    let object = txn.put(key, value);
    if options.dry_run {
        txn.discard();
    }
    Ok(object)
}

/// Updates an object within a transaction.
pub(super) fn update_in(
    txn: &mut Txn<'_>,
    kind: &'static Kind,
    key: &Key,
    update: &Update,
    change: impl FnOnce(&Value) -> Result<Value>,
) -> Result<Arc<Object>> {
    let Update { subresource, options, ranges } = update;
    let stored = txn.get(key).ok_or_else(|| Status::not_found(kind, &key.name))?;
    let old = stored.value();
    let mut new = change(&old)?;
    check_preconditions(kind, key, &old, at(&new, "metadata"))?;
    keep_identity(&mut new, &old);
    drop_empty(&mut new);
    keep_other_part(&mut new, &old, kind, *subresource);
    if subresource.is_none() {
        kind.default(&mut new, Some(&old));
    }
    if kind.generation && !desires_the_same(&old, &new) {
        let generation = at(&old, "metadata.generation").as_i64().unwrap_or(0) + 1;
        set(&mut new, "metadata.generation", json!(generation));
    }
    if *subresource == Some(Subresource::EphemeralContainers) {
        let errors = ephemeral::check(&new, &old);
        if !errors.is_empty() {
            return Err(Status::invalid(kind, &key.name, &errors));
        }
    } else if !matches!(subresource, Some(Subresource::Status | Subresource::Finalize)) {
        let binding = *subresource == Some(Subresource::Binding);
        if !binding {
            check(kind, &key.name, &new, Some(&old))?;
            escalation::check(txn.committed(), &options.user, kind, &new, Some(&old))?;
        }
    }
    if subresource.is_none() {
        (kind.life.allocate)(txn, ranges, key, &mut new, Some(&old))?;
    }
    if says_the_same(&old, &new) {
        return Ok(stored);
    }
    let manager = options.updates(*subresource);
    if applied(&new, &old) {
        keep_entries_of_vanished_fields(&mut new);
    } else {
        managed::update(Some(&old), &mut new, &manager, &kind.api_version(), &now());
    }
    let object =
        if is_finalized(&new) { remove(txn, kind, key, new) } else { txn.put(key.clone(), new) };
    if options.dry_run {
        txn.discard();
    }
    Ok(object)
}

/// Whether the owners of fields came with the new version: an apply, or a client that edits them.
fn applied(new: &Value, old: &Value) -> bool {
    let entries = at(new, "metadata.managedFields");
    !is_zero(entries) && entries != at(old, "metadata.managedFields")
}

fn keep_entries_of_vanished_fields(new: &mut Value) {
    let entries = managed::read(new);
    managed::write(new, entries);
}

/// Whether two versions differ in nothing but their revision and when who wrote what.
fn says_the_same(a: &Value, b: &Value) -> bool {
    let metadata = |value: &Value| {
        let mut metadata = at(value, "metadata").clone();
        unset(&mut metadata, "resourceVersion");
        for entry in metadata["managedFields"].as_array_mut().into_iter().flatten() {
            object(entry).remove("time");
        }
        metadata
    };
    same_but_for(&["metadata"], a, b) && metadata(a) == metadata(b)
}

/// Whether two versions desire the same.
fn desires_the_same(a: &Value, b: &Value) -> bool {
    same_but_for(&["metadata", "status"], a, b)
}

fn same_but_for(parts: &[&str], a: &Value, b: &Value) -> bool {
    let rest = |value| -> Vec<(&String, &Value)> {
        let all = Value::as_object(value).into_iter().flatten();
        all.filter(|(part, _)| !parts.contains(&part.as_str())).collect()
    };
    rest(a) == rest(b)
}

/// What a client cannot change by writing it.
fn keep_identity(new: &mut Value, old: &Value) {
    object(new).entry("metadata").or_insert_with(|| json!({}));
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
        "generateName",
    ] {
        match old["metadata"].get(field) {
            Some(value) => new["metadata"][field] = value.clone(),
            None => {
                object(&mut new["metadata"]).remove(field);
            }
        }
    }
    if is_zero(at(new, "metadata.managedFields")) {
        let entries = at(old, "metadata.managedFields").clone();
        set(new, "metadata.managedFields", entries);
    }
}

/// An update of an object leaves its status alone, and an update of its status the rest.
fn keep_other_part(new: &mut Value, old: &Value, kind: &Kind, subresource: Option<Subresource>) {
    let keep = |new: &mut Value, field: &str| match old.get(field) {
        Some(value) => new[field] = value.clone(),
        None => {
            object(new).remove(field);
        }
    };
    match subresource {
        None if kind.has(Subresource::Status) => {
            keep(new, "status");
            for field in kind.life.kept {
                set(new, field, at(old, field).clone());
            }
        }
        Some(Subresource::Status) => {
            let status = new.get("status").cloned();
            let metadata = new["metadata"].clone();
            for (field, value) in old.as_object().into_iter().flatten() {
                new[field] = value.clone();
            }
            for field in ["labels", "annotations", "managedFields"] {
                match metadata.get(field) {
                    Some(value) => new["metadata"][field] = value.clone(),
                    None => {
                        object(&mut new["metadata"]).remove(field);
                    }
                }
            }
            match status {
                Some(status) => new["status"] = status,
                None => {
                    object(new).remove("status");
                }
            }
        }
        Some(Subresource::EphemeralContainers) => {
            let all = at(new, "spec.ephemeralContainers").clone();
            *new = old.clone();
            if !is_zero(&all) {
                set(new, "spec.ephemeralContainers", all);
            }
            ephemeral::default(new);
        }
        Some(Subresource::Finalize) => {
            let finalizers = at(new, "spec.finalizers").clone();
            *new = old.clone();
            set(new, "spec.finalizers", finalizers);
        }
        _ => {}
    }
}

fn check(kind: &'static Kind, name: &str, new: &Value, old: Option<&Value>) -> Result<()> {
    let mut errors = Vec::new();
    if old.is_none()
        && let Some(why) = (kind.name_rule)(name)
    {
        errors.push(FieldError::invalid("metadata.name", &json!(name), why));
    }
    fields::check_metadata(new, &mut errors);
    if let Some(old) = old {
        check_finalizers(new, old, &mut errors);
    }
    errors.extend(kind.check(new, old));
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(kind, name, &errors)) }
}

/// Once an object is being deleted, nobody new can hold it back.
fn check_finalizers(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if str_at(old, "metadata.deletionTimestamp").is_empty() {
        return;
    }
    let held = list_at(old, "metadata.finalizers");
    if list_at(new, "metadata.finalizers").iter().any(|one| !held.contains(one)) {
        let why = "no new finalizers can be added if the object is being deleted";
        errors.push(FieldError::forbidden("metadata.finalizers", why));
    }
}

pub(super) fn check_preconditions(
    kind: &Kind,
    key: &Key,
    old: &Value,
    wanted: &Value,
) -> Result<()> {
    let (uid, now) = (str_at(wanted, "uid"), str_at(old, "metadata.uid"));
    if !uid.is_empty() && uid != now {
        let why =
            format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {now}");
        return Err(Status::conflict(kind, &key.name, &why));
    }
    let revision = str_at(wanted, "resourceVersion");
    if !revision.is_empty() && revision != str_at(old, "metadata.resourceVersion") {
        return Err(Status::stale(kind, &key.name));
    }
    Ok(())
}
