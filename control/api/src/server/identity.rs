//! What an object is known by: a name, a uid, the time it was made.

use jiff::Timestamp;
use ring::rand::SecureRandom;
use serde_json::{Value, json};

use crate::kinds;
use crate::object::{Key, is_zero, object, set, str_at};
use crate::status::{FieldError, Result, Status};
use crate::store::Txn;

/// Gives a new object its identity.
pub(crate) fn stamp(value: &mut Value) {
    let metadata = object(&mut object(value)["metadata"]);
    for field in [
        "managedFields",
        "selfLink",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
    ] {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), json!(uid()));
    metadata.insert("creationTimestamp".into(), json!(now()));
    drop_empty(value);
}

/// Takes out of metadata what is empty, as Go leaves it out.
pub(super) fn drop_empty(value: &mut Value) {
    let metadata = object(&mut object(value)["metadata"]);
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        if metadata.get(field).is_some_and(is_zero) {
            metadata.remove(field);
        }
    }
}

pub(super) fn name_it(txn: &Txn<'_>, number: usize, value: &mut Value) -> Result<()> {
    if !str_at(value, "metadata.name").is_empty() {
        return Ok(());
    }
    let prefix = str_at(value, "metadata.generateName").to_owned();
    if prefix.is_empty() {
        let kind = kinds::KINDS.get(number).ok_or_else(Status::no_such_path)?;
        let error = FieldError::required("metadata.name", "name or generateName is required");
        return Err(Status::invalid(kind, "", &[error]));
    }
    let namespace = str_at(value, "metadata.namespace").to_owned();
    // 27^5 names: a collision is rare, eight in a row do not happen.
    for _ in 0..8 {
        let kept: String = prefix.chars().take(58).collect();
        let name = format!("{kept}{}", suffix());
        if txn.get(&Key::new(number, &namespace, &name)).is_none() {
            set(value, "metadata.name", json!(name));
            return Ok(());
        }
    }
    Err(Status::internal("cannot generate a free name"))
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if ring::rand::SystemRandom::new().fill(&mut bytes).is_err() {
        tracing::warn!("the system has no randomness to give");
    }
    bytes
}

fn suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    random::<5>()
        .iter()
        .filter_map(|byte| LETTERS.get(usize::from(*byte) % LETTERS.len()))
        .map(|letter| char::from(*letter))
        .collect()
}

/// A random UUID, version 4.
fn uid() -> String {
    let n = u128::from_be_bytes(random());
    let n = (n & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{n:032x}");
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default();
    [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-")
}

/// Now, to the second, as metadata says it.
pub(crate) fn now() -> String {
    format_time(Timestamp::now())
}

pub(super) fn format_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
