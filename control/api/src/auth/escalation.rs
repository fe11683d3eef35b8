//! Nobody gives rights that they do not have: what a role or a binding would grant is compared
//! with what its writer may do.

use serde_json::{Value, json};

use super::{Attributes, User, rbac};
use crate::kinds::Kind;
use crate::object::{at, list_at, str_at};
use crate::status::{Result, Status};
use crate::store::State;

/// Refuses a role or binding that would grant more than its writer holds, unless the writer has
/// been given the verb `escalate` (roles) or `bind` (bindings).
pub(crate) fn check(
    state: &State,
    user: &User,
    kind: &Kind,
    new: &Value,
    old: Option<&Value>,
) -> Result<()> {
    if kind.group != "rbac.authorization.k8s.io" || user.may_everything() {
        return Ok(());
    }
    let same = |path: &str| old.is_some_and(|old| at(old, path) == at(new, path));
    let (namespace, name) = (str_at(new, "metadata.namespace"), str_at(new, "metadata.name"));
    let may = |verb: &str, resource: &str, name: &str| {
        let asked = attributes(resource, namespace, name);
        rbac::allows(state, user, verb, &asked)
    };
    let rules = match kind.plural {
        "roles" | "clusterroles" => {
            if (same("rules") && same("aggregationRule")) || may("escalate", kind.plural, name) {
                return Ok(());
            }
            if !same("aggregationRule") && !at(new, "aggregationRule").is_null() {
                // What it will gather is not known yet.
                vec![json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})]
            } else {
                list_at(new, "rules").to_vec()
            }
        }
        _ => {
            let role = str_at(new, "roleRef.name");
            let plural =
                if str_at(new, "roleRef.kind") == "Role" { "roles" } else { "clusterroles" };
            if (same("roleRef") && same("subjects")) || may("bind", plural, role) {
                return Ok(());
            }
            rbac::rules_of_role(state, new, namespace)
        }
    };
    let missing: Vec<&Value> =
        rules.iter().filter(|rule| !holds(state, user, namespace, rule)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing.iter().map(ToString::to_string).collect();
    let why = format!(
        "user \"{}\" (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        json!(user.groups),
        list.join("\n")
    );
    Err(Status::forbidden(kind, name, &why))
}

/// Whether the user holds every single right of a rule.
fn holds(state: &State, user: &User, namespace: &str, rule: &Value) -> bool {
    let texts = |field: &str| list_at(rule, field).iter().filter_map(Value::as_str);
    let names: Vec<&str> = match list_at(rule, "resourceNames") {
        [] => vec![""],
        _ => texts("resourceNames").collect(),
    };
    texts("verbs").all(|verb| {
        let paths = texts("nonResourceURLs").all(|path| rbac::allows_path(state, user, verb, path));
        let resources = texts("apiGroups").all(|group| {
            texts("resources").all(|resource| {
                names.iter().all(|name| {
                    let asked = Attributes { group, ..attributes(resource, namespace, name) };
                    rbac::allows(state, user, verb, &asked)
                })
            })
        });
        paths && resources
    })
}

/// A right on RBAC's own resources, or on any `resource/subresource`.
fn attributes<'a>(resource: &'a str, namespace: &'a str, name: &'a str) -> Attributes<'a> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    Attributes { group: "rbac.authorization.k8s.io", resource, subresource, namespace, name }
}
