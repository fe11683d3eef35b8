//! Who owns which field: `metadata.managedFields`, and the sets of paths it stands for.
//!
//! A path's steps are spelled as in `fieldsV1`: `f:name` a field, `k:{…}` an element of a list by
//! its keys, `v:…` an element of a set. A set holds the leaves, and the elements themselves.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::lists::{ListKind, is_atomic_map, list_kind};
use crate::object::{at, list_at, object, str_at};

/// The way to one field.
pub(crate) type FieldPath = Vec<String>;
/// The fields that one manager owns.
pub(crate) type FieldSet = BTreeSet<FieldPath>;

/// Who writes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manager {
    pub(crate) name: String,
    /// `Apply` or `Update`.
    pub(crate) operation: &'static str,
    pub(crate) subresource: &'static str,
}

/// One entry of `managedFields`.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) fields: FieldSet,
    raw: Value,
}

impl Entry {
    pub(crate) fn new(manager: &Manager, api_version: &str, fields: FieldSet) -> Self {
        let mut raw = json!({
            "manager": manager.name, "operation": manager.operation, "apiVersion": api_version,
            "fieldsType": "FieldsV1",
        });
        if !manager.subresource.is_empty() {
            raw["subresource"] = json!(manager.subresource);
        }
        Self { fields, raw }
    }

    pub(crate) fn is_of(&self, manager: &Manager) -> bool {
        str_at(&self.raw, "manager") == manager.name
            && str_at(&self.raw, "operation") == manager.operation
            && str_at(&self.raw, "subresource") == manager.subresource
    }

    /// As messages about conflicts name it.
    pub(crate) fn describe(&self) -> String {
        let with = match str_at(&self.raw, "subresource") {
            "" => String::new(),
            subresource => format!(" with subresource \"{subresource}\""),
        };
        let version = str_at(&self.raw, "apiVersion");
        format!("\"{}\"{with} using {version}", str_at(&self.raw, "manager"))
    }

    pub(crate) fn touch(&mut self, now: &str) {
        self.raw["time"] = json!(now);
    }
}

/// Reads an object's entries.
pub(crate) fn read(value: &Value) -> Vec<Entry> {
    let entries = list_at(value, "metadata.managedFields").iter();
    entries
        .filter(|raw| raw.get("manager").is_some())
        .map(|raw| {
            let mut fields = FieldSet::new();
            collect(at(raw, "fieldsV1"), &mut Vec::new(), &mut fields);
            Entry { fields, raw: raw.clone() }
        })
        .collect()
}

/// Writes an object's entries; those that own nothing any more are dropped.
pub(crate) fn write(value: &mut Value, entries: Vec<Entry>) {
    let entries: Vec<Value> = entries
        .into_iter()
        .filter(|entry| !entry.fields.is_empty())
        .map(|entry| {
            let mut raw = entry.raw;
            raw["fieldsV1"] = tree(&entry.fields);
            raw
        })
        .collect();
    let metadata = object(&mut object(value)["metadata"]);
    if entries.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".into(), Value::Array(entries));
    }
}

/// Gives a writer what it changed between two versions, and takes it from the others.
pub(crate) fn update(
    old: Option<&Value>,
    new: &mut Value,
    manager: &Manager,
    api_version: &str,
    now: &str,
) {
    let nothing = Value::Null;
    let old = old.unwrap_or(&nothing);
    let (before, after) = (leaves(old), leaves(new));
    let changed: FieldSet = after
        .iter()
        .filter(|path| !before.contains(*path) || get(old, path) != get(new, path))
        .cloned()
        .collect();
    let removed: FieldSet = before.difference(&after).cloned().collect();
    let mut entries =
        read(if list_at(new, "metadata.managedFields").is_empty() { old } else { new });
    for entry in &mut entries {
        if !entry.is_of(manager) {
            entry.fields.retain(|path| {
                !removed.contains(path) && (!changed.contains(path) || is_element(path))
            });
        }
    }
    if !changed.is_empty() || !removed.is_empty() {
        let own = match entries.iter_mut().find(|entry| entry.is_of(manager)) {
            Some(own) => own,
            None => {
                entries.push(Entry::new(manager, api_version, FieldSet::new()));
                match entries.last_mut() {
                    Some(own) => own,
                    None => return,
                }
            }
        };
        own.fields.extend(changed);
        own.fields.retain(|path| !removed.contains(path));
        own.touch(now);
    }
    write(new, entries);
}

/// The path of a list's element itself.
pub(crate) fn is_element(path: &FieldPath) -> bool {
    path.last().is_some_and(|step| !step.starts_with("f:"))
}

/// The fields of an object that somebody can own.
pub(crate) fn leaves(value: &Value) -> FieldSet {
    let mut found = FieldSet::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        if matches!(key.as_str(), "apiVersion" | "kind") {
            continue;
        }
        let mut path = vec![format!("f:{key}")];
        if key == "metadata" {
            for (key, value) in value.as_object().into_iter().flatten() {
                if matches!(
                    key.as_str(),
                    "labels" | "annotations" | "finalizers" | "ownerReferences"
                ) {
                    path.push(format!("f:{key}"));
                    descend(value, "metadata", key, &mut path, &mut found);
                    path.pop();
                }
            }
        } else {
            descend(value, "", key, &mut path, &mut found);
        }
    }
    found
}

fn descend(value: &Value, parent: &str, field: &str, path: &mut FieldPath, found: &mut FieldSet) {
    match value {
        Value::Null => {}
        Value::Object(map) if !map.is_empty() && !is_atomic_map(field) => {
            for (key, value) in map {
                path.push(format!("f:{key}"));
                descend(value, field, key, path, found);
                path.pop();
            }
        }
        Value::Array(items) if !items.is_empty() => match list_kind(parent, field) {
            ListKind::Atomic => {
                found.insert(path.clone());
            }
            kind => {
                for item in items {
                    path.push(element(item, kind));
                    found.insert(path.clone());
                    for (key, value) in item.as_object().into_iter().flatten() {
                        path.push(format!("f:{key}"));
                        descend(value, field, key, path, found);
                        path.pop();
                    }
                    path.pop();
                }
            }
        },
        _ => {
            found.insert(path.clone());
        }
    }
}

/// The step that leads to an element of a list.
pub(super) fn element(item: &Value, kind: ListKind) -> String {
    match kind {
        ListKind::Map(keys) => {
            let id: Map<String, Value> = keys
                .iter()
                .filter_map(|key| {
                    let value = item.get(*key).cloned();
                    let value = value.or_else(|| (*key == "protocol").then(|| json!("TCP")));
                    Some(((*key).to_owned(), value?))
                })
                .collect();
            format!("k:{}", Value::Object(id))
        }
        _ => format!("v:{item}"),
    }
}

/// The value at a path, if it is there.
pub(crate) fn get<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, step| step_into(value, step))
}

fn step_into<'a>(value: &'a Value, step: &str) -> Option<&'a Value> {
    let (form, name) = step.split_once(':')?;
    match form {
        "f" => value.get(name),
        _ => value.as_array()?.iter().find(|item| is_at(item, step)),
    }
}

/// Whether an element of a list is the one a step leads to.
pub(crate) fn is_at(item: &Value, step: &str) -> bool {
    match step.split_once(':') {
        Some(("k", id)) => serde_json::from_str::<Map<String, Value>>(id).is_ok_and(|id| {
            id.iter().all(|(key, value)| match item.get(key) {
                Some(found) => found == value,
                None => key == "protocol" && value == "TCP",
            })
        }),
        Some(("v", id)) => serde_json::from_str::<Value>(id).is_ok_and(|id| id == *item),
        _ => false,
    }
}

fn collect(tree: &Value, path: &mut FieldPath, found: &mut FieldSet) {
    let Some(map) = tree.as_object() else { return };
    let inner = map.keys().any(|key| key != ".");
    if !path.is_empty() && (!inner || map.contains_key(".")) {
        found.insert(path.clone());
    }
    for (step, below) in map.iter().filter(|(step, _)| *step != ".") {
        path.push(step.clone());
        collect(below, path, found);
        path.pop();
    }
}

fn tree(fields: &FieldSet) -> Value {
    let mut root = json!({});
    for path in fields {
        let mut here = &mut root;
        for step in path {
            here = object(here).entry(step.clone()).or_insert_with(|| json!({}));
        }
        if is_element(path) {
            object(here).insert(".".into(), json!({}));
        }
    }
    root
}
