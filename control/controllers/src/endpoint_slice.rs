//! Endpoint slices (and Endpoints, for older clients) from a Service's selector and its pods.

pub(crate) mod mirror;
mod pack;

use std::collections::BTreeMap;

use futures::FutureExt;
use serde_json::{Value, json};

use crate::cache::{Caches, Change, Key};
use crate::cluster::Result;
use crate::json::{
    at, has_all, is_being_deleted, label, list_at, name, namespace, owner_reference, str_at, uid,
};
use crate::kinds::{ENDPOINT_SLICE, ENDPOINTS, NODE, POD, SERVICE};
use crate::pods::{is_finished, is_ready};
use crate::run::{Again, Context, Controller};

pub(crate) const CONTROLLER: Controller = Controller {
    name: "endpointslice-controller",
    kinds: &[SERVICE, POD, NODE, ENDPOINT_SLICE],
    concerns,
    reconcile: |context, key| reconcile(context, key).boxed(),
};

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const OURS: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";

fn concerns(caches: &Caches, change: &Change) -> Vec<Key> {
    let Some(object) = change.object() else { return Vec::new() };
    match change.kind {
        SERVICE if selects_pods(object) => vec![Key::of(object)],
        SERVICE => Vec::new(),
        ENDPOINT_SLICE => match label(object, SERVICE_NAME) {
            service if !service.is_empty() && label(object, MANAGED_BY) == OURS => {
                vec![Key::new(namespace(object), service)]
            }
            _ => Vec::new(),
        },
        POD => services_of(caches, change),
        // A node's zone is in its endpoints.
        _ => {
            let zone = |node: Option<&Value>| node.map(|node| label(node, ZONE).to_owned());
            if zone(change.old.as_deref()) == zone(change.new.as_deref()) {
                return Vec::new();
            }
            caches.list(SERVICE, "").iter().map(|service| Key::of(service)).collect()
        }
    }
}

/// Whether a Service has a selector; where it has none, somebody else says where it leads.
fn selects_pods(service: &Value) -> bool {
    at(service, "spec.selector").as_object().is_some_and(|map| !map.is_empty())
}

/// The Services that select a pod, as it is and as it was.
fn services_of(caches: &Caches, change: &Change) -> Vec<Key> {
    let versions = [change.old.as_deref(), change.new.as_deref()];
    let Some(pod) = change.object() else { return Vec::new() };
    let services = caches.list(SERVICE, namespace(pod));
    let selected = services.iter().filter(|service| {
        versions
            .iter()
            .flatten()
            .any(|pod| has_all(at(service, "spec.selector"), at(pod, "metadata.labels")))
    });
    selected.map(|service| Key::of(service)).collect()
}

async fn reconcile(context: Context, key: Key) -> Result<Again> {
    let cluster = &context.cluster;
    let Some(service) = cluster.get(SERVICE, &key.namespace, &key.name).await? else {
        return Ok(None);
    };
    let selector = at(&service, "spec.selector");
    if !selects_pods(&service)
        || str_at(&service, "spec.type") == "ExternalName"
        || is_being_deleted(&service)
    {
        return Ok(None);
    }
    let mut pods = context.caches.list(POD, &key.namespace);
    pods.retain(|pod| has_all(selector, at(pod, "metadata.labels")) && !is_finished(pod));
    let query = format!("{SERVICE_NAME}={},{MANAGED_BY}={OURS}", key.name);
    let existing = cluster.list(ENDPOINT_SLICE, &key.namespace, &query).await?;
    let families = list_at(&service, "spec.ipFamilies").iter().filter_map(Value::as_str);
    let mut desired: BTreeMap<pack::Group, Vec<Value>> = BTreeMap::new();
    for family in families {
        let mut none = true;
        for pod in &pods {
            if let Some(address) = address(pod, family) {
                let group = pack::Group::new(family, &ports(&service, pod));
                desired.entry(group).or_default().push(endpoint(&context, &service, pod, address));
                none = false;
            }
        }
        if none {
            // A Service without pods has an empty slice.
            desired.entry(pack::Group::new(family, &json!([]))).or_default();
        }
    }
    let plan = pack::pack(desired, existing);
    for slice in plan.delete {
        cluster.delete(ENDPOINT_SLICE, &slice).await?;
    }
    for slice in plan.update {
        cluster.replace(ENDPOINT_SLICE, &slice).await?;
    }
    for slice in plan.create {
        cluster.create(ENDPOINT_SLICE, &dress(&service, slice)).await?;
    }
    write_endpoints(&context, &service, &pods).await?;
    Ok(None)
}

/// A new slice with its labels and its owner.
fn dress(service: &Value, mut slice: Value) -> Value {
    let mut labels = at(service, "metadata.labels").clone();
    if !labels.is_object() {
        labels = json!({});
    }
    labels[SERVICE_NAME] = json!(name(service));
    labels[MANAGED_BY] = json!(OURS);
    if str_at(service, "spec.clusterIP") == "None" {
        labels["service.kubernetes.io/headless"] = json!("");
    }
    slice["metadata"] = json!({
        "generateName": format!("{}-", name(service)), "namespace": namespace(service),
        "labels": labels, "ownerReferences": [owner_reference(service)],
    });
    slice
}

/// The pod's address of a family.
fn address<'a>(pod: &'a Value, family: &str) -> Option<&'a str> {
    let mut all: Vec<&str> =
        list_at(pod, "status.podIPs").iter().map(|one| str_at(one, "ip")).collect();
    if all.is_empty() {
        all.push(str_at(pod, "status.podIP"));
    }
    all.into_iter().find(|ip| !ip.is_empty() && ip.contains(':') == (family == "IPv6"))
}

/// The Service's ports as this pod has them: a named target port may differ from pod to pod.
fn ports(service: &Value, pod: &Value) -> Value {
    let ports = list_at(service, "spec.ports").iter().filter_map(|port| {
        let number = match &port["targetPort"] {
            Value::String(wanted) => {
                let containers = list_at(pod, "spec.containers").iter();
                let mut all = containers.flat_map(|container| list_at(container, "ports"));
                let named = all.find(|one| {
                    str_at(one, "name") == wanted && one["protocol"] == port["protocol"]
                })?;
                named["containerPort"].clone()
            }
            Value::Null => port["port"].clone(),
            number => number.clone(),
        };
        let mut made =
            json!({"name": str_at(port, "name"), "port": number, "protocol": port["protocol"]});
        if port["appProtocol"].is_string() {
            made["appProtocol"] = port["appProtocol"].clone();
        }
        Some(made)
    });
    Value::Array(ports.collect())
}

fn endpoint(context: &Context, service: &Value, pod: &Value, address: &str) -> Value {
    let terminating = is_being_deleted(pod);
    let serving = is_ready(pod);
    let published = at(service, "spec.publishNotReadyAddresses") == true;
    let ready = published || (serving && !terminating);
    let mut endpoint = json!({
        "addresses": [address],
        "conditions": {"ready": ready, "serving": serving || published, "terminating": terminating},
        "targetRef": {
            "kind": "Pod", "namespace": namespace(pod), "name": name(pod), "uid": uid(pod),
        },
    });
    let hostname = str_at(pod, "spec.hostname");
    if !hostname.is_empty() && str_at(pod, "spec.subdomain") == name(service) {
        endpoint["hostname"] = json!(hostname);
    }
    let node = str_at(pod, "spec.nodeName");
    if node.is_empty() {
        return endpoint;
    }
    endpoint["nodeName"] = json!(node);
    let found = context.caches.get(NODE, &Key::new("", node));
    let zone = found.as_deref().map_or("", |node| label(node, ZONE)).to_owned();
    if !zone.is_empty() {
        endpoint["zone"] = json!(zone);
    }
    let wish = str_at(service, "spec.trafficDistribution");
    if ready
        && !zone.is_empty()
        && matches!(wish, "PreferClose" | "PreferSameZone" | "PreferSameNode")
    {
        endpoint["hints"] = json!({"forZones": [{"name": zone}]});
    }
    if ready && wish == "PreferSameNode" {
        let hints = &mut endpoint["hints"];
        *hints = if hints.is_object() { hints.clone() } else { json!({}) };
        hints["forNodes"] = json!([{"name": node}]);
    }
    endpoint
}

/// The same as one Endpoints object, as clients before slices read it.
async fn write_endpoints(
    context: &Context,
    service: &Value,
    pods: &[std::sync::Arc<Value>],
) -> Result<()> {
    const MOST: usize = 1000;
    let family = list_at(service, "spec.ipFamilies").first().and_then(Value::as_str);
    let family = family.unwrap_or("IPv4");
    let mut subsets: BTreeMap<String, (Vec<Value>, Vec<Value>)> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !is_being_deleted(pod)).take(MOST) {
        let Some(ip) = address(pod, family) else { continue };
        let mut address = json!({"ip": ip, "targetRef": {
            "kind": "Pod", "namespace": namespace(pod), "name": name(pod), "uid": uid(pod),
        }});
        if !str_at(pod, "spec.nodeName").is_empty() {
            address["nodeName"] = at(pod, "spec.nodeName").clone();
        }
        let (ready, not_ready) = subsets.entry(ports(service, pod).to_string()).or_default();
        let published = at(service, "spec.publishNotReadyAddresses") == true;
        if is_ready(pod) || published { ready.push(address) } else { not_ready.push(address) }
    }
    let subsets: Vec<Value> = subsets
        .into_iter()
        .map(|(ports, (ready, not_ready))| {
            let ports: Value = serde_json::from_str(&ports).unwrap_or_default();
            let mut subset = json!({"ports": ports});
            if !ready.is_empty() {
                subset["addresses"] = json!(ready);
            }
            if !not_ready.is_empty() {
                subset["notReadyAddresses"] = json!(not_ready);
            }
            for port in subset["ports"].as_array_mut().into_iter().flatten() {
                if let Value::Object(map) = port
                    && map.get("name") == Some(&json!(""))
                {
                    map.remove("name");
                }
            }
            subset
        })
        .collect();
    let found = context.cluster.get(ENDPOINTS, namespace(service), name(service)).await?;
    match found {
        Some(found) if list_at(&found, "subsets") == subsets.as_slice() => Ok(()),
        Some(mut found) => {
            found["subsets"] = json!(subsets);
            context.cluster.replace(ENDPOINTS, &found).await.map(|_| ())
        }
        None => {
            let endpoints = json!({
                "metadata": {
                    "name": name(service), "namespace": namespace(service),
                    "labels": {"endpoints.kubernetes.io/managed-by": "endpoint-controller"},
                    "ownerReferences": [owner_reference(service)],
                },
                "subsets": subsets,
            });
            context.cluster.ensure(ENDPOINTS, &endpoints).await
        }
    }
}
