//! What the client accepts: JSON objects, tables, or metadata only.

use http::{HeaderMap, header};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::query::Query;
use super::{Request, Target};
use crate::object::at;
use crate::status::{Result, Status};

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Object,
    Table { include: Include },
    Metadata,
}

/// What a table's rows carry of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Include {
    None,
    Metadata,
    Object,
}

const SERVED: &str = "application/json, application/yaml";

/// The form that the client likes best among those we have.
pub(super) fn form(request: &Request) -> Result<Form> {
    let accept = accept(&request.headers);
    if accept.trim().is_empty() {
        return Ok(Form::Object);
    }
    for one in accept.split(',') {
        let mut parts = one.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        if !matches!(media, "application/json" | "*/*" | "application/*") {
            continue;
        }
        let parts: Vec<&str> = parts.collect();
        let find = |name: &str| parts.iter().find_map(|part| part.strip_prefix(name));
        let known = matches!(find("g="), None | Some("meta.k8s.io"))
            && matches!(find("v="), None | Some("v1" | "v1beta1"));
        match find("as=") {
            None => return Ok(Form::Object),
            Some("Table") if known => return Ok(Form::Table { include: include(&request.query) }),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") if known => {
                return Ok(Form::Metadata);
            }
            Some(_) => {}
        }
    }
    Err(Status::not_acceptable(SERVED))
}

pub(super) fn accept(headers: &HeaderMap) -> String {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.collect::<Vec<_>>().join(",")
}

fn include(query: &Query) -> Include {
    match query.get("includeObject") {
        "None" => Include::None,
        "Object" => Include::Object,
        _ => Include::Metadata,
    }
}

/// Writes an object's metadata and nothing else; the rest is only read over.
pub(super) fn write_metadata(object: &[u8], to: &mut Vec<u8>) {
    #[derive(Deserialize)]
    struct OnlyMetadata {
        metadata: Map<String, Value>,
    }
    // The bytes were written by the store, with metadata.
    if let Ok(OnlyMetadata { metadata }) = serde_json::from_slice(object) {
        let object = metadata_only(&json!({"metadata": metadata}));
        to.extend_from_slice(object.to_string().as_bytes());
    }
}

/// The same of a value.
fn metadata_only(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": at(object, "metadata"),
    })
}

/// Objects as a table; `definitions` are left out after the first of a watch.
pub(super) fn table(
    target: &Target,
    objects: &[Value],
    include: Include,
    metadata: &Value,
    definitions: bool,
) -> Value {
    let now = Timestamp::now();
    let columns = target.kind.columns;
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let core = target.to_core(object.clone());
            let cells: Vec<Value> = columns.iter().map(|column| column.show(&core, now)).collect();
            let mut row = json!({"cells": cells});
            match include {
                Include::None => {}
                Include::Metadata => row["object"] = metadata_only(object),
                Include::Object => row["object"] = object.clone(),
            }
            row
        })
        .collect();
    let definitions: Vec<Value> = if definitions {
        columns.iter().map(super::super::kinds::columns::Column::definition).collect()
    } else {
        Vec::new()
    };
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows,
    })
}
