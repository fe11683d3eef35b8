//! Node and Namespace.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::node::Node;
use crate::parse::fault::{Faults, Parsed, shortened};
use crate::parse::names::{self, Names};
use crate::parse::{address, parse_ip};
use crate::pod::{Namespace, SOCKET_LB, SocketLb};

const ZONE: &str = "topology.kubernetes.io/zone";
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// A Node.
pub fn node(object: &api::Node, names: &mut Names) -> Parsed<Node> {
    let metadata = &object.metadata;
    let mut faults = Faults::of(cluster_title("Node", metadata));
    let Some(name) = cluster_name(metadata, names, &mut faults, names::is_subdomain) else {
        return faults.with(None);
    };
    let spec = object.spec.as_ref();
    let zone = metadata.labels.as_ref().and_then(|labels| labels.get(ZONE));
    let node = Node {
        name,
        zone: names.share_some(zone.map(String::as_str)),
        addresses: addresses(object, &mut faults),
        pod_cidrs: spec.map(|spec| pod_cidrs(spec, &mut faults)).unwrap_or_default(),
        deleting: metadata.deletion_timestamp.is_some(),
        to_be_deleted: spec
            .and_then(|spec| spec.taints.as_ref())
            .is_some_and(|taints| taints.iter().any(|taint| taint.key == TO_BE_DELETED)),
    };
    faults.with(Some(node))
}

/// A Namespace, of which the metadata is all.
pub fn namespace(metadata: &ObjectMeta, names: &mut Names) -> Parsed<Namespace> {
    let mut faults = Faults::of(cluster_title("Namespace", metadata));
    let Some(name) = cluster_name(metadata, names, &mut faults, names::is_label) else {
        return faults.with(None);
    };
    let socket_lb = socket_lb(metadata, &mut faults);
    faults.with(Some(Namespace { name, socket_lb }))
}

/// What a Pod or Namespace says of the sockets.
pub(super) fn socket_lb(metadata: &ObjectMeta, faults: &mut Faults) -> Option<SocketLb> {
    match metadata.annotations.as_ref()?.get(SOCKET_LB)?.as_str() {
        "on" => Some(SocketLb::On),
        "off" => Some(SocketLb::Off),
        other => {
            let field = format_args!("metadata.annotations[{SOCKET_LB}]");
            faults.add(field, other, "neither on nor off", "use \"on\" or \"off\", or remove it");
            None
        }
    }
}

fn cluster_name(
    metadata: &ObjectMeta,
    names: &mut Names,
    faults: &mut Faults,
    valid: fn(&str) -> bool,
) -> Option<Arc<str>> {
    let name = metadata.name.as_deref().unwrap_or_default();
    if valid(name) {
        return Some(names.share(name));
    }
    faults.add("metadata.name", name, "no object's name", names::SUBDOMAIN);
    None
}

fn cluster_title(kind: &str, metadata: &ObjectMeta) -> String {
    format!("{kind} {}", shortened(metadata.name.as_deref().unwrap_or_default()))
}

/// Internal addresses before external ones; the other types are names.
fn addresses(object: &api::Node, faults: &mut Faults) -> Vec<std::net::IpAddr> {
    let listed = object.status.as_ref().and_then(|status| status.addresses.as_deref());
    let mut found = Vec::new();
    for wanted in ["InternalIP", "ExternalIP"] {
        for (idx, entry) in listed.unwrap_or_default().iter().enumerate() {
            if entry.type_ != wanted {
                continue;
            }
            match parse_ip(entry.address.trim()) {
                Some(ip) if !found.contains(&ip) => found.push(ip),
                Some(_) => {}
                None => faults.add(
                    format_args!("status.addresses[{idx}].address"),
                    &entry.address,
                    "no IP address",
                    address::WRITE_IP,
                ),
            }
        }
    }
    found
}

fn pod_cidrs(spec: &api::NodeSpec, faults: &mut Faults) -> Vec<ipnet::IpNet> {
    match spec.pod_cidrs.as_deref() {
        Some(list) if !list.is_empty() => address::nets("spec.podCIDRs", list, faults),
        _ => address::nets("spec.podCIDR", &spec.pod_cidr, faults),
    }
}
