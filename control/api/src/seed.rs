//! What every cluster has from the first moment, and what a restart puts right.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::allocate::{self, Ranges};
use crate::auth::bootstrap;
use crate::kinds::{self, KINDS};
use crate::object::{Key, list_at, set, str_at};
use crate::server::Api;
use crate::server::identity::stamp;
use crate::status::Result;
use crate::store::{Store, Txn};

/// Makes what is missing, points `default/kubernetes` at this server, and repairs allocations.
pub(crate) async fn seed(store: &Store, ranges: &Ranges, server: SocketAddr) -> Result<()> {
    let ranges = ranges.clone();
    store
        .write(move |txn| {
            for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
                ensure(txn, "namespaces", "", namespace, json!({}))?;
            }
            for (name, value, what) in [
                ("system-cluster-critical", 2_000_000_000, "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary."),
                ("system-node-critical", 2_000_001_000, "Used for system critical pods that must not be moved from their current node."),
            ] {
                let class = json!({"value": value, "description": what});
                ensure(txn, "priorityclasses", "", name, class)?;
            }
            let cidrs: Vec<String> = ranges.service_cidrs.iter().map(ToString::to_string).collect();
            ensure(txn, "servicecidrs", "", "kubernetes", json!({"spec": {"cidrs": cidrs}}))?;
            seed_roles(txn)?;
            seed_nodes(txn)?;
            seed_service(txn, &ranges, server)?;
            repair(txn)
        })
        .await
}

/// Makes `default/kubernetes` again whenever somebody deletes it, until told to stop.
pub(crate) async fn keep(api: Arc<Api>, server: SocketAddr) {
    let kinds = ["services", "endpointslices"].map(kinds::number);
    let [Some(mut services), Some(mut slices)] = kinds.map(|kind| api.store.changes(kind)) else {
        return;
    };
    loop {
        let missing = {
            let state = api.store.read();
            kinds.iter().any(|kind| state.get(&Key::new(*kind, "default", "kubernetes")).is_none())
        };
        if missing && let Err(status) = seed(&api.store, &api.ranges, server).await {
            tracing::warn!(error = status.message, "cannot restore default/kubernetes");
        }
        tokio::select! {
            () = api.stop.cancelled() => return,
            changed = services.changed() => if changed.is_err() { return },
            changed = slices.changed() => if changed.is_err() { return },
        }
    }
}

pub(crate) fn ensure(
    txn: &mut Txn<'_>,
    plural: &str,
    namespace: &str,
    name: &str,
    content: Value,
) -> Result<()> {
    let number = kinds::number(plural);
    let key = Key::new(number, namespace, name);
    if txn.get(&key).is_some() {
        return Ok(());
    }
    let value = make(number, namespace, name, content);
    txn.put(key, value);
    Ok(())
}

fn make(number: usize, namespace: &str, name: &str, mut value: Value) -> Value {
    if let Some(kind) = KINDS.get(number) {
        set(&mut value, "apiVersion", json!(kind.api_version()));
        set(&mut value, "kind", json!(kind.kind));
        set(&mut value, "metadata.name", json!(name));
        if !namespace.is_empty() {
            set(&mut value, "metadata.namespace", json!(namespace));
        }
        stamp(&mut value);
        kind.default(&mut value, None);
    }
    value
}

/// The Service by which pods reach this server, and where it leads.
fn seed_service(txn: &mut Txn<'_>, ranges: &Ranges, server: SocketAddr) -> Result<()> {
    let number = kinds::number("services");
    let key = Key::new(number, "default", "kubernetes");
    if txn.get(&key).is_none() {
        let first = ranges.service_cidrs.first().and_then(|cidr| cidr.hosts().next());
        let content = json!({
            "metadata": {"labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {
                "clusterIP": first.map(|ip| ip.to_string()),
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": server.port()}],
            },
        });
        let mut service = make(number, "default", "kubernetes", content);
        allocate::allocate(txn, ranges, &key, &mut service, None)?;
        txn.put(key, service);
    }
    let slices = kinds::number("endpointslices");
    let key = Key::new(slices, "default", "kubernetes");
    let family = if server.is_ipv4() { "IPv4" } else { "IPv6" };
    let content = json!({
        "metadata": {"labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family,
        "endpoints": [{"addresses": [server.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": server.port(), "protocol": "TCP"}],
    });
    let current = txn.get(&key).map(|object| object.value());
    let same = current.as_ref().is_some_and(|slice| {
        ["addressType", "endpoints", "ports"].iter().all(|field| slice[*field] == content[*field])
    });
    if !same {
        let slice = make(slices, "default", "kubernetes", content.clone());
        txn.put(key, slice);
        let content = json!({
            "metadata": {"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": [{
                "addresses": [{"ip": server.ip().to_string()}], "ports": content["ports"],
            }],
        });
        let number = kinds::number("endpoints");
        let endpoints = make(number, "default", "kubernetes", content);
        txn.put(Key::new(number, "default", "kubernetes"), endpoints);
    }
    Ok(())
}

/// The roles that upstream gives out by name, and who has them.
fn seed_roles(txn: &mut Txn<'_>) -> Result<()> {
    let everything = json!([
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
        {"nonResourceURLs": ["*"], "verbs": ["*"]},
    ]);
    let workloads =
        json!(["", "apps", "batch", "discovery.k8s.io", "events.k8s.io", "coordination.k8s.io",]);
    let in_namespaces = json!([
        "pods",
        "pods/status",
        "pods/scale",
        "services",
        "services/status",
        "endpoints",
        "configmaps",
        "serviceaccounts",
        "events",
        "replicationcontrollers",
        "replicationcontrollers/scale",
        "replicasets",
        "replicasets/scale",
        "deployments",
        "deployments/scale",
        "statefulsets",
        "statefulsets/scale",
        "daemonsets",
        "controllerrevisions",
        "jobs",
        "cronjobs",
        "endpointslices",
        "namespaces",
    ]);
    let read = json!(["get", "list", "watch"]);
    let write =
        json!(["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]);
    let view = json!({"apiGroups": workloads, "resources": in_namespaces, "verbs": read});
    let edit = json!({"apiGroups": workloads, "resources": in_namespaces, "verbs": write});
    let secrets = json!({"apiGroups": [""], "resources": ["secrets", "serviceaccounts/token", "pods/eviction"], "verbs": write});
    let roles = json!({
        "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"],
        "verbs": write,
    });
    let discover = json!([{
        "nonResourceURLs": ["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez",
            "/openapi", "/openapi/*", "/readyz", "/version", "/version/"],
        "verbs": ["get"],
    }]);
    let public = json!([{
        "nonResourceURLs": ["/healthz", "/livez", "/readyz", "/version", "/version/"],
        "verbs": ["get"],
    }]);
    for (name, rules) in [
        ("cluster-admin", everything),
        ("admin", json!([edit, secrets, roles])),
        ("edit", json!([edit, secrets])),
        ("view", json!([view])),
        ("system:discovery", discover),
        ("system:public-info-viewer", public),
    ] {
        ensure(txn, "clusterroles", "", name, json!({"rules": rules}))?;
    }
    for (role, group) in [
        ("cluster-admin", "system:masters"),
        ("system:discovery", "system:authenticated"),
        ("system:public-info-viewer", "system:authenticated"),
    ] {
        let content = json!({
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": group}],
        });
        ensure(txn, "clusterrolebindings", "", role, content)?;
    }
    Ok(())
}

/// The account of nodes that join, what it may do, and that who is invited may become it.
fn seed_nodes(txn: &mut Txn<'_>) -> Result<()> {
    const ACCOUNT: &str = "fairlead-node";
    const SYSTEM: &str = "kube-system";
    let rbac = "rbac.authorization.k8s.io";
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    let read = ["get", "list", "watch"];
    let rules = json!([
        rule(&[""], &["services", "endpoints", "namespaces", "pods", "nodes"], &read),
        rule(&["discovery.k8s.io"], &["endpointslices"], &read),
        rule(&[""], &["configmaps", "secrets", "serviceaccounts"], &["get"]),
        rule(&[""], &["serviceaccounts/token"], &["create"]),
        rule(&[""], &["nodes"], &["create", "patch"]),
        rule(&[""], &["nodes/status", "pods/status"], &["patch"]),
        rule(&[""], &["pods"], &["delete"]),
        rule(&["", "events.k8s.io"], &["events"], &["create", "patch"]),
        rule(&["coordination.k8s.io"], &["leases"], &["get", "list", "watch", "create", "patch"]),
    ]);
    ensure(txn, "serviceaccounts", SYSTEM, ACCOUNT, json!({}))?;
    ensure(txn, "clusterroles", "", "fairlead:node", json!({"rules": rules}))?;
    let account = json!({"kind": "ServiceAccount", "namespace": SYSTEM, "name": ACCOUNT});
    let invited = json!({"kind": "Group", "apiGroup": rbac, "name": bootstrap::GROUP});
    let role = |kind: &str, name: &str| json!({"apiGroup": rbac, "kind": kind, "name": name});
    let content = json!({"roleRef": role("ClusterRole", "fairlead:node"), "subjects": [account]});
    ensure(txn, "clusterrolebindings", "", "fairlead:node", content)?;
    // Where nodes say that they answer names, and how their logs are asked for.
    let own = json!([
        rule(&[""], &["services", "secrets"], &["create", "patch"]),
        rule(&["discovery.k8s.io"], &["endpointslices"], &["create", "patch"]),
    ]);
    let become_one = json!([{
        "apiGroups": [""], "resources": ["serviceaccounts/token"], "resourceNames": [ACCOUNT],
        "verbs": ["create"],
    }]);
    for (name, rules, subject) in
        [("fairlead:node", own, &account), ("fairlead:join", become_one, &invited)]
    {
        ensure(txn, "roles", SYSTEM, name, json!({"rules": rules}))?;
        let content = json!({"roleRef": role("Role", name), "subjects": [subject]});
        ensure(txn, "rolebindings", SYSTEM, name, content)?;
    }
    Ok(())
}

/// An address whose Service is gone, or has another, is released.
fn repair(txn: &mut Txn<'_>) -> Result<()> {
    let services = kinds::number("services");
    for (key, object) in txn.list(kinds::number("ipaddresses"), None) {
        let address = object.value();
        let managed = object.label("ipaddress.kubernetes.io/managed-by");
        if managed != Some("ipallocator.k8s.io") {
            continue;
        }
        let parent = &address["spec"]["parentRef"];
        let (namespace, name) = (str_at(parent, "namespace"), str_at(parent, "name"));
        let service = txn.get(&Key::new(services, namespace, name)).map(|object| object.value());
        let held = service.is_some_and(|service| {
            list_at(&service, "spec.clusterIPs").iter().any(|ip| ip == &*key.name)
        });
        if !held {
            tracing::info!(address = &*key.name, "release a cluster IP that no service has");
            txn.delete(key, address);
        }
    }
    Ok(())
}
