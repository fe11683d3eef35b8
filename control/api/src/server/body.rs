//! Request bodies: bounded, decoded by content type, checked against the kind's type.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

use super::duplicates::duplicates;
use super::{Request, Target};
use crate::object::{object, set, str_at};
use crate::status::{Result, Status};
use crate::wire;

/// The largest body that is read; upstream's limit.
const LIMIT: usize = 3 * 1024 * 1024;

/// What objects may be written as.
const TYPES: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

pub(super) async fn collect(body: Body) -> Result<Bytes> {
    // What is announced to be too large is not waited for.
    if axum::body::HttpBody::size_hint(&body).lower() > LIMIT as u64 {
        return Err(Status::too_large_body(LIMIT));
    }
    match Limited::new(body, LIMIT).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            Err(Status::too_large_body(LIMIT))
        }
        Err(error) => Err(Status::bad_request(format!("cannot read the body: {error}"))),
    }
}

/// The media type of the body, without parameters.
pub(super) fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let value = value.unwrap_or("application/json");
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The body as a value, whatever kind it is of.
pub(super) fn parse(request: &Request) -> Result<Value> {
    let value = match content_type(&request.headers).as_str() {
        "application/json" => serde_json::from_slice(&request.body).map_err(|error| {
            Status::bad_request(format!("couldn't get version/kind; json parse error: {error}"))
        })?,
        "application/yaml" => parse_yaml(&request.body)?,
        wire::PROTOBUF => wire::read(&request.body)?,
        _ => return Err(Status::unsupported_media_type(TYPES)),
    };
    if Value::is_object(&value) {
        Ok(value)
    } else {
        Err(Status::bad_request("couldn't get version/kind; json parse error: expected an object"))
    }
}

pub(crate) fn parse_yaml(body: &[u8]) -> Result<Value> {
    let text = std::str::from_utf8(body)
        .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))?;
    serde_saphyr::from_str(text)
        .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))
}

/// The body as an object of the kind that the path names; its unknown fields go to `warnings`.
pub(super) fn object_of(
    request: &Request,
    target: &Target,
    warnings: &mut Vec<String>,
) -> Result<Value> {
    let value = parse(request)?;
    check_kind(&value, target)?;
    let validation = request.query.get("fieldValidation");
    let json = content_type(&request.headers) == "application/json";
    if json && matches!(validation, "" | "Warn" | "Strict") {
        let twice = duplicates(&request.body);
        report(
            target,
            twice.iter().map(|path| format!("duplicate field \"{path}\"")).collect(),
            validation,
            warnings,
        )?;
    }
    decode(target, value, validation, warnings)
}

/// Refuses what a strict client does not want; warns the others.
fn report(
    target: &Target,
    problems: Vec<String>,
    validation: &str,
    warnings: &mut Vec<String>,
) -> Result<()> {
    if validation == "Strict" && !problems.is_empty() {
        let (kind, version) = (target.kind.kind, target.kind.version);
        return Err(Status::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: strict decoding \
             error: {}",
            problems.join(", ")
        )));
    }
    warnings.extend(problems);
    Ok(())
}

/// The body says the kind that the path says.
pub(super) fn check_kind(value: &Value, target: &Target) -> Result<()> {
    let (version, kind) = (str_at(value, "apiVersion"), str_at(value, "kind"));
    let wanted = target.api_version();
    let missing =
        if kind.is_empty() { Some("Kind") } else { version.is_empty().then_some("apiVersion") };
    if let Some(missing) = missing {
        let message = format!("Object '{missing}' is missing in '{}'", shorten(value));
        return Err(Status::bad_request(message));
    }
    if version != wanted || kind != target.kind.kind {
        return Err(Status::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version \
             ({wanted}), or its kind ({kind}) is not {}",
            target.kind.kind
        )));
    }
    Ok(())
}

fn shorten(value: &Value) -> String {
    value.to_string().chars().take(256).collect()
}

/// Checks types, and drops or refuses what the type does not know.
pub(super) fn decode(
    target: &Target,
    mut value: Value,
    validation: &str,
    warnings: &mut Vec<String>,
) -> Result<Value> {
    if !matches!(validation, "" | "Ignore" | "Warn" | "Strict") {
        return Err(Status::bad_request(format!(
            "fieldValidation: Unsupported value: \"{validation}\": supported values: \"\", \
             \"Ignore\", \"Strict\", \"Warn\""
        )));
    }
    set(&mut value, "apiVersion", target.api_version().into());
    set(&mut value, "kind", target.kind.kind.into());
    object(&mut value).entry("metadata").or_insert_with(|| serde_json::json!({}));
    let fail = |error: serde_json::Error| {
        let version = target.kind.version;
        let kind = target.kind.kind;
        Status::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: json: {error}"
        ))
    };
    let typed = target.decode(value.clone()).map_err(fail)?;
    if validation != "Ignore" {
        let mut unknown = Vec::new();
        compare(&value, &typed, "", &mut unknown);
        report(target, unknown, validation, warnings)?;
    }
    Ok(target.to_core(typed))
}

/// Names the fields that went in and did not come out.
fn compare(given: &Value, typed: &Value, path: &str, unknown: &mut Vec<String>) {
    match (given, typed) {
        (Value::Object(given), Value::Object(typed)) => {
            for (key, value) in given {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match typed.get(key) {
                    Some(typed) => compare(value, typed, &path, unknown),
                    None if value.is_null() => {}
                    None => unknown.push(format!("unknown field \"{path}\"")),
                }
            }
        }
        (Value::Array(given), Value::Array(typed)) => {
            for (i, (given, typed)) in given.iter().zip(typed).enumerate() {
                compare(given, typed, &format!("{path}[{i}]"), unknown);
            }
        }
        _ => {}
    }
}
