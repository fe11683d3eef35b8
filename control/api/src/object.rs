//! One stored object: its JSON as it is served, and what selectors ask about it.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::kinds::{KINDS, Kind};

/// Which object: its kind (an index into [`KINDS`]), namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) kind: usize,
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

/// One version of one object. Immutable, shared by the state, the history and the watchers.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) revision: u64,
    /// The whole object, `metadata.resourceVersion` included.
    pub(crate) json: Bytes,
    pub(crate) labels: Box<[(Box<str>, Box<str>)]>,
    /// The values of the kind's selectable fields, in the order of the table.
    pub(crate) fields: Box<[Box<str>]>,
}

impl Key {
    pub(crate) fn new(kind: usize, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl Object {
    /// Seals a value as the version written at `revision`.
    pub(crate) fn seal(kind: usize, mut value: Value, revision: u64) -> Self {
        set(&mut value, "metadata.resourceVersion", Value::String(revision.to_string()));
        // Boxed, so that no spare capacity is kept with each of ten thousand objects.
        let json = serde_json::to_vec(&value).unwrap_or_default().into_boxed_slice();
        Self::index(kind, &value, Bytes::from(json), revision)
    }

    /// Takes up a version from its stored bytes.
    ///
    /// # Errors
    /// When the bytes are not JSON.
    pub(crate) fn open(kind: usize, json: Bytes, revision: u64) -> serde_json::Result<Self> {
        let value: Value = serde_json::from_slice(&json)?;
        Ok(Self::index(kind, &value, json, revision))
    }

    fn index(kind: usize, value: &Value, json: Bytes, revision: u64) -> Self {
        let labels = at(value, "metadata.labels").as_object().map_or_else(Box::default, |map| {
            map.iter().map(|(k, v)| (k.as_str().into(), text(v).into())).collect()
        });
        let selectable = KINDS.get(kind).map_or(&[] as &[&str], |kind| kind.selectable);
        let fields = selectable.iter().map(|path| text(at(value, path)).into()).collect();
        Self { revision, json, labels, fields }
    }

    pub(crate) fn value(&self) -> Value {
        // The bytes were written by `seal`, so they parse.
        serde_json::from_slice(&self.json).unwrap_or(Value::Null)
    }

    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(key, _)| &**key == name).map(|(_, value)| &**value)
    }

    /// The value of a selectable field; `None` where the kind has no such field.
    pub(crate) fn field<'a>(&'a self, kind: &Kind, key: &'a Key, name: &str) -> Option<&'a str> {
        match name {
            "metadata.name" => return Some(&key.name),
            "metadata.namespace" if kind.namespaced => return Some(&key.namespace),
            _ => {}
        }
        let position = kind.selectable.iter().position(|path| *path == name)?;
        self.fields.get(position).map(|value| &**value)
    }
}

/// The value at a dotted path; `Null` where there is none.
pub(crate) fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(value, |value, part| value.get(part).unwrap_or(&Value::Null))
}

/// The string at a dotted path, empty where there is none.
pub(crate) fn str_at<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).as_str().unwrap_or_default()
}

/// The list at a dotted path, empty where there is none.
pub(crate) fn list_at<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).as_array().map_or(&[], Vec::as_slice)
}

/// Sets the value at a dotted path, making the objects on the way.
pub(crate) fn set(value: &mut Value, path: &str, new: Value) {
    let mut here = value;
    for part in path.split('.') {
        here = object(here).entry(part).or_insert(Value::Null);
    }
    *here = new;
}

/// Takes away the value at a dotted path.
pub(crate) fn unset(value: &mut Value, path: &str) -> Option<Value> {
    let (parent, leaf) = path.rsplit_once('.').unwrap_or(("", path));
    let mut here = value;
    for part in parent.split('.').filter(|part| !part.is_empty()) {
        here = here.get_mut(part)?;
    }
    here.as_object_mut()?.remove(leaf)
}

/// The value as an object; what is not one becomes an empty one.
pub(crate) fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable_object(),
    }
}

#[expect(clippy::unreachable, reason = "the caller made the value an object")]
fn unreachable_object() -> ! {
    unreachable!("not an object")
}

/// A scalar as a selector compares it.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Whether the field is unset as Go's zero values are: null, "", 0, false, [] or {}.
pub(crate) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}
