//! Nodes, and the leases by which they say that they live.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use super::columns::{AGE, Cell, NAME, joined, text, wide};
use super::fields::Check::{Immutable, NotNegative, OneOf, Range, Required};
use super::life::Life;
use super::{Kind, Subresource, decode, row};
use crate::object::{at, list_at, str_at};

pub(super) const NODE: Kind = Kind {
    short_names: &["no"],
    namespaced: false,
    subresources: &[Subresource::Status],
    selectable: &["spec.unschedulable"],
    rules: &[
        ("spec.taints[].key", Required),
        ("spec.taints[].effect", Required),
        ("spec.taints[].effect", OneOf(&["NoSchedule", "PreferNoSchedule", "NoExecute"])),
    ],
    validate: |node, old, errors| {
        // A node's ranges may be set once.
        let Some(old) = old else { return };
        for field in ["spec.podCIDR", "spec.providerID"] {
            if !str_at(old, field).is_empty() {
                super::fields::check(&[(field, Immutable)], "", node, Some(old), errors);
            }
        }
    },
    columns: &[
        NAME,
        text("Status", Cell::Of(status)),
        text("Roles", Cell::Of(roles)),
        AGE,
        text("Version", Cell::Path("status.nodeInfo.kubeletVersion")),
        wide(text("Internal-IP", Cell::Of(|node| address(node, "InternalIP")))),
        wide(text("External-IP", Cell::Of(|node| address(node, "ExternalIP")))),
        wide(text("OS-Image", Cell::Path("status.nodeInfo.osImage"))),
        wide(text("Kernel-Version", Cell::Path("status.nodeInfo.kernelVersion"))),
        wide(text("Container-Runtime", Cell::Path("status.nodeInfo.containerRuntimeVersion"))),
    ],
    life: Life { begins_with_status: true, ..Life::PLAIN },
    ..row("", "Node", "nodes", decode::<core::Node>)
};

pub(super) const LEASE: Kind = Kind {
    rules: &[
        ("spec.leaseDurationSeconds", Range(1, i32::MAX as i64)),
        ("spec.leaseTransitions", NotNegative),
    ],
    columns: &[NAME, text("Holder", Cell::Path("spec.holderIdentity")), AGE],
    ..row("coordination.k8s.io", "Lease", "leases", decode::<Lease>)
};

fn status(node: &Value) -> Value {
    let ready = list_at(node, "status.conditions").iter().find(|one| one["type"] == "Ready");
    let mut words = vec![match ready.map(|condition| str_at(condition, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if at(node, "spec.unschedulable") == true {
        words.push("SchedulingDisabled");
    }
    json!(words.join(","))
}

fn roles(node: &Value) -> Value {
    let labels = at(node, "metadata.labels").as_object().into_iter().flat_map(|map| map.keys());
    joined(labels.filter_map(|label| label.strip_prefix("node-role.kubernetes.io/")))
}

fn address(node: &Value, form: &str) -> Value {
    let one = list_at(node, "status.addresses").iter().find(|address| address["type"] == form);
    joined(one.map(|address| str_at(address, "address")).into_iter())
}
