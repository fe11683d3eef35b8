//! The quick reader against the complete one.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

fn quick<T: DeserializeOwned>(text: &str) -> Result<T, Declined> {
    read(text, std::marker::PhantomData::<T>)
}

fn complete<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}

#[test]
fn what_kubectl_prints_is_plain() {
    let text = "---
apiVersion: v1
kind: Service
metadata:
  annotations:
    note: \"a: b # c\"
  creationTimestamp: '2026-01-01T00:00:00Z' # then
  labels: {}
spec:
  # the usual
  clusterIP: 10.0.0.1
  ports:
  - name: http
    port: 80
    targetPort: web

  - name: dns
    port: 53
  ranges:
    - 10.0.0.0/8
    -   - nested
        - deeper
  selector:
status:
  loadBalancer: {}
";
    let value: Value = quick(text).unwrap();
    assert_eq!(value, complete::<Value>(text).unwrap());
    assert_eq!(value["spec"]["ports"][1]["port"], json!(53));
    assert_eq!(value["spec"]["ranges"][1][1], json!("deeper"));
}

#[test]
fn what_is_not_plain_is_declined() {
    for text in [
        "a: &x 1\n",
        "a: *x\n",
        "a: !!str 1\n",
        "a: |\n  text\n",
        "a: {b: c}\n",
        "a: [1]\n",
        "a: one\n  two\n",
        "a: 1\na: 2\n",
        "a: \"\\n\"\n",
        "a: 'it''s'\n",
        "a:\tb\n",
        "a: é\n",
        "a: 0x1F\n",
        "a: 1.5\n",
        "a: yes\n",
        "? a\n: b\n",
        "<<: 1\n",
        "a: b: c\n",
        "a: 1\n  b: 2\n",
        "a:\n  b: 1\n c: 2\n",
        "- a\nb: 1\n",
        "...\n",
    ] {
        assert_eq!(quick::<Value>(text), Err(Declined), "{text}");
    }
}

/// What lines may hold; many fit together and many do not.
#[rustfmt::skip]
const CONTENTS: &[&str] = &[
    "a:", "b:", "c:", "d: 1", "e: x y", "f: \"q: r\"", "g: 'it'", "h: {}", "i: []", "j: ~",
    "k: null", "l: true", "m: off", "n: 08", "o: -1", "p: -", "q: a #b", "r: a#b", "s: \"\"",
    "t: 1.5", "u: a:b", "v: a:", "w: b: c", "'x': 1", "\"y\": z", "y:z: 1", "- a", "- b: 1",
    "- b:", "-", "- ", "- - c", "- {}", "- []", "-a", "- 'x': y", "- \"q\"", "# note", "#", "",
    "x", "- # n", "a: # n", "b : 1", "k: 2 ", "- d: 1", "- -1", "--- x", "...", "'q'", "~: 1",
    "1: 2", "true: 1", "a/b.c: d", "z: \"a\" # c", "z: \"a\"#c", "null: 1", "No: 2", "- ~",
    "- null", "e: -", "e: - a", "e: ?", "e: :x", "e: a,b", "e: a]b", "e: 2026-01-01",
    "e: 10.0.0.1", "e: /x", "e: +1", "e: .5", "e: 0", "e: -0", "e: 123456789012345678901",
    "e: Yes", "e: NULL", "e: n", "e: --", "e: ---", "e: a -b", "e: .nan", "e: inf", "e: nan",
];

fn documents() -> impl Strategy<Value = String> {
    let content = prop::sample::select(CONTENTS);

    let line =
        (0_usize..6, content).prop_map(|(column, content)| format!("{:column$}{content}\n", ""));
    prop::collection::vec(line, 0..9).prop_map(|lines| lines.concat())
}

/// A document that is mostly well formed: the lines of a value, at column 0.
fn value_lines() -> impl Strategy<Value = Vec<String>> {
    let scalars: Vec<&str> = CONTENTS
        .iter()
        .filter_map(|content| content.split_once(": ").map(|(_, value)| value))
        .collect();
    let leaf = prop::sample::select(scalars).prop_map(|scalar| vec![scalar.to_owned()]);
    leaf.prop_recursive(4, 24, 3, |inner| {
        let keys = prop::sample::select(vec!["a", "b", "k8s.io/c", "'d'", "\"e\"", "f:g"]);
        let entry = (keys, 1_usize..4, inner.clone());
        let mapping = prop::collection::vec(entry, 1..4).prop_map(|entries| {
            let entry = |(key, indent, lines)| under(&format!("{key}:"), indent, lines);
            entries.into_iter().flat_map(entry).collect()
        });
        let sequence = prop::collection::vec((0_usize..3, inner), 1..4).prop_map(|items| {
            items.into_iter().flat_map(|(indent, lines)| behind_dash(indent, lines)).collect()
        });
        prop_oneof![2 => mapping, 1 => sequence]
    })
}

fn under(key: &str, indent: usize, lines: Vec<String>) -> Vec<String> {
    if let [line] = lines.as_slice()
        && !is_dash(line)
        && !line.ends_with(':')
        && !line.contains(": ")
    {
        return vec![format!("{key} {line}")];
    }
    // Dashes may stand right under the key.
    let indent = if lines.first().is_some_and(|line| is_dash(line)) { indent - 1 } else { indent };
    let below = lines.into_iter().map(|line| format!("{:indent$}{line}", ""));
    std::iter::once(key.to_owned()).chain(below).collect()
}

fn behind_dash(indent: usize, lines: Vec<String>) -> Vec<String> {
    let column = 2 + indent;
    let mut lines = lines.into_iter();
    let first = format!("-{:1$}{2}", "", column - 1, lines.next().unwrap_or_default());
    let rest = lines.map(|line| format!("{:column$}{line}", ""));
    std::iter::once(first).chain(rest).collect()
}

/// A well-formed document into which one line more may have come, or one less.
fn disturbed() -> impl Strategy<Value = String> {
    let other = (0_usize..6, prop::sample::select(CONTENTS));
    let place = any::<prop::sample::Index>();
    (value_lines(), place, other, 0_usize..4).prop_map(|(mut lines, place, other, what)| {
        let place = place.index(lines.len());
        let other = format!("{:1$}{2}", "", other.0, other.1);
        match what {
            0 => lines.insert(place, other),
            1 => drop(lines.remove(place)),
            _ => {}
        }
        lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    })
}

fn compare<T: DeserializeOwned + PartialEq + fmt::Debug>(text: &str) -> Result<(), TestCaseError> {
    if let Ok(value) = quick::<T>(text) {
        prop_assert_eq!(Ok(value), complete::<T>(text), "{}", text);
    }
    Ok(())
}

fn compare_all(text: &str) -> Result<(), TestCaseError> {
    compare::<Value>(text)?;
    compare::<BTreeMap<String, Option<Vec<BTreeMap<String, Option<String>>>>>>(text)?;
    compare::<BTreeMap<String, Option<String>>>(text)?;
    compare::<BTreeMap<String, BTreeMap<String, i32>>>(text)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn what_the_quick_reader_takes_the_complete_one_reads_alike(text in disturbed()) {
        compare_all(&text)?;
    }

    #[test]
    fn no_heap_of_lines_is_taken_for_something_else(text in documents()) {
        compare_all(&text)?;
    }
}
