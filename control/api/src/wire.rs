//! The wire types: what fields each type has, by name and protobuf number. From one table come the
//! reading of protobuf bodies (which kubectl's typed commands send) and the `OpenAPI` documents.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::status::{Result, Status};

/// `group.Type`, and below it its fields: number, name (`-` if its fields are the type's own),
/// and type with `[]` for a list or `{}` for a map.
const TABLE: &str = include_str!("wire/schema.txt");

/// The content type of protobuf bodies.
pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// The types, by `group.Type`.
pub(crate) static TYPES: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(|| {
    let mut types: HashMap<&str, Vec<Field>> = HashMap::new();
    let mut current = "";
    for line in TABLE.lines() {
        match line.strip_prefix("  ") {
            None => current = line,
            Some(field) => types.entry(current).or_default().extend(Field::parse(field)),
        }
    }
    types
});

/// One field of a type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    number: u64,
    pub(crate) name: &'static str,
    pub(crate) of: &'static str,
    pub(crate) shape: Shape,
}

/// How many there are of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    One,
    List,
    Map,
}

impl Field {
    fn parse(line: &'static str) -> Option<Self> {
        let mut words = line.split(' ');
        let (number, name, of) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
        let (of, shape) = if let Some(of) = of.strip_suffix("[]") {
            (of, Shape::List)
        } else if let Some(of) = of.strip_suffix("{}") {
            (of, Shape::Map)
        } else {
            (of, Shape::One)
        };
        Some(Self { number, name, of, shape })
    }
}

/// The type of a kind, as the table names it.
pub(crate) fn type_of(api_version: &str, kind: &str) -> Option<&'static str> {
    let group = api_version.split_once('/').map_or("core", |(group, _)| group);
    let short = group.split('.').next().unwrap_or_default();
    let name = match kind {
        "DeleteOptions" => "meta.DeleteOptions".to_owned(),
        _ => format!("{}.{kind}", if short == "rbac" { "rbac" } else { short }),
    };
    TYPES.get_key_value(name.as_str()).map(|(name, _)| *name)
}

/// Reads a protobuf body: an envelope that names its kind, and the object.
pub(crate) fn read(body: &[u8]) -> Result<Value> {
    let bad = |why: &str| Status::bad_request(format!("cannot read the protobuf body: {why}"));
    let envelope = body.strip_prefix(b"k8s\0").ok_or_else(|| bad("it has no envelope"))?;
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), &[] as &[u8]);
    for part in Parts(envelope) {
        let (number, wire) = part.map_err(bad)?;
        match (number, wire) {
            (1, Wire::Bytes(meta)) => {
                for part in Parts(meta) {
                    match part.map_err(bad)? {
                        (1, Wire::Bytes(text)) => version = string(text).map_err(bad)?,
                        (2, Wire::Bytes(text)) => kind = string(text).map_err(bad)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let name = type_of(&version, &kind).ok_or_else(|| {
        bad(&format!("no kind \"{kind}\" is registered for version \"{version}\""))
    })?;
    let mut object = Map::new();
    message(name, raw, &mut object, 0).map_err(bad)?;
    object.insert("apiVersion".into(), json!(version));
    object.insert("kind".into(), json!(kind));
    Ok(Value::Object(object))
}

/// What a tag introduces.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, one after another.
struct Parts<'a>(&'a [u8]);

/// Messages within messages, at most; no type of the API goes deeper.
const DEPTH: usize = 48;

impl<'a> Iterator for Parts<'a> {
    type Item = Result<(u64, Wire<'a>), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let part = self.part();
        if part.is_err() {
            self.0 = &[];
        }
        Some(part)
    }
}

impl<'a> Parts<'a> {
    fn part(&mut self) -> Result<(u64, Wire<'a>), &'static str> {
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Number(self.fixed::<8>()?),
            2 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                let (bytes, rest) = self.0.split_at_checked(length).ok_or("it ends early")?;
                self.0 = rest;
                Wire::Bytes(bytes)
            }
            5 => Wire::Number(self.fixed::<4>()?),
            _ => return Err("it has a wire type that is not used"),
        };
        Ok((tag >> 3, wire))
    }

    fn varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or("it ends early")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number has too many bytes")
    }

    fn fixed<const N: usize>(&mut self) -> Result<u64, &'static str> {
        let (bytes, rest) = self.0.split_at_checked(N).ok_or("it ends early")?;
        self.0 = rest;
        Ok(bytes.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
    }
}

fn string(bytes: &[u8]) -> Result<String, &'static str> {
    String::from_utf8(bytes.to_vec()).map_err(|_utf8| "a string is not UTF-8")
}

fn message(
    name: &str,
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), &'static str> {
    if depth > DEPTH {
        return Err("it is nested too deeply");
    }
    let fields = TYPES.get(name).ok_or("a type is not known")?;
    for part in Parts(bytes) {
        let (number, wire) = part?;
        // What a newer client knows and this server does not is dropped, as upstream drops it.
        let Some(field) = fields.iter().find(|field| field.number == number) else { continue };
        match (field.shape, wire) {
            (Shape::One, Wire::Bytes(bytes)) if field.name == "-" => {
                message(field.of, bytes, object, depth + 1)?;
            }
            (Shape::One, wire) => {
                if let Some(value) = value(field.of, &wire, depth)? {
                    object.insert(field.name.into(), value);
                }
            }
            (Shape::List, wire) => {
                let list = object.entry(field.name).or_insert_with(|| json!([]));
                let value = value(field.of, &wire, depth)?.unwrap_or_else(|| empty(field.of));
                if let Value::Array(list) = list {
                    list.push(value);
                }
            }
            (Shape::Map, Wire::Bytes(entry)) => {
                let (key, value) = map_entry(field.of, entry, depth)?;
                let map = object.entry(field.name).or_insert_with(|| json!({}));
                crate::object::object(map).insert(key, value);
            }
            (Shape::Map, Wire::Number(_)) => return Err("a map has a number in it"),
        }
    }
    Ok(())
}

fn map_entry(of: &str, entry: &[u8], depth: usize) -> Result<(String, Value), &'static str> {
    let (mut key, mut found) = (String::new(), None);
    for part in Parts(entry) {
        match part? {
            (1, Wire::Bytes(text)) => key = string(text)?,
            (2, wire) => found = value(of, &wire, depth)?,
            _ => {}
        }
    }
    Ok((key, found.unwrap_or_else(|| empty(of))))
}

/// What stands in a list or a map where nothing is set: the core group's name is "".
fn empty(of: &str) -> Value {
    if of == "string" || of == "bytes" { json!("") } else { json!({}) }
}

/// One value; `None` for a time that is not set and an empty string.
fn value(of: &str, wire: &Wire<'_>, depth: usize) -> Result<Option<Value>, &'static str> {
    Ok(Some(match (of, wire) {
        ("bool", Wire::Number(n)) => json!(*n != 0),
        ("int32" | "int64", Wire::Number(n)) => json!(n.cast_signed()),
        // Protobuf writes what JSON leaves out.
        ("string", Wire::Bytes([])) => return Ok(None),
        ("string", Wire::Bytes(bytes)) => json!(string(bytes)?),
        ("bytes", Wire::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
        ("meta.Time", Wire::Bytes(bytes)) => return time(bytes, false),
        ("meta.MicroTime", Wire::Bytes(bytes)) => return time(bytes, true),
        ("resource.Quantity", Wire::Bytes(bytes)) => json!(first_string(bytes)?),
        ("meta.FieldsV1" | "runtime.RawExtension", Wire::Bytes(bytes)) => {
            let raw = Parts(bytes).next().transpose()?;
            match raw {
                Some((1, Wire::Bytes(raw))) => {
                    serde_json::from_slice(raw).map_err(|_json| "a raw field is not JSON")?
                }
                _ => json!({}),
            }
        }
        ("intstr.IntOrString", Wire::Bytes(bytes)) => int_or_string(bytes)?,
        ("authentication.ExtraValue" | "authorization.ExtraValue", Wire::Bytes(bytes)) => {
            let mut items = Map::new();
            message(of, bytes, &mut items, depth + 1)?;
            items.remove("items").unwrap_or_else(|| json!([]))
        }
        (_, Wire::Bytes(bytes)) if of.contains('.') => {
            let mut object = Map::new();
            message(of, bytes, &mut object, depth + 1)?;
            Value::Object(object)
        }
        _ => return Err("a field has another type than its number says"),
    }))
}

fn first_string(bytes: &[u8]) -> Result<String, &'static str> {
    match Parts(bytes).next().transpose()? {
        Some((1, Wire::Bytes(text))) => string(text),
        _ => Ok("0".into()),
    }
}

fn int_or_string(bytes: &[u8]) -> Result<Value, &'static str> {
    let (mut is_string, mut number, mut text) = (false, 0, String::new());
    for part in Parts(bytes) {
        match part? {
            (1, Wire::Number(form)) => is_string = form == 1,
            (2, Wire::Number(n)) => number = n.cast_signed(),
            (3, Wire::Bytes(bytes)) => text = string(bytes)?,
            _ => {}
        }
    }
    Ok(if is_string { json!(text) } else { json!(number) })
}

fn time(bytes: &[u8], micros: bool) -> Result<Option<Value>, &'static str> {
    let (mut seconds, mut nanos) = (0_i64, 0_u64);
    for part in Parts(bytes) {
        match part? {
            (1, Wire::Number(n)) => seconds = n.cast_signed(),
            (2, Wire::Number(n)) => nanos = n,
            _ => {}
        }
    }
    // Go's zero time stands for no time.
    if bytes.is_empty() || (seconds <= -62_135_596_800) {
        return Ok(None);
    }
    let nanos = i32::try_from(nanos).unwrap_or(0);
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|_range| "a time is out of range")?;
    let format = if micros { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(Some(json!(time.strftime(format).to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    }

    #[test]
    fn a_config_map_is_read() {
        let meta = [field(1, b"v1"), field(2, b"ConfigMap")].concat();
        let entry = [field(1, b"key"), field(2, b"value")].concat();
        let map = [field(1, &field(1, b"name")), field(2, &entry)].concat();
        let body = [b"k8s\0".to_vec(), field(1, &meta), field(2, &map)].concat();
        let expected = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "name"},
            "data": {"key": "value"},
        });
        assert_eq!(read(&body).unwrap(), expected);
    }

    #[test]
    fn the_core_group_stays_in_a_rule() {
        let meta = [field(1, b"rbac.authorization.k8s.io/v1"), field(2, b"Role")].concat();
        let rule = [field(1, b"get"), field(2, b""), field(3, b"pods")].concat();
        let body = [b"k8s\0".to_vec(), field(1, &meta), field(2, &field(2, &rule))].concat();
        let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        assert_eq!(read(&body).unwrap()["rules"], rules);
    }

    #[test]
    fn every_type_that_a_field_names_is_in_the_table() {
        let special = [
            "meta.Time",
            "meta.MicroTime",
            "meta.FieldsV1",
            "runtime.RawExtension",
            "intstr.IntOrString",
            "resource.Quantity",
        ];
        for (name, fields) in TYPES.iter() {
            for field in fields.iter().filter(|field| field.of.contains('.')) {
                let known = TYPES.contains_key(field.of) || special.contains(&field.of);
                assert!(known, "{name}.{}: {}", field.name, field.of);
            }
        }
    }

    #[test]
    fn truncated_and_wrong_bodies_are_refused() {
        for body in
            [&b""[..], b"k8s\0", b"k8s\0\x0a\xff", b"k8s\0\x0f", b"xyz", b"k8s\0\x0a\x04\x0a\x02v1"]
        {
            assert!(read(body).is_err(), "{body:?}");
        }
    }
}
