//! core/v1 `Endpoints`, as the slices that Kubernetes' mirroring controller makes of them.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as api;

use crate::endpoint::{Conditions, Endpoint, EndpointPort, EndpointSlice};
use crate::name::{Family, NamespacedName};
use crate::parse::fault::{Faults, Parsed};
use crate::parse::names::Names;
use crate::parse::slice::{endpoint_address, endpoint_port, hostname, push_port};
use crate::parse::{object_name, object_title};

const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

/// `Endpoints` as mirrored slices, one a subset and family. Their names hold a `/`, which no
/// object's name does.
pub fn endpoints(object: &api::Endpoints, names: &mut Names) -> Parsed<Vec<EndpointSlice>> {
    let metadata = &object.metadata;
    let mut faults = Faults::of(object_title("Endpoints", metadata));
    let has = |map: &Option<std::collections::BTreeMap<String, String>>, key| {
        map.as_ref().is_some_and(|map| map.get(key).is_some_and(|value| value != "false"))
    };
    if has(&metadata.labels, SKIP_MIRROR) || has(&metadata.annotations, LEADER) {
        return faults.with(None);
    }
    let Some(service) = object_name(metadata, names, &mut faults) else {
        return faults.with(None);
    };
    let mut slices = Vec::new();
    for (idx, subset) in object.subsets.iter().flatten().enumerate() {
        mirror_subset(idx, subset, &service, (names, &mut faults), &mut slices);
    }
    faults.with(Some(slices))
}

fn mirror_subset(
    idx: usize,
    subset: &api::EndpointSubset,
    service: &NamespacedName,
    (names, faults): (&mut Names, &mut Faults),
    slices: &mut Vec<EndpointSlice>,
) {
    let ports = ports(idx, subset, names, faults);
    let mut by_family: [Vec<Endpoint>; 2] = Default::default();
    let [v4, v6] = &mut by_family;
    let lists = [
        ("addresses", &subset.addresses, true),
        ("notReadyAddresses", &subset.not_ready_addresses, false),
    ];
    for (list, addresses, ready) in lists {
        for (at, address) in addresses.iter().flatten().enumerate() {
            let field = format!("subsets[{idx}].{list}[{at}]");
            match endpoint(&field, address, ready, names, faults) {
                Some(endpoint) if endpoint.address.is_ipv4() => v4.push(endpoint),
                Some(endpoint) => v6.push(endpoint),
                None => {}
            }
        }
    }
    for (family, endpoints) in Family::ALL.into_iter().zip(by_family) {
        if endpoints.is_empty() {
            continue;
        }
        let name = format!("{}/{idx}/{family}", service.name);
        slices.push(EndpointSlice {
            name: NamespacedName::new(Arc::clone(&service.namespace), name),
            service: service.clone(),
            family,
            ports: ports.clone(),
            endpoints,
            mirrored: true,
            weight: None,
            headless: false,
            last_change_trigger: None,
        });
    }
}

fn ports(
    idx: usize,
    subset: &api::EndpointSubset,
    names: &mut Names,
    faults: &mut Faults,
) -> Vec<EndpointPort> {
    let mut found = Vec::new();
    for (at, port) in subset.ports.iter().flatten().enumerate() {
        let field = format_args!("subsets[{idx}].ports[{at}]");
        let (name, protocol) = (port.name.as_deref(), port.protocol.as_deref());
        let parsed = endpoint_port(field, name, protocol, port.port, (&mut *names, &mut *faults));
        if let Some(port) = parsed {
            push_port(&mut found, field, port, faults);
        }
    }
    found
}

fn endpoint(
    field: &str,
    entry: &api::EndpointAddress,
    ready: bool,
    names: &mut Names,
    faults: &mut Faults,
) -> Option<Endpoint> {
    let address: IpAddr = endpoint_address(format_args!("{field}.ip"), &entry.ip, faults)?;
    Some(Endpoint {
        address,
        conditions: Conditions { ready, serving: ready, terminating: false },
        node_name: names.share_some(entry.node_name.as_deref()),
        zone: None,
        hints: None,
        hostname: hostname(format_args!("{field}.hostname"), entry.hostname.as_deref(), faults),
        pod: entry
            .target_ref
            .as_ref()
            .filter(|target| target.kind.as_deref() == Some("Pod"))
            .and_then(|target| target.name.as_deref())
            .map(Into::into),
    })
}
