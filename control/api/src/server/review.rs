//! Questions asked by creating an object that is not stored: who am I, may I, may they.

use axum::response::Response;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Api, Request, body, json_response};
use crate::auth::{Attributes, User};
use crate::object::{at, list_at, object, set, str_at};
use crate::status::{Result, Status};

/// Kind, resource, and whether it is asked within a namespace.
pub(super) const KINDS: [(&str, &str, bool); 6] = [
    ("SelfSubjectAccessReview", "selfsubjectaccessreviews", false),
    ("SelfSubjectRulesReview", "selfsubjectrulesreviews", false),
    ("SubjectAccessReview", "subjectaccessreviews", false),
    ("LocalSubjectAccessReview", "localsubjectaccessreviews", true),
    ("SelfSubjectReview", "selfsubjectreviews", false),
    ("TokenReview", "tokenreviews", false),
];

pub(super) fn is_review(group: &str, plural: &str) -> bool {
    let authentication = matches!(plural, "selfsubjectreviews" | "tokenreviews");
    let group_fits = match group {
        "authentication.k8s.io" => authentication,
        "authorization.k8s.io" => !authentication,
        _ => false,
    };
    group_fits && KINDS.iter().any(|(_, known, _)| *known == plural)
}

pub(super) fn answer(
    api: &Api,
    request: &Request,
    plural: &str,
    namespace: Option<&str>,
) -> Result<Response> {
    if request.method != Method::POST {
        return Err(Status::method_not_allowed());
    }
    let mut review = body::parse(request)?;
    let group = if plural == "tokenreviews" || plural == "selfsubjectreviews" {
        "authentication.k8s.io"
    } else {
        "authorization.k8s.io"
    };
    // Everybody may ask about himself; about others only who may create such a review.
    if !plural.starts_with("self") {
        let namespace = namespace.unwrap_or_default();
        let attributes =
            Attributes { group, resource: plural, subresource: "", namespace, name: "" };
        api.auth.permit(&api.store, &request.user, "create", &attributes)?;
    }
    let status = match plural {
        "selfsubjectreviews" => json!({"userInfo": user_info(&request.user)}),
        "tokenreviews" => token(api, &review),
        "selfsubjectrulesreviews" => {
            let namespace = str_at(&review, "spec.namespace");
            api.auth.rules_of(&api.store, &request.user, namespace)
        }
        "selfsubjectaccessreviews" => access(api, &request.user, &review),
        _ => {
            let groups = list_at(&review, "spec.groups").iter();
            let user = User {
                name: str_at(&review, "spec.user").to_owned(),
                uid: String::new(),
                groups: groups.filter_map(Value::as_str).map(Into::into).collect(),
            };
            access(api, &user, &review)
        }
    };
    let kind = KINDS.iter().find(|(_, known, _)| *known == plural).map_or("", |(kind, ..)| kind);
    set(&mut review, "apiVersion", json!(format!("{group}/v1")));
    set(&mut review, "kind", json!(kind));
    object(&mut review).insert("status".into(), status);
    Ok(json_response(StatusCode::CREATED, &review))
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    info
}

fn token(api: &Api, review: &Value) -> Value {
    match api.auth.user_of_token(&api.store, str_at(review, "spec.token")) {
        Some(user) => json!({"authenticated": true, "user": user_info(&user)}),
        None => json!({"authenticated": false, "user": {}, "error": "invalid bearer token"}),
    }
}

fn access(api: &Api, user: &User, review: &Value) -> Value {
    let attributes = at(review, "spec.resourceAttributes");
    let allowed = if attributes.is_object() {
        let asked = Attributes {
            group: str_at(attributes, "group"),
            resource: str_at(attributes, "resource"),
            subresource: str_at(attributes, "subresource"),
            namespace: str_at(attributes, "namespace"),
            name: str_at(attributes, "name"),
        };
        api.auth.allows(&api.store, user, str_at(attributes, "verb"), &asked)
    } else {
        let path = at(review, "spec.nonResourceAttributes");
        api.auth.allows_path(&api.store, user, str_at(path, "verb"), str_at(path, "path"))
    };
    json!({"allowed": allowed})
}
