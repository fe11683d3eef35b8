//! Namespaces, and what is kept in them for others to read: config maps, secrets, service
//! accounts, events.

use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use super::columns::{AGE, Cell, NAME, integer, joined, text, wide};
use super::fields::Check::{Immutable, NotNegative, Required};
use super::fields::Literal::Text;
use super::life::Life;
use super::{Kind, Subresource, decode, row};
use crate::names;
use crate::object::{at, is_zero, object, set, str_at};
use crate::status::FieldError;

pub(super) const NAMESPACE: Kind = Kind {
    short_names: &["ns"],
    namespaced: false,
    subresources: &[Subresource::Status, Subresource::Finalize],
    selectable: &["status.phase"],
    name_rule: names::dns_label,
    prepare: |namespace, old| {
        if old.is_none() {
            set(namespace, "spec.finalizers", json!(["kubernetes"]));
            set(namespace, "status.phase", json!("Active"));
        }
        let name = at(namespace, "metadata.name").clone();
        let labels = object(&mut namespace["metadata"]).entry("labels").or_insert(json!({}));
        object(labels).insert("kubernetes.io/metadata.name".into(), name);
    },
    columns: &[NAME, text("Status", Cell::Path("status.phase")), AGE],
    life: Life {
        kept: &["spec.finalizers"],
        stays: |name| matches!(name, "default" | "kube-system" | "kube-public"),
        going: |namespace| set(namespace, "status.phase", json!("Terminating")),
        ..Life::PLAIN
    },
    ..row("", "Namespace", "namespaces", decode::<core::Namespace>)
};

pub(super) const CONFIG_MAP: Kind = Kind {
    short_names: &["cm"],
    validate: |map, old, errors| {
        for field in ["data", "binaryData"] {
            check_keys(map, field, errors);
        }
        let both = |key: &&String| map["binaryData"].get(key.as_str()).is_some();
        let keys = map["data"].as_object().into_iter().flat_map(|data| data.keys());
        for key in keys.filter(both) {
            errors.push(FieldError::invalid(
                format!("data[{key}]"),
                &json!(key),
                "duplicate of key present in binaryData",
            ));
        }
        check_immutable(map, old, &["data", "binaryData"], errors);
    },
    columns: &[
        NAME,
        integer("Data", Cell::Of(|map| json!(count(&map["data"]) + count(&map["binaryData"])))),
        AGE,
    ],
    ..row("", "ConfigMap", "configmaps", decode::<core::ConfigMap>)
};

pub(super) const SECRET: Kind = Kind {
    selectable: &["type"],
    defaults: &[("type", Text("Opaque"))],
    prepare: |secret, _| {
        let Some(Value::Object(strings)) = object(secret).remove("stringData") else { return };
        let data = object(secret).entry("data").or_insert(json!({}));
        for (key, value) in strings {
            use base64::Engine;
            let text = value.as_str().unwrap_or_default();
            let encoded = base64::engine::general_purpose::STANDARD.encode(text);
            object(data).insert(key, json!(encoded));
        }
    },
    rules: &[("type", Immutable)],
    validate: |secret, old, errors| {
        check_keys(secret, "data", errors);
        check_immutable(secret, old, &["data"], errors);
    },
    columns: &[
        NAME,
        text("Type", Cell::Path("type")),
        integer("Data", Cell::Of(|secret| json!(count(&secret["data"])))),
        AGE,
    ],
    ..row("", "Secret", "secrets", decode::<core::Secret>)
};

pub(super) const SERVICE_ACCOUNT: Kind = Kind {
    short_names: &["sa"],
    subresources: &[Subresource::Token],
    columns: &[
        NAME,
        integer("Secrets", Cell::Of(|account| json!(count(&account["secrets"])))),
        AGE,
    ],
    ..row("", "ServiceAccount", "serviceaccounts", decode::<core::ServiceAccount>)
};

pub(super) const EVENT: Kind = Kind {
    short_names: &["ev"],
    selectable: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    rules: &[("count", NotNegative), ("involvedObject", Required)],
    columns: &[
        text("Last Seen", Cell::Of(last_seen)),
        text("Type", Cell::Path("type")),
        text("Reason", Cell::Path("reason")),
        text(
            "Object",
            Cell::Of(|event| {
                let kind = str_at(event, "involvedObject.kind").to_lowercase();
                json!(format!("{kind}/{}", str_at(event, "involvedObject.name")))
            }),
        ),
        wide(text("Source", Cell::Of(|event| joined(std::iter::once(component(event)))))),
        text("Message", Cell::Path("message")),
        wide(text("First Seen", Cell::Since("firstTimestamp"))),
        wide(integer("Count", Cell::Path("count"))),
        wide(NAME),
    ],
    ..row("", "Event", "events", decode::<core::Event>)
};

fn component(event: &Value) -> &str {
    match str_at(event, "source.component") {
        "" => str_at(event, "reportingComponent"),
        component => component,
    }
}

fn last_seen(event: &Value) -> Value {
    let time =
        ["series.lastObservedTime", "lastTimestamp", "eventTime", "metadata.creationTimestamp"]
            .into_iter()
            .map(|path| str_at(event, path))
            .find(|time| !time.is_empty());
    json!(super::columns::since(time.unwrap_or_default(), jiff::Timestamp::now()))
}

fn count(value: &Value) -> usize {
    match value {
        Value::Object(map) => map.len(),
        Value::Array(list) => list.len(),
        _ => 0,
    }
}

fn check_keys(value: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let mut size = 0;
    for (key, value) in value[field].as_object().into_iter().flatten() {
        size += key.len() + value.as_str().map_or(0, str::len);
        if let Some(why) = names::config_key(key) {
            errors.push(FieldError::invalid(format!("{field}[{key}]"), &json!(key), why));
        }
    }
    if size > 1024 * 1024 {
        let message = "Too long: may not be more than 1048576 bytes".into();
        errors.push(FieldError { reason: "FieldValueTooLong", field: field.into(), message });
    }
}

fn check_immutable(
    value: &Value,
    old: Option<&Value>,
    fields: &[&str],
    errors: &mut Vec<FieldError>,
) {
    let Some(old) = old.filter(|old| old["immutable"] == true) else { return };
    if value["immutable"] != true {
        errors.push(FieldError::forbidden("immutable", WHY_IMMUTABLE));
    }
    for field in fields {
        if old[*field] != value[*field] && !(is_zero(&old[*field]) && is_zero(&value[*field])) {
            errors.push(FieldError::forbidden(*field, WHY_IMMUTABLE));
        }
    }
}

const WHY_IMMUTABLE: &str = "field is immutable when `immutable` is set";
