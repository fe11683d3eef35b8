//! A request body from its bytes to the object that would be stored, without a server: for the
//! fuzzer, and for the test that plays its corpus.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::{Value, json};

use super::{Query, Request, Target, body};
use crate::auth::User;
use crate::kinds::{KINDS, Kind};
use crate::patch::Patch;
use crate::patch::apply;
use crate::patch::managed::Manager;
use crate::status::Result;
use crate::wire;

/// What a body may be.
const FORMS: [&str; 7] = [
    "application/json",
    "application/yaml",
    wire::PROTOBUF,
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// Takes the first byte for the kind, the second for the form, and the rest for the body. Whatever
/// it is, it is refused, or becomes an object that can be stored and read back.
///
/// # Panics
/// What was accepted cannot be read back, or does not stay as it is.
pub fn body(bytes: &[u8]) {
    let [kind, form, body @ ..] = bytes else { return };
    let (number, form) = (usize::from(*kind) % KINDS.len(), usize::from(*form) % FORMS.len());
    let (Some(kind), Some(form)) = (KINDS.get(number), FORMS.get(form)) else { return };
    let target = target(number, kind);
    if let Ok(accepted) = accept(&target, form, body) {
        stays(&target, accepted);
    }
}

/// The object that a body makes, or makes of another one.
fn accept(target: &Target, form: &'static str, bytes: &[u8]) -> Result<Value> {
    let request = request(form, bytes);
    let (kind, mut warnings) = (target.kind, Vec::new());
    if FORMS.iter().take(3).any(|whole| *whole == form) {
        return body::object_of(&request, target, &mut warnings);
    }
    let mut old = json!({
        "apiVersion": kind.api_version(), "kind": kind.kind,
        "metadata": {"name": "a", "labels": {"a": "b"}},
    });
    kind.default(&mut old, None);
    match Patch::parse(form, bytes)? {
        Patch::Apply(config) => {
            let manager = Manager { name: "probe".into(), operation: "Apply", subresource: "" };
            body::check_kind(&config, target)?;
            let (merged, _) = apply::apply(&old, &config, &manager, false)?;
            body::decode(target, merged, "Ignore", &mut warnings)
        }
        patch => {
            patch.apply_to(&mut old)?;
            body::check_kind(&old, target)?;
            body::decode(target, old, "Strict", &mut warnings)
        }
    }
}

/// With its defaults it is complete: read back and completed again, it is the same.
fn stays(target: &Target, mut object: Value) {
    target.kind.default(&mut object, None);
    if !target.kind.check(&object, None).is_empty() {
        return;
    }
    let stored = object.to_string();
    let read = serde_json::from_str(&stored).expect("what was written is JSON");
    let mut again = body::decode(target, read, "Ignore", &mut Vec::new())
        .expect("what was accepted is accepted again");
    target.kind.default(&mut again, None);
    assert_eq!(object, again, "{:?}", target.kind);
}

fn target(number: usize, kind: &'static Kind) -> Target {
    let namespace = kind.namespaced.then(|| "default".to_owned());
    Target { kind, number, view: None, namespace, name: Some("a".into()), subresource: None }
}

fn request(form: &'static str, body: &[u8]) -> Request {
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(form))]);
    Request {
        method: Method::POST,
        path: String::new(),
        query: Query::default(),
        query_text: String::new(),
        headers,
        body: Bytes::copy_from_slice(body),
        user: User::default(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Every start of every seed, and every seed with a byte changed here and there.
    #[test]
    fn whatever_a_body_says_it_is_refused_or_becomes_an_object() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/bodies");
        let mut n_seeds = 0;
        for seed in std::fs::read_dir(corpus).unwrap() {
            let seed = std::fs::read(seed.unwrap().path()).unwrap();
            n_seeds += 1;
            super::body(&seed);
            for at in 0..seed.len() {
                super::body(&seed[..at]);
                let mut changed = seed.clone();
                for byte in [b'0', b'"', b'{', 0x80, seed[at] ^ 1] {
                    changed[at] = byte;
                    super::body(&changed);
                }
            }
        }
        assert!(n_seeds > 5, "{n_seeds}");
    }
}
