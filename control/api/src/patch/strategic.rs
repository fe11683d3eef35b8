//! Strategic merge: like a merge patch, but lists merge by key, and directives say the rest.

use serde_json::{Map, Value};

use super::lists::{ListKind, merge_key};
use crate::object::object;
use crate::status::{Result, Status};

const ORDER: &str = "$setElementOrder/";
const REMOVE: &str = "$deleteFromPrimitiveList/";

/// Merges a patch into an object.
pub(super) fn merge(value: &mut Value, patch: &Value) -> Result<()> {
    let Some(patch) = patch.as_object() else {
        return Err(Status::bad_request("invalid strategic merge patch: expected an object"));
    };
    merge_map(value, patch, "")
}

fn merge_map(value: &mut Value, patch: &Map<String, Value>, field: &str) -> Result<()> {
    match patch.get("$patch").and_then(Value::as_str) {
        None | Some("merge") => {}
        Some("delete") => {
            *value = Value::Object(Map::new());
            return Ok(());
        }
        Some("replace") => {
            let mut new = patch.clone();
            new.remove("$patch");
            *value = Value::Object(new);
            return Ok(());
        }
        Some(other) => {
            return Err(Status::bad_request(format!("Unknown patch type found: {other}")));
        }
    }
    let target = object(value);
    if let Some(keys) = patch.get("$retainKeys").and_then(Value::as_array) {
        target.retain(|key, _| keys.iter().any(|kept| kept == key));
    }
    for (key, change) in patch {
        if let Some(list) = key.strip_prefix(REMOVE) {
            if let (Some(Value::Array(items)), Some(gone)) =
                (target.get_mut(list), change.as_array())
            {
                items.retain(|item| !gone.contains(item));
            }
        } else if !key.starts_with('$') {
            merge_field(target, key, change, field)?;
        }
    }
    for (key, order) in patch {
        if let Some(list) = key.strip_prefix(ORDER)
            && let (Some(Value::Array(items)), Some(order)) =
                (target.get_mut(list), order.as_array())
        {
            reorder(items, order, merge_key(field, list));
        }
    }
    Ok(())
}

fn merge_field(
    target: &mut Map<String, Value>,
    key: &str,
    change: &Value,
    parent: &str,
) -> Result<()> {
    match change {
        Value::Null => {
            target.remove(key);
        }
        Value::Object(change) => {
            let slot = target.entry(key).or_insert_with(|| Value::Object(Map::new()));
            merge_map(slot, change, key)?;
        }
        Value::Array(change) => {
            let slot = target.entry(key).or_insert_with(|| Value::Array(Vec::new()));
            if !slot.is_array() {
                *slot = Value::Array(Vec::new());
            }
            if let Value::Array(items) = slot {
                merge_list(items, change, key, merge_key(parent, key))?;
            }
        }
        scalar => {
            target.insert(key.into(), scalar.clone());
        }
    }
    Ok(())
}

fn merge_list(items: &mut Vec<Value>, change: &[Value], field: &str, kind: ListKind) -> Result<()> {
    let directive = |item: &Value, wanted: &str| item["$patch"] == wanted;
    let replace = change.iter().any(|item| item.is_object() && directive(item, "replace"));
    match kind {
        ListKind::Set => {
            for item in change {
                if !items.contains(item) {
                    items.push(item.clone());
                }
            }
        }
        ListKind::Map([key, ..]) if !replace => {
            for item in change {
                let Some(map) = item.as_object() else {
                    return Err(Status::bad_request(format!("invalid element of {field}: {item}")));
                };
                let Some(id) = map.get(*key) else {
                    return Err(Status::bad_request(format!(
                        "map: {item} does not contain declared merge key: {key}"
                    )));
                };
                let found = items.iter().position(|one| one.get(*key) == Some(id));
                match (directive(item, "delete"), found.and_then(|i| items.get_mut(i))) {
                    (true, _) => items.retain(|one| one.get(*key) != Some(id)),
                    (false, Some(existing)) => merge_map(existing, map, field)?,
                    (false, None) => {
                        let mut new = Value::Object(Map::new());
                        merge_map(&mut new, map, field)?;
                        items.push(new);
                    }
                }
            }
        }
        _ => {
            let plain = |item: &&Value| !(item.is_object() && item.get("$patch").is_some());
            *items = change.iter().filter(plain).cloned().collect();
        }
    }
    Ok(())
}

/// Puts the elements that the patch names in its order; the others keep their places behind.
fn reorder(items: &mut [Value], order: &[Value], kind: ListKind) {
    let place = |item: &Value| {
        let position = match kind {
            ListKind::Map([key, ..]) => {
                order.iter().position(|one| one.get(*key) == item.get(*key))
            }
            _ => order.iter().position(|one| one == item),
        };
        position.unwrap_or(usize::MAX)
    };
    items.sort_by_key(place);
}
