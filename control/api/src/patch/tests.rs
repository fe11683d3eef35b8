//! Patches as tables: an object, a patch, what comes of it.

use serde_json::{Value, json};

use super::apply::apply;
use super::managed::{self, Manager};
use super::strategic;

fn manager(name: &str) -> Manager {
    Manager { name: name.into(), operation: "Apply", subresource: "" }
}

fn pod(containers: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": containers}})
}

#[test]
fn a_strategic_patch_merges_lists_by_key() {
    let cases = [
        // A container that is named is changed, the others stay.
        (
            pod(&json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}])),
            json!({"spec": {"containers": [{"name": "b", "image": "2"}]}}),
            pod(&json!([{"name": "a", "image": "1"}, {"name": "b", "image": "2"}])),
        ),
        // One that is new is added, one with a directive is deleted, in the order asked for.
        (
            pod(&json!([{"name": "a"}, {"name": "b"}])),
            json!({"spec": {
                "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}],
                "containers": [{"name": "c"}, {"name": "b", "$patch": "delete"}],
            }}),
            pod(&json!([{"name": "c"}, {"name": "a"}])),
        ),
        // A list can be replaced whole.
        (
            pod(&json!([{"name": "a"}, {"name": "b"}])),
            json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}),
            pod(&json!([{"name": "z"}])),
        ),
        // A list without a key is replaced; null deletes; a scalar list can lose elements.
        (
            json!({"a": [1, 2], "b": 1, "metadata": {"finalizers": ["x", "y"]}}),
            json!({"a": [3], "b": null, "metadata": {"$deleteFromPrimitiveList/finalizers": ["x"]}}),
            json!({"a": [3], "metadata": {"finalizers": ["y"]}}),
        ),
        // A map can be replaced, and can keep only some keys.
        (
            json!({"s": {"a": 1, "b": 2}, "t": {"a": 1, "b": 2}}),
            json!({"s": {"$patch": "replace", "c": 3}, "t": {"$retainKeys": ["a"], "a": 2}}),
            json!({"s": {"c": 3}, "t": {"a": 2}}),
        ),
    ];
    for (mut value, patch, expected) in cases {
        strategic::merge(&mut value, &patch).unwrap();
        assert_eq!(value, expected, "{patch}");
    }
}

#[test]
fn a_strategic_patch_without_the_key_is_refused() {
    let mut value = pod(&json!([{"name": "a"}]));
    let patch = json!({"spec": {"containers": [{"image": "2"}]}});
    assert_eq!(strategic::merge(&mut value, &patch).unwrap_err().code, 400);
}

fn applied(live: &Value, config: &Value, by: &str) -> Value {
    let (mut merged, entries) = apply(live, config, &manager(by), false).unwrap();
    managed::write(&mut merged, entries);
    merged
}

#[test]
fn what_a_manager_no_longer_says_is_taken_out() {
    let first = json!({"metadata": {}, "data": {"a": "1", "b": "1"}});
    let live = applied(&json!({"metadata": {}}), &first, "one");
    let live = applied(&live, &json!({"metadata": {}, "data": {"a": "1"}}), "one");
    assert_eq!(live["data"], json!({"a": "1"}));
}

#[test]
fn what_another_manager_says_too_stays() {
    let config = json!({"metadata": {}, "data": {"a": "1"}});
    let live = applied(&json!({"metadata": {}}), &config, "one");
    let live = applied(&live, &config, "two");
    let live = applied(&live, &json!({"metadata": {}, "data": {}}), "one");
    assert_eq!(live["data"], json!({"a": "1"}));
}

#[test]
fn a_field_of_another_manager_is_a_conflict_unless_forced() {
    let live = json!({"metadata": {}});
    let live = applied(&live, &json!({"metadata": {}, "data": {"a": "1"}}), "one");
    let config = json!({"metadata": {}, "data": {"a": "2"}});
    let refused = apply(&live, &config, &manager("two"), false).unwrap_err();
    assert_eq!((refused.code, refused.reason), (409, "Conflict"));
    assert!(refused.message.contains("conflict with \"one\""), "{}", refused.message);
    assert!(refused.message.ends_with(".data.a"), "{}", refused.message);

    let (forced, entries) = apply(&live, &config, &manager("two"), true).unwrap();
    assert_eq!(forced["data"]["a"], "2");
    assert!(entries.iter().all(|entry| !entry.is_of(&manager("one")) || entry.fields.is_empty()));
}

#[test]
fn an_update_takes_ownership_of_what_it_changes() {
    let live = json!({"metadata": {}});
    let live = applied(&live, &json!({"metadata": {}, "data": {"a": "1", "b": "1"}}), "one");
    let mut new = live.clone();
    new["data"]["a"] = json!("2");
    let editor = Manager { name: "editor".into(), operation: "Update", subresource: "" };
    managed::update(Some(&live), &mut new, &editor, "v1", "now");
    let entries = managed::read(&new);
    let owns = |manager: &Manager, field: &str| {
        let path = vec!["f:data".to_owned(), format!("f:{field}")];
        entries.iter().any(|entry| entry.is_of(manager) && entry.fields.contains(&path))
    };
    assert!(owns(&editor, "a") && !owns(&manager("one"), "a"));
    assert!(owns(&manager("one"), "b") && !owns(&editor, "b"));
}

#[test]
fn the_elements_of_a_list_are_owned_by_their_keys() {
    let live = json!({"metadata": {}});
    let one = pod(&json!([{"name": "a", "image": "1", "ports": [{"containerPort": 80}]}]));
    let two = pod(&json!([{"name": "b", "image": "1"}]));
    let live = applied(&live, &one, "one");
    let live = applied(&live, &two, "two");
    assert_eq!(live["spec"]["containers"].as_array().unwrap().len(), 2);
    let live = applied(&live, &pod(&json!([])), "one");
    assert_eq!(live["spec"]["containers"], json!([{"name": "b", "image": "1"}]));
}
