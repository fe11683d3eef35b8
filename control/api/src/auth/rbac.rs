//! RBAC: the rules that bindings give to a user, and what they allow.

use serde_json::{Value, json};

use super::{Attributes, User};
use crate::kinds;
use crate::object::{Key, list_at, str_at};
use crate::store::State;

pub(super) fn allows(state: &State, user: &User, verb: &str, asked: &Attributes<'_>) -> bool {
    rules(state, user, asked.namespace).iter().any(|rule| rule_allows(rule, verb, asked))
}

pub(super) fn allows_path(state: &State, user: &User, verb: &str, path: &str) -> bool {
    rules(state, user, "").iter().any(|rule| {
        let urls = list_at(rule, "nonResourceURLs").iter().filter_map(Value::as_str);
        has(rule, "verbs", verb)
            && urls.into_iter().any(|url| match url.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => url == path,
            })
    })
}

pub(super) fn rules_of(state: &State, user: &User, namespace: &str) -> Value {
    let (paths, resources): (Vec<_>, Vec<_>) = rules(state, user, namespace)
        .into_iter()
        .partition(|rule| !list_at(rule, "nonResourceURLs").is_empty());
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}

/// All rules that apply to a user in a namespace, or cluster-wide.
fn rules(state: &State, user: &User, namespace: &str) -> Vec<Value> {
    let mut rules = Vec::new();
    for (_, object) in state.list(kinds::number("clusterrolebindings"), None) {
        add(state, user, &object.value(), "", &mut rules);
    }
    if !namespace.is_empty() {
        for (_, object) in state.list(kinds::number("rolebindings"), Some(namespace)) {
            add(state, user, &object.value(), namespace, &mut rules);
        }
    }
    rules
}

fn add(state: &State, user: &User, binding: &Value, namespace: &str, rules: &mut Vec<Value>) {
    if !list_at(binding, "subjects").iter().any(|subject| is_subject(user, subject, namespace)) {
        return;
    }
    rules.extend(rules_of_role(state, binding, namespace));
}

/// The rules of the role that a binding in a namespace names.
pub(super) fn rules_of_role(state: &State, binding: &Value, namespace: &str) -> Vec<Value> {
    let name = str_at(binding, "roleRef.name");
    let key = match str_at(binding, "roleRef.kind") {
        "Role" => Key::new(kinds::number("roles"), namespace, name),
        _ => Key::new(kinds::number("clusterroles"), "", name),
    };
    let Some(role) = state.get(&key).map(|object| object.value()) else { return Vec::new() };
    let mut rules = list_at(&role, "rules").to_vec();
    for selector in list_at(&role, "aggregationRule.clusterRoleSelectors") {
        let selector = crate::selector::LabelSelector::from_value(selector);
        for (_, object) in state.list(kinds::number("clusterroles"), None) {
            if selector.matches(object) {
                rules.extend(list_at(&object.value(), "rules").iter().cloned());
            }
        }
    }
    rules
}

fn is_subject(user: &User, subject: &Value, namespace: &str) -> bool {
    let name = str_at(subject, "name");
    match str_at(subject, "kind") {
        "User" => user.name == name,
        "Group" => user.groups.iter().any(|group| group == name),
        "ServiceAccount" => {
            let of = match str_at(subject, "namespace") {
                "" => namespace,
                of => of,
            };
            user.name == format!("system:serviceaccount:{of}:{name}")
        }
        _ => false,
    }
}

fn rule_allows(rule: &Value, verb: &str, asked: &Attributes<'_>) -> bool {
    let names = list_at(rule, "resourceNames");
    has(rule, "verbs", verb)
        && has(rule, "apiGroups", asked.group)
        && has_resource(rule, asked)
        && (names.is_empty() || names.iter().any(|name| name == asked.name))
}

fn has(rule: &Value, field: &str, wanted: &str) -> bool {
    list_at(rule, field).iter().any(|one| one == "*" || one == wanted)
}

fn has_resource(rule: &Value, asked: &Attributes<'_>) -> bool {
    let whole = if asked.subresource.is_empty() {
        asked.resource.to_owned()
    } else {
        format!("{}/{}", asked.resource, asked.subresource)
    };
    let resources = list_at(rule, "resources").iter().filter_map(Value::as_str);
    resources.into_iter().any(|one| {
        one == "*"
            || one == whole
            || one.strip_prefix("*/").is_some_and(|sub| sub == asked.subresource)
    })
}
