//! `EndpointSlice`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::discovery::v1 as api;
use k8s_openapi::jiff::Timestamp;

use crate::endpoint::{Conditions, Endpoint, EndpointPort, EndpointSlice, Hints};
use crate::name::{Family, NamespacedName, Protocol};
use crate::parse::address::{self, parse_ip};
use crate::parse::fault::{Faults, Parsed};
use crate::parse::names::{self, Names};
use crate::parse::{object_name, object_title};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const HEADLESS: &str = "service.kubernetes.io/headless";
const WEIGHT: &str = "fairlead.dev/weight";
const LAST_CHANGE_TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// An `EndpointSlice`; none without a problem when it belongs to no Service, or lists FQDNs.
pub fn slice(object: &api::EndpointSlice, names: &mut Names) -> Parsed<EndpointSlice> {
    let metadata = &object.metadata;
    let mut faults = Faults::of(object_title("EndpointSlice", metadata));
    let labels = metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key));
    let Some(service) = label(SERVICE_NAME).filter(|service| !service.is_empty()) else {
        return faults.with(None);
    };
    if object.address_type == "FQDN" {
        return faults.with(None);
    }
    let Some(family) = address::family(&object.address_type) else {
        let remedy = "use IPv4, IPv6 or FQDN";
        faults.add("addressType", &object.address_type, "no address type", remedy);
        return faults.with(None);
    };
    let Some(name) = object_name(metadata, names, &mut faults) else {
        return faults.with(None);
    };
    let annotations = metadata.annotations.as_ref();
    let slice = EndpointSlice {
        service: NamespacedName {
            namespace: Arc::clone(&name.namespace),
            name: names.share(service),
        },
        name,
        family,
        ports: ports(object.ports.as_deref().unwrap_or_default(), names, &mut faults),
        endpoints: endpoints(object, family, names, &mut faults),
        mirrored: false,
        weight: annotations.and_then(|annotations| weight(annotations, &mut faults)),
        headless: label(HEADLESS).is_some(),
        last_change_trigger: annotations.and_then(last_change_trigger),
    };
    faults.with(Some(slice))
}

fn ports(list: &[api::EndpointPort], names: &mut Names, faults: &mut Faults) -> Vec<EndpointPort> {
    let mut found: Vec<EndpointPort> = Vec::with_capacity(list.len());
    for (idx, port) in list.iter().enumerate() {
        let field = format_args!("ports[{idx}]");
        // No number means every port, which no Service port can join.
        let Some(number) = port.port else { continue };
        let (name, protocol) = (port.name.as_deref(), port.protocol.as_deref());
        let parsed = endpoint_port(field, name, protocol, number, (names, faults));
        if let Some(port) = parsed {
            push_port(&mut found, field, port, faults);
        }
    }
    found
}

/// One port of a slice or of core/v1 `Endpoints`.
pub(super) fn endpoint_port(
    field: fmt::Arguments<'_>,
    name: Option<&str>,
    protocol_text: Option<&str>,
    number: i32,
    (names, faults): (&mut Names, &mut Faults),
) -> Option<EndpointPort> {
    let port = port_number(format_args!("{field}.port"), number, faults)?;
    let protocol = protocol(format_args!("{field}.protocol"), protocol_text, faults)?;
    let name = port_name(format_args!("{field}.name"), name, faults)?;
    Some(EndpointPort { name: names.share(name), protocol, port })
}

pub(super) fn push_port(
    found: &mut Vec<EndpointPort>,
    field: fmt::Arguments<'_>,
    port: EndpointPort,
    faults: &mut Faults,
) {
    let same = |other: &EndpointPort| other.name == port.name && other.protocol == port.protocol;
    if found.iter().any(same) {
        let wrong = "the name of another port of this protocol";
        faults.add(format_args!("{field}.name"), &port.name, wrong, "name each port differently");
        return;
    }
    found.push(port);
}

/// A port that something can listen on.
pub(super) fn port_number(
    field: fmt::Arguments<'_>,
    number: i32,
    faults: &mut Faults,
) -> Option<u16> {
    let port = u16::try_from(number).ok().filter(|&port| port != 0);
    if port.is_none() {
        faults.add(field, number, "no port", "use 1 to 65535");
    }
    port
}

/// A protocol, TCP where none is named.
pub(super) fn protocol(
    field: fmt::Arguments<'_>,
    text: Option<&str>,
    faults: &mut Faults,
) -> Option<Protocol> {
    let text = text.filter(|text| !text.is_empty()).unwrap_or("TCP");
    let protocol = Protocol::parse(text).ok();
    if protocol.is_none() {
        faults.add(field, text, "no protocol", "use TCP, UDP or SCTP");
    }
    protocol
}

/// A port's name; the empty one is that of a single port.
pub(super) fn port_name<'a>(
    field: fmt::Arguments<'_>,
    name: Option<&'a str>,
    faults: &mut Faults,
) -> Option<&'a str> {
    let name = name.unwrap_or_default();
    if name.is_empty() || names::is_label(name) {
        return Some(name);
    }
    faults.add(field, name, "no port's name", names::LABEL);
    None
}

fn endpoints(
    object: &api::EndpointSlice,
    family: Family,
    names: &mut Names,
    faults: &mut Faults,
) -> Vec<Endpoint> {
    let list = object.endpoints.as_deref().unwrap_or_default();
    let mut found = Vec::with_capacity(list.len());
    for (idx, endpoint) in list.iter().enumerate() {
        let Some(text) = endpoint.addresses.first() else {
            let reason = format_args!("no address; list one, or leave the endpoint out");
            faults.say(format_args!("endpoints[{idx}].addresses"), reason);
            continue;
        };
        let field = format_args!("endpoints[{idx}].addresses[0]");
        let Some(address) = endpoint_address(field, text, faults) else { continue };
        if Family::of(&address) != family {
            let remedy = "list it in a slice of its own address type";
            faults.add(field, text, "not of the slice's address type", remedy);
            continue;
        }
        let conditions = endpoint.conditions.as_ref();
        found.push(Endpoint {
            address,
            conditions: conditions.map(parse_conditions).unwrap_or_default(),
            node_name: names.share_some(endpoint.node_name.as_deref()),
            zone: names.share_some(endpoint.zone.as_deref()),
            hints: endpoint.hints.as_ref().and_then(|hints| parse_hints(hints, names)),
            hostname: hostname(
                format_args!("endpoints[{idx}].hostname"),
                endpoint.hostname.as_deref(),
                faults,
            ),
            pod: endpoint
                .target_ref
                .as_ref()
                .filter(|target| target.kind.as_deref() == Some("Pod"))
                .and_then(|target| target.name.as_deref())
                .map(Into::into),
        });
    }
    found
}

/// An address that traffic can be sent to. As in the API server, it is not one that means another
/// host to each client (loopback), nor one of a link (where clouds have their metadata service).
pub(super) fn endpoint_address(
    field: fmt::Arguments<'_>,
    text: &str,
    faults: &mut Faults,
) -> Option<IpAddr> {
    let Some(address) = parse_ip(text) else {
        faults.add(field, text, "no IP address", address::WRITE_IP);
        return None;
    };
    let is_of_link = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let means_one_host = !address.is_unspecified() && !address.is_multicast();
    if !means_one_host || address.is_loopback() || is_of_link {
        faults.add(field, text, "no endpoint's address", "use the address of one host");
        return None;
    }
    Some(address)
}

fn parse_conditions(conditions: &api::EndpointConditions) -> Conditions {
    Conditions {
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
    }
}

fn parse_hints(hints: &api::EndpointHints, names: &mut Names) -> Option<Box<Hints>> {
    let mut sorted = |list: &mut dyn Iterator<Item = &str>| {
        let mut found: Vec<_> = list.map(|name| names.share(name)).collect();
        found.sort();
        found.dedup();
        found
    };
    let zones = hints.for_zones.iter().flatten();
    let nodes = hints.for_nodes.iter().flatten();
    let hints = Hints {
        for_zones: sorted(&mut zones.map(|zone| zone.name.as_str())),
        for_nodes: sorted(&mut nodes.map(|node| node.name.as_str())),
    };
    (hints != Hints::default()).then(|| Box::new(hints))
}

/// A hostname becomes a DNS label, so it must be one.
pub(super) fn hostname(
    field: fmt::Arguments<'_>,
    text: Option<&str>,
    faults: &mut Faults,
) -> Option<Arc<str>> {
    let text = text.filter(|text| !text.is_empty())?;
    if names::is_label(text) {
        return Some(text.into());
    }
    faults.add(field, text, "no hostname", names::LABEL);
    None
}

fn weight(annotations: &BTreeMap<String, String>, faults: &mut Faults) -> Option<u16> {
    let text = annotations.get(WEIGHT)?;
    let weight = text.trim().parse().ok();
    if weight.is_none() {
        let field = format_args!("metadata.annotations[{WEIGHT}]");
        faults.add(field, text, "no weight", "use 0 to 65535");
    }
    weight
}

/// Only a metric reads it, and a controller writes it: what is no time is as good as absent.
fn last_change_trigger(annotations: &BTreeMap<String, String>) -> Option<Duration> {
    let time: Timestamp = annotations.get(LAST_CHANGE_TRIGGER)?.parse().ok()?;
    Duration::try_from(time.as_duration()).ok()
}
