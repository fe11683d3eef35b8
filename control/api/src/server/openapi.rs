//! `OpenAPI` as far as kubectl needs it: which kinds there are, their fields with types (no prose),
//! and that the server validates them itself.

use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use super::{Request, discovery, json_response, negotiate, respond};
use crate::kinds::{KINDS, Kind};
use crate::patch::lists::{ListKind, merge_key};
use crate::status::{Result, Status};
use crate::wire;

const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

pub(super) fn v3_index() -> Value {
    let mut paths = serde_json::Map::new();
    let groups = discovery::named_groups();
    let named = groups.iter().map(|group| format!("apis/{group}/v1"));
    for path in std::iter::once("api/v1".to_owned()).chain(named) {
        let url = format!("/openapi/v3/{path}?hash={}", env!("CARGO_PKG_VERSION"));
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

pub(super) fn v3(path: &str) -> Result<Response> {
    let group = match path {
        "api/v1" => "",
        _ => path
            .strip_prefix("apis/")
            .and_then(|rest| rest.strip_suffix("/v1"))
            .filter(|group| discovery::named_groups().contains(group))
            .ok_or_else(Status::no_such_path)?,
    };
    let mut paths = serde_json::Map::new();
    let mut schemas = serde_json::Map::new();
    for kind in KINDS.iter().filter(|kind| kind.group == group) {
        let (path, operation) = patch_operation(kind);
        paths.insert(path, operation);
        add_schemas(kind, &mut schemas);
    }
    let document = json!({
        "openapi": "3.0.0", "info": info(), "paths": paths, "components": {"schemas": schemas},
    });
    Ok(json_response(StatusCode::OK, &document))
}

/// kubectl reads from this that the server itself validates fields.
fn patch_operation(kind: &Kind) -> (String, Value) {
    let prefix = if kind.group.is_empty() {
        "/api/v1".to_owned()
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    let namespace = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let path = format!("{prefix}{namespace}/{}/{{name}}", kind.plural);
    let parameters: Vec<Value> = ["dryRun", "fieldManager", "fieldValidation", "force"]
        .into_iter()
        .map(|name| {
            let form = if name == "force" { "boolean" } else { "string" };
            json!({"name": name, "in": "query", "schema": {"type": form, "uniqueItems": true}})
        })
        .collect();
    let operation = json!({
        "operationId": format!("patch{}", kind.kind),
        "parameters": parameters,
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": "patch",
        "x-kubernetes-group-version-kind": group_version_kind(kind),
    });
    (path, json!({"patch": operation}))
}

fn group_version_kind(kind: &Kind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

fn definition(kind: &Kind) -> String {
    let name = wire::type_of(&kind.api_version(), kind.kind).unwrap_or(kind.kind);
    format!("fairlead.{name}")
}

/// The kind without its fields.
fn bare_schema(kind: &Kind) -> Value {
    json!({
        "type": "object",
        "x-kubernetes-group-version-kind": [group_version_kind(kind)],
        "x-kubernetes-preserve-unknown-fields": true,
    })
}

/// The kind's type, and all types below it.
fn add_schemas(kind: &Kind, schemas: &mut serde_json::Map<String, Value>) {
    let Some(root) = wire::type_of(&kind.api_version(), kind.kind) else {
        schemas.insert(definition(kind), bare_schema(kind));
        return;
    };
    let mut waiting = vec![root];
    while let Some(name) = waiting.pop() {
        if schemas.contains_key(&format!("fairlead.{name}")) {
            continue;
        }
        let mut properties = serde_json::Map::new();
        add_properties(name, &mut properties, &mut waiting);
        let mut schema = json!({"type": "object"});
        if name == root {
            properties.insert("apiVersion".into(), json!({"type": "string"}));
            properties.insert("kind".into(), json!({"type": "string"}));
            schema["x-kubernetes-group-version-kind"] = json!([group_version_kind(kind)]);
        }
        schema["properties"] = Value::Object(properties);
        schemas.insert(format!("fairlead.{name}"), schema);
    }
}

fn add_properties(
    name: &'static str,
    properties: &mut serde_json::Map<String, Value>,
    waiting: &mut Vec<&'static str>,
) {
    for field in wire::TYPES.get(name).into_iter().flatten() {
        if field.name == "-" {
            add_properties(field.of, properties, waiting);
            continue;
        }
        let one = match field.of {
            "bool" => json!({"type": "boolean"}),
            "int32" | "int64" => json!({"type": "integer", "format": field.of}),
            "string" | "resource.Quantity" => json!({"type": "string"}),
            "bytes" => json!({"type": "string", "format": "byte"}),
            "meta.Time" | "meta.MicroTime" => json!({"type": "string", "format": "date-time"}),
            "intstr.IntOrString" => json!({"type": "string", "format": "int-or-string"}),
            "meta.FieldsV1" | "runtime.RawExtension" => json!({"type": "object"}),
            of => {
                waiting.push(of);
                json!({"$ref": format!("#/components/schemas/fairlead.{of}")})
            }
        };
        let schema = match field.shape {
            wire::Shape::One => one,
            wire::Shape::List => list_schema(name, field.name, &one),
            wire::Shape::Map => json!({"type": "object", "additionalProperties": one}),
        };
        properties.insert(field.name.into(), schema);
    }
}

/// A list says how it merges, for clients that make patches.
fn list_schema(of: &str, field: &str, items: &Value) -> Value {
    let mut schema = json!({"type": "array", "items": items});
    let strategy = "x-kubernetes-patch-strategy";
    match merge_key(parent_field(of), field) {
        ListKind::Map([key, ..]) => {
            schema[strategy] = json!("merge");
            schema["x-kubernetes-patch-merge-key"] = json!(key);
        }
        ListKind::Set => schema[strategy] = json!("merge"),
        _ => {}
    }
    schema
}

/// The field in which objects of a type are found, as the table of lists names it.
fn parent_field(of: &str) -> &'static str {
    let name = of.rsplit('.').next().unwrap_or_default();
    match name {
        "Container" => "containers",
        "EphemeralContainer" | "EphemeralContainerCommon" => "ephemeralContainers",
        "ObjectMeta" => "metadata",
        _ if name.ends_with("Spec") => "spec",
        _ if name.ends_with("Status") => "status",
        _ => "",
    }
}

fn info() -> Value {
    json!({"title": "Fairlead", "version": env!("CARGO_PKG_VERSION")})
}

/// The older document, which older kubectls want as protobuf.
pub(super) fn v2(request: &Request) -> Result<Response> {
    let accept = negotiate::accept(&request.headers);
    if accept.contains("proto-openapi") {
        return Ok(respond(StatusCode::OK, PROTOBUF, protobuf()));
    }
    let document =
        json!({"swagger": "2.0", "info": info(), "paths": {}, "definitions": definitions()});
    Ok(json_response(StatusCode::OK, &document))
}

/// All kinds' types, as the older document refers to them.
fn definitions() -> Value {
    let mut schemas = serde_json::Map::new();
    for kind in KINDS {
        add_schemas(kind, &mut schemas);
    }
    Value::Object(schemas)
}

/// The document in the protobuf form of gnostic's `openapiv2.Document`.
fn protobuf() -> Vec<u8> {
    let mut info = field(1, b"Fairlead");
    info.extend(field(2, env!("CARGO_PKG_VERSION").as_bytes()));
    let mut document = field(1, b"2.0");
    document.extend(field(2, &info));
    document.extend(field(8, b""));
    document.extend(field(9, &named_schemas(&definitions())));
    document
}

/// Schemas by name, as `Definitions` and `Properties` hold them.
fn named_schemas(schemas: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, schema) in schemas.as_object().into_iter().flatten() {
        let mut named = field(1, name.as_bytes());
        named.extend(field(2, &schema_message(schema)));
        out.extend(field(1, &named));
    }
    out
}

/// One `Schema`: those of its fields that our schemas use.
fn schema_message(schema: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in schema.as_object().into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        match key.as_str() {
            "$ref" => {
                let name = text.rsplit('/').next().unwrap_or_default();
                out.extend(field(1, format!("#/definitions/{name}").as_bytes()));
            }
            "format" => out.extend(field(2, text.as_bytes())),
            "additionalProperties" => out.extend(field(21, &field(1, &schema_message(value)))),
            "type" => out.extend(field(22, &field(1, text.as_bytes()))),
            "items" => out.extend(field(23, &field(1, &schema_message(value)))),
            "properties" => out.extend(field(25, &named_schemas(value))),
            // A `NamedAny` holds an `Any`, whose second field is YAML; JSON is YAML.
            extension if extension.starts_with("x-") => {
                let mut named = field(1, extension.as_bytes());
                named.extend(field(2, &field(2, value.to_string().as_bytes())));
                out.extend(field(31, &named));
            }
            _ => {}
        }
    }
    out
}

/// A length-delimited protobuf field.
fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 6);
    varint(&mut out, (number << 3) | 2);
    varint(&mut out, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(bytes);
    out
}

fn varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}
