//! Objects as JSON: controllers read a few fields of many kinds.

use serde_json::{Map, Value};

/// The value at a dotted path; `Null` where there is none.
pub(crate) fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(value, |value, part| value.get(part).unwrap_or(&Value::Null))
}

/// The string at a dotted path, empty where there is none.
pub(crate) fn str_at<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).as_str().unwrap_or_default()
}

/// The number at a dotted path, 0 where there is none.
pub(crate) fn int_at(value: &Value, path: &str) -> i64 {
    at(value, path).as_i64().unwrap_or(0)
}

/// The list at a dotted path, empty where there is none.
pub(crate) fn list_at<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn name(object: &Value) -> &str {
    str_at(object, "metadata.name")
}

pub(crate) fn namespace(object: &Value) -> &str {
    str_at(object, "metadata.namespace")
}

pub(crate) fn uid(object: &Value) -> &str {
    str_at(object, "metadata.uid")
}

/// A label's value; labels have dots in their names, so no path leads to them.
pub(crate) fn label<'a>(object: &'a Value, name: &str) -> &'a str {
    at(object, "metadata.labels").get(name).and_then(Value::as_str).unwrap_or_default()
}

/// An annotation's value.
pub(crate) fn annotation<'a>(object: &'a Value, name: &str) -> &'a str {
    at(object, "metadata.annotations").get(name).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn is_being_deleted(object: &Value) -> bool {
    !str_at(object, "metadata.deletionTimestamp").is_empty()
}

/// Sets the value at a dotted path, making the objects on the way.
pub(crate) fn set(value: &mut Value, path: &str, new: Value) {
    let mut here = value;
    for part in path.split('.') {
        if !here.is_object() {
            *here = Value::Object(Map::new());
        }
        let Value::Object(map) = here else { return };
        here = map.entry(part).or_insert(Value::Null);
    }
    *here = new;
}

/// Whether labels match a selector object (`matchLabels`, `matchExpressions`); one that is empty
/// matches everything, one that is not there nothing.
pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
    if !selector.is_object() {
        return false;
    }
    let label = |key: &str| labels.get(key).and_then(Value::as_str);
    let equal = at(selector, "matchLabels").as_object().into_iter().flatten();
    equal.into_iter().all(|(key, value)| label(key) == value.as_str())
        && list_at(selector, "matchExpressions").iter().all(|expression| {
            let found = label(str_at(expression, "key"));
            let among = |value: &str| list_at(expression, "values").iter().any(|one| one == value);
            match str_at(expression, "operator") {
                "In" => found.is_some_and(among),
                "NotIn" => !found.is_some_and(among),
                "Exists" => found.is_some(),
                "Gt" => compare(found, expression).is_some_and(std::cmp::Ordering::is_gt),
                "Lt" => compare(found, expression).is_some_and(std::cmp::Ordering::is_lt),
                _ => found.is_none(),
            }
        })
}

fn compare(found: Option<&str>, expression: &Value) -> Option<std::cmp::Ordering> {
    let bound: i64 = list_at(expression, "values").first()?.as_str()?.parse().ok()?;
    Some(found?.parse::<i64>().ok()?.cmp(&bound))
}

/// Whether labels have all pairs of a plain map; an empty one matches nothing.
pub(crate) fn has_all(wanted: &Value, labels: &Value) -> bool {
    let pairs = wanted.as_object().filter(|map| !map.is_empty());
    pairs.is_some_and(|map| map.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

/// The owner that controls an object.
pub(crate) fn controller_of(object: &Value) -> Option<&Value> {
    list_at(object, "metadata.ownerReferences").iter().find(|owner| owner["controller"] == true)
}

/// A reference by which `owner` controls what it makes.
pub(crate) fn owner_reference(owner: &Value) -> Value {
    serde_json::json!({
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": name(owner),
        "uid": uid(owner), "controller": true, "blockOwnerDeletion": true,
    })
}

/// A number or a percentage of a total.
pub(crate) fn scaled(value: &Value, total: i64, round_up: bool) -> i64 {
    match value {
        Value::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent * total;
            if round_up { (product + 99) / 100 } else { product / 100 }
        }
        other => other.as_i64().unwrap_or(0),
    }
}

/// A short, stable hash of a value, for names.
pub(crate) fn hash(value: &Value) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let text = value.to_string();
    let mut hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut out = String::new();
    for _ in 0..10 {
        let digit = usize::try_from(hash % 27).unwrap_or(0);
        out.extend(LETTERS.get(digit).map(|letter| char::from(*letter)));
        hash /= 27;
    }
    out
}
