//! Acting as somebody else (`kubectl --as`): whom the headers name, if the caller may be them.

use http::HeaderMap;

use super::{Attributes, Authenticator, User};
use crate::status::{Result, Status};
use crate::store::Store;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// The user that a request is to be answered for, whoever sent it.
pub(super) fn effective(
    auth: &Authenticator,
    store: &Store,
    caller: User,
    headers: &HeaderMap,
) -> Result<User> {
    let all = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.map(str::to_owned).collect()
    };
    let name = all(USER).into_iter().next().unwrap_or_default();
    let (groups, uid) = (all(GROUP), all(UID).into_iter().next().unwrap_or_default());
    let extra = headers.keys().any(|name| name.as_str().starts_with(EXTRA));
    if name.is_empty() {
        if groups.is_empty() && uid.is_empty() && !extra {
            return Ok(caller);
        }
        let message = "requested to impersonate a group, uid or extra without a user";
        return Err(Status::bad_request(message));
    }
    let account = account(&name);
    let may = |resource: &str, namespace: &str, name: &str| {
        let asked = Attributes { group: "", resource, subresource: "", namespace, name };
        auth.permit(store, &caller, "impersonate", &asked)
    };
    match account {
        Some((namespace, name)) => may("serviceaccounts", namespace, name)?,
        None => may("users", "", &name)?,
    }
    for group in &groups {
        may("groups", "", group)?;
    }
    if !uid.is_empty() {
        may("uids", "", &uid)?;
    }
    let groups = match account {
        Some((namespace, _)) if groups.is_empty() => super::account_groups(namespace),
        _ => with_authenticated(&name, groups),
    };
    Ok(User { name, uid, groups })
}

/// The namespace and name of a service account, if the user is one.
fn account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}

fn with_authenticated(name: &str, mut groups: Vec<String>) -> Vec<String> {
    let given =
        if name == "system:anonymous" { "system:unauthenticated" } else { "system:authenticated" };
    if !groups.iter().any(|group| group == given) {
        groups.push(given.into());
    }
    groups
}
