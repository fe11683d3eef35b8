//! Roles and their bindings.

use k8s_openapi::api::rbac::v1 as rbac;
use serde_json::{Value, json};

use super::columns::{Cell, Column, NAME, joined, text, wide};
use super::fields::Check::{OneOf, Required};
use super::fields::Rule;
use super::{Kind, decode, row};
use crate::names;
use crate::object::{list_at, str_at};
use crate::status::FieldError;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) const ROLE: Kind = Kind {
    name_rule: names::path_segment,
    rules: ROLE_RULES,
    columns: ROLE_COLUMNS,
    ..row(GROUP, "Role", "roles", decode::<rbac::Role>)
};

pub(super) const CLUSTER_ROLE: Kind = Kind {
    namespaced: false,
    name_rule: names::path_segment,
    rules: ROLE_RULES,
    columns: ROLE_COLUMNS,
    ..row(GROUP, "ClusterRole", "clusterroles", decode::<rbac::ClusterRole>)
};

pub(super) const ROLE_BINDING: Kind = Kind {
    name_rule: names::path_segment,
    prepare: |binding, _| default_binding(binding),
    rules: BINDING_RULES,
    validate: check_binding,
    columns: BINDING_COLUMNS,
    ..row(GROUP, "RoleBinding", "rolebindings", decode::<rbac::RoleBinding>)
};

pub(super) const CLUSTER_ROLE_BINDING: Kind = Kind {
    namespaced: false,
    name_rule: names::path_segment,
    prepare: |binding, _| default_binding(binding),
    rules: BINDING_RULES,
    validate: |binding, old, errors| {
        if binding["roleRef"]["kind"] == "Role" {
            let kind = &binding["roleRef"]["kind"];
            errors.push(FieldError::not_supported("roleRef.kind", kind, &["ClusterRole"]));
        }
        check_binding(binding, old, errors);
    },
    columns: BINDING_COLUMNS,
    ..row(GROUP, "ClusterRoleBinding", "clusterrolebindings", decode::<rbac::ClusterRoleBinding>)
};

const ROLE_RULES: &[Rule] = &[("rules[].verbs", Required)];

const BINDING_RULES: &[Rule] = &[
    ("roleRef.name", Required),
    ("roleRef.apiGroup", OneOf(&[GROUP])),
    ("roleRef.kind", OneOf(&["Role", "ClusterRole"])),
    ("subjects[].name", Required),
    ("subjects[].kind", OneOf(&["ServiceAccount", "User", "Group"])),
];

const CREATED: Column =
    text("Created At", Cell::Of(|role| json!(str_at(role, "metadata.creationTimestamp"))));

const ROLE_COLUMNS: &[Column] = &[NAME, CREATED];

const BINDING_COLUMNS: &[Column] = &[
    NAME,
    text(
        "Role",
        Cell::Of(|binding| {
            let role = &binding["roleRef"];
            json!(format!("{}/{}", str_at(role, "kind"), str_at(role, "name")))
        }),
    ),
    text("Age", Cell::Since("metadata.creationTimestamp")),
    wide(text("Users", Cell::Of(|binding| subjects(binding, "User")))),
    wide(text("Groups", Cell::Of(|binding| subjects(binding, "Group")))),
    wide(text("ServiceAccounts", Cell::Of(accounts))),
];

fn subjects(binding: &Value, kind: &str) -> Value {
    let subjects = list_at(binding, "subjects").iter();
    joined(subjects.filter(|one| str_at(one, "kind") == kind).map(|one| str_at(one, "name")))
}

fn accounts(binding: &Value) -> Value {
    let subjects = list_at(binding, "subjects").iter();
    let names: Vec<String> = subjects
        .filter(|one| str_at(one, "kind") == "ServiceAccount")
        .map(|one| format!("{}/{}", str_at(one, "namespace"), str_at(one, "name")))
        .collect();
    joined(names.iter().map(String::as_str))
}

fn default_binding(binding: &mut Value) {
    if str_at(binding, "roleRef.apiGroup").is_empty() {
        crate::object::set(binding, "roleRef.apiGroup", json!(GROUP));
    }
    for subject in binding["subjects"].as_array_mut().into_iter().flatten() {
        if str_at(subject, "apiGroup").is_empty() && str_at(subject, "kind") != "ServiceAccount" {
            subject["apiGroup"] = json!(GROUP);
        }
    }
}

fn check_binding(binding: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    if let Some(old) = old
        && old["roleRef"] != binding["roleRef"]
    {
        let why = "cannot change roleRef";
        errors.push(FieldError::invalid("roleRef", &binding["roleRef"], why));
    }
    for (i, subject) in list_at(binding, "subjects").iter().enumerate() {
        let needs_namespace = str_at(subject, "kind") == "ServiceAccount";
        if needs_namespace && str_at(subject, "namespace").is_empty() {
            errors.push(FieldError::required(format!("subjects[{i}].namespace"), ""));
        }
    }
}
