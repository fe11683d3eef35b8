//! What the server has: its version, groups and resources, in both forms of discovery.

use std::collections::BTreeMap;

use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use super::{Request, json_response, negotiate, respond};
use crate::kinds::{KINDS, Kind, Subresource};
use crate::status::{Result, Status};

/// The Kubernetes version whose API this is.
const MINOR: &str = "37";

const VERBS: [&str; 8] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

pub(super) fn version() -> Value {
    json!({
        "major": "1",
        "minor": MINOR,
        "gitVersion": format!("v1.{MINOR}.0+fairlead-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", std::env::consts::ARCH),
    })
}

pub(super) fn answer(request: &Request, segments: &[&str]) -> Result<Response> {
    let found = match segments {
        [] => {
            let paths = [
                "/api",
                "/api/v1",
                "/apis",
                "/healthz",
                "/livez",
                "/openapi/v2",
                "/openapi/v3",
                "/readyz",
                "/version",
            ];
            json!({"paths": paths})
        }
        ["api"] => match aggregated(request, &[""])? {
            Some(response) => return Ok(response),
            None => json!({
                "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [],
            }),
        },
        ["apis"] => {
            let groups = named_groups();
            match aggregated(request, &groups)? {
                Some(response) => return Ok(response),
                None => json!({
                    "kind": "APIGroupList", "apiVersion": "v1",
                    "groups": groups.iter().map(|name| group(name)).collect::<Vec<_>>(),
                }),
            }
        }
        ["api", "v1"] => resource_list("", "v1"),
        ["apis", name] if named_groups().contains(name) => {
            let mut value = group(name);
            value["kind"] = json!("APIGroup");
            value["apiVersion"] = json!("v1");
            value
        }
        ["apis", name, "v1"] if named_groups().contains(name) => resource_list(name, "v1"),
        _ => return Err(Status::no_such_path()),
    };
    Ok(json_response(StatusCode::OK, &found))
}

/// The groups that have a name, in the order in which kubectl should prefer them.
pub(super) fn named_groups() -> Vec<&'static str> {
    let own = KINDS.iter().map(|kind| kind.group).filter(|group| !group.is_empty());
    let mut groups = Vec::new();
    for group in own.chain(["events.k8s.io", "authentication.k8s.io", "authorization.k8s.io"]) {
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}

fn group(name: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
    json!({"name": name, "versions": [version.clone()], "preferredVersion": version})
}

/// One resource as discovery lists it.
struct Listed {
    name: String,
    kind: &'static str,
    namespaced: bool,
    verbs: Vec<&'static str>,
    of: Option<&'static Kind>,
    /// The group and version of a subresource's own kind.
    response: Option<(&'static str, &'static str)>,
}

fn resources(group: &str) -> Vec<Listed> {
    let mut found = Vec::new();
    for kind in KINDS {
        let viewed = group == "events.k8s.io" && kind.plural == "events";
        if kind.group != group && !viewed {
            continue;
        }
        found.push(Listed {
            name: kind.plural.into(),
            kind: kind.kind,
            namespaced: kind.namespaced,
            verbs: VERBS.to_vec(),
            of: Some(kind),
            response: None,
        });
        for sub in kind.subresources {
            let (name, verbs, response): (_, &[_], _) = match sub {
                Subresource::Status | Subresource::EphemeralContainers => {
                    (kind.kind, &["get", "patch", "update"], None)
                }
                Subresource::Finalize => (kind.kind, &["update"], None),
                Subresource::Scale => {
                    ("Scale", &["get", "patch", "update"], Some(("autoscaling", "v1")))
                }
                Subresource::Binding => ("Binding", &["create"], None),
                Subresource::Eviction => ("Eviction", &["create"], Some(("policy", "v1"))),
                Subresource::Token => {
                    ("TokenRequest", &["create"], Some(("authentication.k8s.io", "v1")))
                }
            };
            found.push(Listed {
                name: format!("{}/{}", kind.plural, sub.name()),
                kind: name,
                namespaced: kind.namespaced,
                verbs: verbs.to_vec(),
                of: None,
                response,
            });
        }
    }
    for (kind, plural, namespaced) in
        super::review::KINDS.iter().filter(|(_, plural, _)| super::review::is_review(group, plural))
    {
        found.push(Listed {
            name: (*plural).into(),
            kind,
            namespaced: *namespaced,
            verbs: vec!["create"],
            of: None,
            response: None,
        });
    }
    found
}

fn resource_list(group: &str, version: &str) -> Value {
    let resources: Vec<Value> = resources(group)
        .into_iter()
        .map(|one| {
            let mut value = json!({
                "name": one.name, "singularName": one.of.map_or(String::new(), |k| k.kind.to_lowercase()),
                "namespaced": one.namespaced, "kind": one.kind, "verbs": one.verbs,
            });
            if let Some((group, version)) = one.response {
                value["group"] = json!(group);
                value["version"] = json!(version);
            }
            if let Some(kind) = one.of {
                add_names(&mut value, kind);
            }
            value
        })
        .collect();
    let group_version =
        if group.is_empty() { version.into() } else { format!("{group}/{version}") };
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version,
        "resources": resources,
    })
}

fn add_names(value: &mut Value, kind: &Kind) {
    if !kind.short_names.is_empty() {
        value["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        value["categories"] = json!(kind.categories);
    }
}

/// All groups and resources in one answer, for a client that asks for it so.
fn aggregated(request: &Request, groups: &[&str]) -> Result<Option<Response>> {
    let accept = negotiate::accept(&request.headers);
    let version = accept.split(',').find_map(|one| {
        let wants = one.contains("as=APIGroupDiscoveryList");
        let version = ["v2", "v2beta1"]
            .into_iter()
            .find(|v| one.contains(&format!("v={v};")) || one.trim().ends_with(&format!("v={v}")));
        version.filter(|_| wants)
    });
    let Some(version) = version else { return Ok(None) };
    let items: Vec<Value> = groups
        .iter()
        .map(|group| {
            let version = json!({
                "version": "v1", "freshness": "Current", "resources": discovered(group),
            });
            json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": [version]})
        })
        .collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items,
    });
    let content_type = match version {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    Ok(Some(respond(StatusCode::OK, content_type, list.to_string())))
}

fn discovered(group: &str) -> Vec<Value> {
    let mut subresources: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut found = Vec::new();
    for one in resources(group) {
        let (own_group, version) = one.response.unwrap_or_else(|| (group_static(group), "v1"));
        let response = json!({"group": own_group, "version": version, "kind": one.kind});
        if let Some((parent, sub)) = one.name.split_once('/') {
            let value = json!({"subresource": sub, "responseKind": response, "verbs": one.verbs});
            subresources.entry(parent.into()).or_default().push(value);
            continue;
        }
        let scope = if one.namespaced { "Namespaced" } else { "Cluster" };
        let mut value = json!({
            "resource": one.name, "responseKind": response, "scope": scope,
            "singularResource": one.kind.to_lowercase(), "verbs": one.verbs,
        });
        if let Some(kind) = one.of {
            add_names(&mut value, kind);
        }
        found.push(value);
    }
    for value in &mut found {
        let name = value["resource"].as_str().unwrap_or_default().to_owned();
        if let Some(subs) = subresources.remove(&name) {
            value["subresources"] = Value::Array(subs);
        }
    }
    found
}

fn group_static(group: &str) -> &'static str {
    named_groups().into_iter().find(|name| *name == group).unwrap_or("")
}
