//! Who asks, and whether he may: tokens and RBAC over HTTPS, everybody on plain loopback.

pub(crate) mod bootstrap;
pub(crate) mod escalation;
mod impersonate;
mod rbac;
mod token;

use http::{HeaderMap, Method, header};
use serde_json::{Value, json};

use crate::status::{Result, Status};
use crate::store::Store;

pub(crate) use token::{Keys, write_private};

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) groups: Vec<String>,
}

/// What a request is about, in RBAC's words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a> {
    pub(crate) group: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

/// The groups of every service account of a namespace.
fn account_groups(namespace: &str) -> Vec<String> {
    vec![
        "system:serviceaccounts".into(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".into(),
    ]
}

/// Tells who asks.
#[derive(Debug)]
pub(crate) struct Authenticator {
    keys: Keys,
    /// Off on plain loopback: whoever reaches the port is an administrator.
    required: bool,
}

const MASTERS: &str = "system:masters";

impl User {
    fn admin() -> Self {
        let groups = vec![MASTERS.into(), "system:authenticated".into()];
        Self { name: "system:admin".into(), uid: String::new(), groups }
    }

    fn may_everything(&self) -> bool {
        self.groups.iter().any(|group| group == MASTERS)
    }
}

impl Authenticator {
    pub(crate) fn new(keys: Keys, required: bool) -> Self {
        Self { keys, required }
    }

    /// The user that a request's token names.
    pub(crate) fn identify(&self, store: &Store, headers: &HeaderMap) -> Result<User> {
        if !self.required {
            return Ok(User::admin());
        }
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = value.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        let caller = token.and_then(|token| self.user_of_token(store, token));
        impersonate::effective(self, store, caller.ok_or_else(Status::unauthorized)?, headers)
    }

    pub(crate) fn user_of_token(&self, store: &Store, token: &str) -> Option<User> {
        if self.keys.is_admin(token) {
            return Some(User::admin());
        }
        let account = self.keys.service_account(store, token);
        account.or_else(|| bootstrap::user(&self.keys, store, token))
    }

    /// A token for a service account, good until a time (seconds since 1970).
    pub(crate) fn issue(&self, namespace: &str, name: &str, uid: &str, expires: i64) -> String {
        self.keys.issue(namespace, name, uid, expires)
    }

    /// Refuses what the user may not do.
    pub(crate) fn permit(
        &self,
        store: &Store,
        user: &User,
        verb: &str,
        asked: &Attributes<'_>,
    ) -> Result<()> {
        if self.allows(store, user, verb, asked) {
            return Ok(());
        }
        let Attributes { group, resource, subresource, namespace, name } = asked;
        let resource = if subresource.is_empty() {
            (*resource).to_owned()
        } else {
            format!("{resource}/{subresource}")
        };
        let place = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{namespace}\"")
        };
        let qualified = if group.is_empty() {
            (*asked.resource).to_owned()
        } else {
            format!("{}.{group}", asked.resource)
        };
        let named = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
        let message = format!(
            "{qualified}{named} is forbidden: User \"{}\" cannot {verb} resource \"{resource}\" in \
             API group \"{group}\" {place}",
            user.name
        );
        let mut status = Status::new(403, "Forbidden", message);
        let mut details = json!({"kind": asked.resource});
        if !name.is_empty() {
            details["name"] = json!(name);
        }
        if !group.is_empty() {
            details["group"] = json!(group);
        }
        status.details = Some(details);
        Err(status)
    }

    pub(crate) fn allows(
        &self,
        store: &Store,
        user: &User,
        verb: &str,
        asked: &Attributes<'_>,
    ) -> bool {
        user.may_everything() || rbac::allows(&store.read(), user, verb, asked)
    }

    /// Refuses a path that is not about objects.
    pub(crate) fn permit_path(
        &self,
        store: &Store,
        user: &User,
        method: &Method,
        path: &str,
    ) -> Result<()> {
        let verb = method.as_str().to_lowercase();
        if self.allows_path(store, user, &verb, path) {
            return Ok(());
        }
        let message = format!("forbidden: User \"{}\" cannot {verb} path \"{path}\"", user.name);
        let mut status = Status::new(403, "Forbidden", message);
        status.details = Some(json!({}));
        Err(status)
    }

    pub(crate) fn allows_path(&self, store: &Store, user: &User, verb: &str, path: &str) -> bool {
        user.may_everything() || rbac::allows_path(&store.read(), user, verb, path)
    }

    /// What a user may do in a namespace, as a rules review answers.
    pub(crate) fn rules_of(&self, store: &Store, user: &User, namespace: &str) -> Value {
        if user.may_everything() {
            return json!({
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
                "incomplete": false,
            });
        }
        rbac::rules_of(&store.read(), user, namespace)
    }
}
