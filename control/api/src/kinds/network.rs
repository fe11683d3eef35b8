//! The ranges of cluster IPs, and the addresses taken from them.

use k8s_openapi::api::networking::v1 as networking;
use serde_json::{Value, json};

use super::columns::{AGE, Cell, NAME, joined, text};
use super::fields::Check::{Immutable, Required};
use super::life::Life;
use super::{Kind, Subresource, decode, row};
use crate::allocate;
use crate::object::{at, list_at, str_at};
use crate::status::FieldError;

/// The finalizer of a range from which Services have addresses.
pub(crate) const RANGE_IN_USE: &str = "networking.k8s.io/service-cidr-finalizer";

pub(super) const SERVICE_CIDR: Kind = Kind {
    namespaced: false,
    subresources: &[Subresource::Status],
    prepare: |cidr, old| {
        if old.is_none() {
            let mut finalizers = list_at(cidr, "metadata.finalizers").to_vec();
            finalizers.retain(|one| one != RANGE_IN_USE);
            finalizers.push(json!(RANGE_IN_USE));
            cidr["metadata"]["finalizers"] = json!(finalizers);
            let created = at(cidr, "metadata.creationTimestamp").clone();
            cidr["status"] = json!({"conditions": [{
                "type": "Ready", "status": "True", "reason": "", "lastTransitionTime": created,
                "message": "Kubernetes Service CIDR is ready",
            }]});
        }
    },
    rules: &[("spec.cidrs", Required)],
    validate: |cidr, old, errors| check_ranges(cidr, old, errors),
    columns: &[
        NAME,
        text(
            "CIDRs",
            Cell::Of(|cidr| joined(list_at(cidr, "spec.cidrs").iter().filter_map(Value::as_str))),
        ),
        AGE,
    ],
    life: Life { retire: allocate::retire_ranges, ..Life::PLAIN },
    ..row("networking.k8s.io", "ServiceCIDR", "servicecidrs", decode::<networking::ServiceCIDR>)
};

pub(super) const IP_ADDRESS: Kind = Kind {
    short_names: &["ip"],
    namespaced: false,
    selectable: &["spec.parentRef.name"],
    name_rule: |name| {
        let canonical = name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_string() == name);
        (!canonical).then_some("must be a canonical form of an IP address")
    },
    rules: &[
        ("spec.parentRef", Required),
        ("spec.parentRef.resource", Required),
        ("spec.parentRef.name", Required),
        ("spec.parentRef", Immutable),
    ],
    columns: &[
        NAME,
        text(
            "ParentRef",
            Cell::Of(|ip| {
                let parent = at(ip, "spec.parentRef");
                let parts = ["resource", "namespace", "name"].map(|part| str_at(parent, part));
                json!(parts.join("/"))
            }),
        ),
        AGE,
    ],
    ..row("networking.k8s.io", "IPAddress", "ipaddresses", decode::<networking::IPAddress>)
};

fn check_ranges(cidr: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let ranges = list_at(cidr, "spec.cidrs");
    let nets: Vec<Option<ipnet::IpNet>> =
        ranges.iter().map(|range| range.as_str()?.parse().ok()).collect();
    for (i, (range, net)) in ranges.iter().zip(&nets).enumerate() {
        let canonical = net.is_some_and(|net| net.trunc() == net);
        if !canonical {
            let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.push(FieldError::invalid(format!("spec.cidrs[{i}]"), range, why));
        }
    }
    let families = nets.iter().flatten().map(|net| net.addr().is_ipv4());
    let v4 = families.clone().filter(|v4| *v4).count();
    if ranges.len() > 2 || v4 > 1 || families.count() - v4 > 1 {
        let why = "may only hold one value for each IP family";
        errors.push(FieldError::invalid("spec.cidrs", at(cidr, "spec.cidrs"), why));
    }
    // A second family may be added; nothing may be taken away.
    let kept = |old: &Value| list_at(old, "spec.cidrs").iter().zip(ranges).all(|(o, n)| o == n);
    if let Some(old) = old
        && !(kept(old) && list_at(old, "spec.cidrs").len() <= ranges.len())
    {
        errors.push(FieldError::invalid(
            "spec.cidrs",
            at(cidr, "spec.cidrs"),
            "field is immutable",
        ));
    }
}
