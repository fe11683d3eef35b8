//! Defaults and rules as tables: a path, and what holds there.
//!
//! A path is dotted; `[]` after a name stands for every element of the list, `{}` for every value
//! of the map.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::names;
use crate::object::{at, is_zero};
use crate::quantity;
use crate::selector::{is_label_key, is_label_value};
use crate::status::FieldError;

/// A value that a table can hold.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Literal {
    Text(&'static str),
    Number(i64),
    Bool(bool),
    Object,
}

/// What a field is when the client left it out, wherever its parent is there.
pub(crate) type Default = (&'static str, Literal);

/// What must hold at a path.
pub(crate) type Rule = (&'static str, Check);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Check {
    /// There, and not empty.
    Required,
    OneOf(&'static [&'static str]),
    Range(i64, i64),
    NotNegative,
    /// The same as in the old object.
    Immutable,
    Name(fn(&str) -> Option<&'static str>),
    Quantity,
    Port,
    Ip,
    Labels,
    /// No two elements of the list have the same value in this field.
    Unique(&'static str),
}

/// Sets the defaults below `prefix`.
pub(crate) fn apply(defaults: &[Default], prefix: &str, value: &mut Value) {
    let Some(value) = descend(value, prefix) else { return };
    for (path, literal) in defaults {
        set_missing(value, path, *literal);
    }
}

fn descend<'a>(value: &'a mut Value, prefix: &str) -> Option<&'a mut Value> {
    let mut here = value;
    for part in prefix.split('.').filter(|part| !part.is_empty()) {
        here = here.get_mut(part)?;
    }
    Some(here)
}

fn set_missing(value: &mut Value, path: &str, literal: Literal) {
    let Some((head, rest)) = path.split_once('.') else {
        if let Value::Object(map) = value {
            let slot = map.entry(path).or_insert(Value::Null);
            if slot.is_null() || (slot.as_str() == Some("") && matches!(literal, Literal::Text(_)))
            {
                *slot = literal.to_value();
            }
        }
        return;
    };
    if let Some(list) = head.strip_suffix("[]") {
        for item in value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            set_missing(item, rest, literal);
        }
    } else if let Some(child) = value.get_mut(head) {
        set_missing(child, rest, literal);
    }
}

impl Literal {
    fn to_value(self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Number(number) => json!(number),
            Self::Bool(yes) => json!(yes),
            Self::Object => json!({}),
        }
    }
}

/// Writes every quantity below `value` as upstream does: they are where the API has them.
pub(crate) fn canonicalise_quantities(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), &mut *value) {
                    ("requests" | "limits" | "capacity" | "allocatable", Value::Object(of)) => {
                        of.values_mut().for_each(canonicalise);
                    }
                    ("sizeLimit" | "divisor", quantity) => canonicalise(quantity),
                    (_, value) => canonicalise_quantities(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(canonicalise_quantities),
        _ => {}
    }
}

fn canonicalise(value: &mut Value) {
    if let Value::String(text) = value {
        *text = quantity::canonical(text);
    }
}

/// Checks the rules below `prefix`.
pub(crate) fn check(
    rules: &[Rule],
    prefix: &str,
    value: &Value,
    old: Option<&Value>,
    errors: &mut Vec<FieldError>,
) {
    for (path, check) in rules {
        let path = if prefix.is_empty() { (*path).to_owned() } else { format!("{prefix}.{path}") };
        if matches!(check, Check::Immutable) {
            if let Some(old) = old
                && at(old, &path) != at(value, &path)
            {
                errors.push(FieldError::invalid(&path, at(value, &path), "field is immutable"));
            }
            continue;
        }
        let mut found = Vec::new();
        collect(value, &path, "", &mut found);
        for (field, value) in found {
            check.check(&field, value, errors);
        }
    }
}

/// Every place a path leads to, with its spelled-out name; a leaf that is not there is `Null`.
fn collect<'a>(value: &'a Value, path: &str, sofar: &str, found: &mut Vec<(String, &'a Value)>) {
    let (head, rest) = path.split_once('.').map_or((path, None), |(h, r)| (h, Some(r)));
    let name = head.trim_end_matches("[]").trim_end_matches("{}");
    let field = if sofar.is_empty() { name.to_owned() } else { format!("{sofar}.{name}") };
    let child = value.get(name).unwrap_or(&Value::Null);
    let mut go = |child: &'a Value, field: String| match rest {
        Some(rest) if child.is_object() => collect(child, rest, &field, found),
        Some(_) => {}
        None => found.push((field, child)),
    };
    if head.ends_with("[]") {
        for (i, item) in child.as_array().into_iter().flatten().enumerate() {
            go(item, format!("{field}[{i}]"));
        }
    } else if head.ends_with("{}") {
        for (key, item) in child.as_object().into_iter().flatten() {
            go(item, format!("{field}[{key}]"));
        }
    } else {
        go(child, field);
    }
}

impl Check {
    fn check(self, field: &str, value: &Value, errors: &mut Vec<FieldError>) {
        match self {
            Self::Required if is_zero(value) => errors.push(FieldError::required(field, "")),
            Self::Unique(name) => unique(field, value, name, errors),
            // What is not there is Required's business.
            _ if value.is_null() || value.as_str() == Some("") => {}
            Self::OneOf(ones) if !value.as_str().is_some_and(|v| ones.contains(&v)) => {
                errors.push(FieldError::not_supported(field, value, ones));
            }
            Self::Range(low, high) => range(field, value, (low, high), errors),
            Self::Port => range(field, value, (1, 65535), errors),
            Self::NotNegative if value.as_i64().is_some_and(|n| n < 0) => {
                errors.push(FieldError::invalid(
                    field,
                    value,
                    "must be greater than or equal to 0",
                ));
            }
            Self::Name(rule) => {
                if let Some(why) = value.as_str().and_then(rule) {
                    errors.push(FieldError::invalid(field, value, why));
                }
            }
            Self::Quantity if !value.as_str().is_some_and(quantity::is_valid) => {
                errors.push(FieldError::invalid(field, value, quantity::SHAPE));
            }
            Self::Ip if !value.as_str().is_some_and(is_ip) => {
                let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                errors.push(FieldError::invalid(field, value, why));
            }
            Self::Labels => labels(field, value, errors),
            _ => {}
        }
    }
}

fn range(field: &str, value: &Value, (low, high): (i64, i64), errors: &mut Vec<FieldError>) {
    if value.as_i64().is_some_and(|n| !(low..=high).contains(&n)) {
        let why = format!("must be between {low} and {high}, inclusive");
        errors.push(FieldError::invalid(field, value, &why));
    }
}

fn unique(field: &str, list: &Value, name: &str, errors: &mut Vec<FieldError>) {
    let mut seen = BTreeSet::new();
    for (i, item) in list.as_array().into_iter().flatten().enumerate() {
        if let Some(value) = item[name].as_str()
            && !value.is_empty()
            && !seen.insert(value)
        {
            errors.push(FieldError::duplicate(format!("{field}[{i}].{name}"), &item[name]));
        }
    }
}

const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric \
    characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
    'MyValue',  or 'my_value',  or '12345', regex used for validation is \
    '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

const LABEL_KEY: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and \
    must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or \
    '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

fn labels(field: &str, value: &Value, errors: &mut Vec<FieldError>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        if !is_label_key(key) {
            errors.push(FieldError::invalid(field, &json!(key), LABEL_KEY));
        }
        if !value.as_str().is_some_and(is_label_value) {
            errors.push(FieldError::invalid(field, value, LABEL_VALUE));
        }
    }
}

fn is_ip(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok()
}

/// The rules of every object's metadata.
pub(crate) const METADATA: &[Rule] = &[
    ("metadata.labels", Check::Labels),
    ("metadata.ownerReferences[].apiVersion", Check::Required),
    ("metadata.ownerReferences[].kind", Check::Required),
    ("metadata.ownerReferences[].name", Check::Required),
    ("metadata.ownerReferences[].uid", Check::Required),
    ("metadata.deletionGracePeriodSeconds", Check::NotNegative),
    ("metadata.generateName", Check::Name(generate_name)),
];

/// What is generated ends in five characters of its own, so a trailing dash is fine.
fn generate_name(name: &str) -> Option<&'static str> {
    names::path_segment(name)
}

/// What every object's metadata must be, beyond the rules.
pub(crate) fn check_metadata(value: &Value, errors: &mut Vec<FieldError>) {
    check(METADATA, "", value, None, errors);
    let annotations = at(value, "metadata.annotations").as_object();
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        size += key.len() + value.as_str().map_or(0, str::len);
        if !is_label_key(&key.to_lowercase()) {
            errors.push(FieldError::invalid("metadata.annotations", &json!(key), LABEL_KEY));
        }
    }
    if size > 256 * 1024 {
        let message = "Too long: may not be more than 262144 bytes".into();
        let field = "metadata.annotations".into();
        errors.push(FieldError { reason: "FieldValueTooLong", field, message });
    }
    let controllers = crate::object::list_at(value, "metadata.ownerReferences")
        .iter()
        .filter(|owner| owner["controller"] == true)
        .count();
    if controllers > 1 {
        errors.push(FieldError::invalid(
            "metadata.ownerReferences",
            at(value, "metadata.ownerReferences"),
            "Only one reference can have Controller set to true",
        ));
    }
}
