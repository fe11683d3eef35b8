//! Server-side apply: what a manager says is merged in, what it no longer says is taken out, and
//! what others own is a conflict unless forced.

use serde_json::{Map, Value};

use super::lists::{ListKind, is_atomic_map, list_kind};
use super::managed::{self, Entry, FieldPath, FieldSet, Manager, get, is_at, is_element, leaves};
use crate::object::object;
use crate::status::{FieldError, Status};

/// The object as applied, with its owners; or what stands in the way.
pub(crate) fn apply(
    live: &Value,
    config: &Value,
    manager: &Manager,
    force: bool,
) -> Result<(Value, Vec<Entry>), Status> {
    let mut entries = managed::read(live);
    let wanted = leaves(config);
    let changed = |path: &FieldPath| {
        !is_element(path) && get(live, path).is_some_and(|now| Some(now) != get(config, path))
    };
    let contested: FieldSet = wanted.iter().filter(|path| changed(path)).cloned().collect();
    let conflicts = conflicts(&entries, manager, &contested);
    if !force && !conflicts.is_empty() {
        return Err(refuse(&conflicts));
    }
    for entry in entries.iter_mut().filter(|entry| !entry.is_of(manager)) {
        entry.fields.retain(|path| !contested.contains(path));
    }
    let mut merged = live.clone();
    merge(&mut merged, config, "", "");
    let before = entries.iter().position(|entry| entry.is_of(manager));
    let owned = before.map(|i| entries.remove(i).fields).unwrap_or_default();
    // An element goes before its fields: by them it is found.
    let mut dropped: Vec<&FieldPath> = owned.difference(&wanted).collect();
    dropped.sort_by_key(|path| path.len());
    for path in dropped {
        let kept = entries.iter().any(|entry| entry.fields.iter().any(|one| one.starts_with(path)));
        if !kept {
            remove(&mut merged, path);
        }
    }
    entries.push(Entry::new(manager, config["apiVersion"].as_str().unwrap_or_default(), wanted));
    Ok((merged, entries))
}

fn conflicts(
    entries: &[Entry],
    manager: &Manager,
    contested: &FieldSet,
) -> Vec<(String, Vec<FieldPath>)> {
    let others = entries.iter().filter(|entry| !entry.is_of(manager));
    others
        .map(|entry| {
            let fields: Vec<_> = entry.fields.intersection(contested).cloned().collect();
            (entry.describe(), fields)
        })
        .filter(|(_, fields)| !fields.is_empty())
        .collect()
}

fn refuse(conflicts: &[(String, Vec<FieldPath>)]) -> Status {
    let errors: Vec<FieldError> = conflicts
        .iter()
        .flat_map(|(who, fields)| {
            fields.iter().map(move |path| FieldError {
                reason: "FieldManagerConflict",
                field: spell(path),
                message: format!("conflict with {who}"),
            })
        })
        .collect();
    let lines: Vec<String> = conflicts
        .iter()
        .map(|(who, fields)| match fields.as_slice() {
            [one] => format!("conflict with {who}: {}", spell(one)),
            many => {
                let many: Vec<String> =
                    many.iter().map(|path| format!("- {}", spell(path))).collect();
                format!("conflicts with {who}:\n{}", many.join("\n"))
            }
        })
        .collect();
    let n = errors.len();
    let plural = if n == 1 { "" } else { "s" };
    let message = format!("Apply failed with {n} conflict{plural}: {}", lines.join("\n"));
    let mut status = Status::new(409, "Conflict", message);
    status.add_causes(&errors);
    status
}

/// A path as messages spell it: `.spec.containers[name="a"].image`.
fn spell(path: &FieldPath) -> String {
    let step = |step: &String| match step.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("k", id)) => {
            let id: Map<String, Value> = serde_json::from_str(id).unwrap_or_default();
            let parts: Vec<String> = id.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("[{}]", parts.join(","))
        }
        Some((_, value)) => format!("[={value}]"),
        None => String::new(),
    };
    path.iter().map(step).collect()
}

fn merge(live: &mut Value, config: &Value, parent: &str, field: &str) {
    match (live, config) {
        (Value::Object(live), Value::Object(config)) if !is_atomic_map(field) => {
            for (key, value) in config {
                match live.get_mut(key) {
                    Some(slot) => merge(slot, value, field, key),
                    None => {
                        live.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(live), Value::Array(config))
            if list_kind(parent, field) != ListKind::Atomic =>
        {
            merge_list(live, config, parent, field);
        }
        (live, config) => *live = config.clone(),
    }
}

/// Merges by key. The elements that the manager names come in its order.
fn merge_list(live: &mut Vec<Value>, config: &[Value], parent: &str, field: &str) {
    let kind = list_kind(parent, field);
    let steps: Vec<String> = config.iter().map(|item| managed::element(item, kind)).collect();
    for (item, step) in config.iter().zip(&steps) {
        match live.iter_mut().find(|one| is_at(one, step)) {
            Some(existing) => merge(existing, item, "", field),
            None => live.push(item.clone()),
        }
    }
}

fn remove(value: &mut Value, path: &[String]) {
    let Some((last, way)) = path.split_last() else { return };
    let mut here = value;
    for step in way {
        let next = match step.split_once(':') {
            Some(("f", name)) => here.get_mut(name),
            _ => here.as_array_mut().and_then(|list| list.iter_mut().find(|one| is_at(one, step))),
        };
        let Some(next) = next else { return };
        here = next;
    }
    match last.split_once(':') {
        Some(("f", name)) if here.is_object() => {
            object(here).remove(name);
        }
        Some(_) => {
            if let Value::Array(list) = here {
                list.retain(|one| !is_at(one, last));
            }
        }
        None => {}
    }
}
