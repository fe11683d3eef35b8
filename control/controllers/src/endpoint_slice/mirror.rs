//! Endpoints that somebody writes by hand, for a Service without a selector, as slices.

use std::collections::BTreeMap;

use futures::FutureExt;
use serde_json::{Value, json};

use super::pack::{Group, pack};
use crate::cache::Key;
use crate::cluster::Result;
use crate::json::{is_being_deleted, label, list_at, name, namespace, owner_reference, str_at};
use crate::kinds::{ENDPOINT_SLICE, ENDPOINTS, SERVICE};
use crate::run::{Again, Context, Controller};

pub(crate) const CONTROLLER: Controller = Controller {
    name: "endpointslicemirroring-controller",
    kinds: &[SERVICE, ENDPOINTS],
    // Without Endpoints, now or until now, there is nothing to mirror.
    concerns: |caches, change| {
        let key = change.object().map(Key::of);
        let there = |key: &Key| change.kind == ENDPOINTS || caches.get(ENDPOINTS, key).is_some();
        key.filter(there).into_iter().collect()
    },
    reconcile: |context, key| reconcile(context, key).boxed(),
};

const OURS: &str = "endpointslicemirroring-controller.k8s.io";

async fn reconcile(context: Context, key: Key) -> Result<Again> {
    let cluster = &context.cluster;
    let (namespace_, name_) = (&key.namespace, &key.name);
    let service = cluster.get(SERVICE, namespace_, name_).await?;
    let endpoints = cluster.get(ENDPOINTS, namespace_, name_).await?;
    let query = format!("{}={name_},{}={OURS}", super::SERVICE_NAME, super::MANAGED_BY);
    let existing = cluster.list(ENDPOINT_SLICE, namespace_, &query).await?;
    let skipped = |endpoints: &Value| {
        label(endpoints, "endpointslice.kubernetes.io/skip-mirror") == "true"
            || is_being_deleted(endpoints)
    };
    let source = endpoints
        .filter(|one| !skipped(one))
        .filter(|_| service.as_ref().is_some_and(|one| !super::selects_pods(one)));
    let mut desired: BTreeMap<Group, Vec<Value>> = BTreeMap::new();
    for subset in source.iter().flat_map(|endpoints| list_at(endpoints, "subsets")) {
        add(subset, &mut desired);
    }
    let plan = pack(desired, existing);
    for slice in plan.delete {
        cluster.delete(ENDPOINT_SLICE, &slice).await?;
    }
    for slice in plan.update {
        cluster.replace(ENDPOINT_SLICE, &slice).await?;
    }
    let Some(source) = source else { return Ok(None) };
    for mut slice in plan.create {
        slice["metadata"] = json!({
            "generateName": format!("{}-", name(&source)), "namespace": namespace(&source),
            "labels": {super::SERVICE_NAME: name(&source), super::MANAGED_BY: OURS},
            "ownerReferences": [owner_reference(&source)],
        });
        cluster.create(ENDPOINT_SLICE, &slice).await?;
    }
    Ok(None)
}

fn add(subset: &Value, desired: &mut BTreeMap<Group, Vec<Value>>) {
    let ports: Vec<Value> = list_at(subset, "ports")
        .iter()
        .map(|port| {
            let mut made = json!({
                "name": str_at(port, "name"), "port": port["port"], "protocol": port["protocol"],
            });
            if port["appProtocol"].is_string() {
                made["appProtocol"] = port["appProtocol"].clone();
            }
            made
        })
        .collect();
    let ports = Value::Array(ports);
    for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
        for address in list_at(subset, field) {
            let ip = str_at(address, "ip");
            let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
            let mut endpoint = json!({
                "addresses": [ip], "conditions": {"ready": ready, "serving": ready},
            });
            for field in ["hostname", "nodeName", "targetRef"] {
                if !address[field].is_null() {
                    endpoint[field] = address[field].clone();
                }
            }
            desired.entry(Group::new(family, &ports)).or_default().push(endpoint);
        }
    }
}
