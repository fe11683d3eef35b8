//! Service.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::name::Family;
use crate::parse::address::{self, parse_ip};
use crate::parse::fault::{Faults, Parsed};
use crate::parse::names::{self, Names};
use crate::parse::slice::{port_name, port_number, protocol};
use crate::parse::{object_name, object_title};
use crate::service::{Service, ServicePort, ServiceType, TrafficPolicy};

const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const CAPTURE: &str = "fairlead.dev/capture";
/// The annotation that lets TCP connections be ended whose endpoint serves no more.
const END_CONNECTIONS: &str = "fairlead.dev/end-connections";
/// `sessionAffinityConfig.clientIP.timeoutSeconds` where none is set: three hours.
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;
const MAX_AFFINITY_SECONDS: i32 = 86_400;

/// A Service.
pub fn service(object: &api::Service, names: &mut Names) -> Parsed<Service> {
    let metadata = &object.metadata;
    let mut faults = Faults::of(object_title("Service", metadata));
    let Some(name) = object_name(metadata, names, &mut faults) else {
        return faults.with(None);
    };
    if !names::is_label(&name.name) {
        faults.add("metadata.name", &name.name, "no Service's name", names::LABEL);
        return faults.with(None);
    }
    let no_spec = api::ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&no_spec);
    let Some(service_type) = service_type(spec, &mut faults) else {
        return faults.with(None);
    };
    let (cluster_ips, headless) = match service_type {
        ServiceType::ExternalName(_) | ServiceType::HostPort(_) => (Vec::new(), false),
        ServiceType::ClusterIp | ServiceType::NodePort | ServiceType::LoadBalancer => {
            cluster_ips(spec, &mut faults)
        }
    };
    let ranges = source_ranges(spec, &mut faults);
    let service = Service {
        name,
        created: metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        service_type,
        cluster_ips,
        headless,
        ports: ports(spec.ports.as_deref().unwrap_or_default(), names, &mut faults),
        external_ips: address::ips(
            "spec.externalIPs",
            spec.external_ips.iter().flatten().map(String::as_str),
            &mut faults,
        ),
        // Where every range is left out, an open door would stand where a narrow one was meant.
        load_balancer_vips: match &ranges {
            Some(_) => load_balancer_vips(object, &mut faults),
            None => Vec::new(),
        },
        load_balancer_source_ranges: ranges.unwrap_or_default(),
        external_traffic_policy: traffic_policy(
            "spec.externalTrafficPolicy",
            spec.external_traffic_policy.as_deref(),
            &mut faults,
        ),
        internal_traffic_policy: traffic_policy(
            "spec.internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref(),
            &mut faults,
        ),
        session_affinity: session_affinity(spec, &mut faults),
        health_check_node_port: port_or_none(
            "spec.healthCheckNodePort",
            spec.health_check_node_port,
            &mut faults,
        ),
        foreign_proxy: metadata.labels.as_ref().is_some_and(|l| l.contains_key(PROXY_NAME)),
        capture: said(metadata, CAPTURE, true, &mut faults),
        ends_connections: said(metadata, END_CONNECTIONS, false, &mut faults),
    };
    faults.with(Some(service))
}

/// `None` when the Service can mean nothing.
fn service_type(spec: &api::ServiceSpec, faults: &mut Faults) -> Option<ServiceType> {
    match spec.type_.as_deref().unwrap_or_default() {
        "" | "ClusterIP" => Some(ServiceType::ClusterIp),
        "NodePort" => Some(ServiceType::NodePort),
        "LoadBalancer" => Some(ServiceType::LoadBalancer),
        "ExternalName" => {
            let text = spec.external_name.as_deref().unwrap_or_default();
            let name = text.strip_suffix('.').unwrap_or(text);
            if names::is_subdomain(name) && name.split('.').all(names::is_label) {
                return Some(ServiceType::ExternalName(text.into()));
            }
            faults.add("spec.externalName", text, "no DNS name", names::SUBDOMAIN);
            None
        }
        other => {
            let remedy = "use ClusterIP, NodePort, LoadBalancer or ExternalName";
            faults.add("spec.type", other, "no type of Service", remedy);
            None
        }
    }
}

/// The cluster IPs, one a family, and whether the Service is headless.
fn cluster_ips(spec: &api::ServiceSpec, faults: &mut Faults) -> (Vec<IpAddr>, bool) {
    let first = spec.cluster_ip.as_deref().unwrap_or_default();
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let (field, list): (_, Vec<&str>) = if listed.is_empty() {
        ("spec.clusterIP", if first.is_empty() { vec![] } else { vec![first] })
    } else {
        ("spec.clusterIPs", listed.iter().map(String::as_str).collect())
    };
    if list.first() == Some(&"None") {
        return (Vec::new(), true);
    }
    if !listed.is_empty() && !first.is_empty() && list.first() != Some(&first) {
        let remedy = "make it the first of spec.clusterIPs, which counts";
        faults.add("spec.clusterIP", first, "not the first of spec.clusterIPs", remedy);
    }
    if list.is_empty() {
        let reason = format_args!("empty, and nobody allocates one here; set an address, or None");
        faults.say("spec.clusterIP", reason);
    }
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let mut found: Vec<IpAddr> = Vec::new();
    for (idx, text) in list.into_iter().enumerate() {
        let field = format_args!("{field}[{idx}]");
        let Some(ip) = parse_ip(text.trim()) else {
            faults.add(field, text, "no IP address", address::WRITE_IP);
            continue;
        };
        let family = Family::of(&ip);
        if families.get(idx).is_some_and(|named| address::family(named) != Some(family)) {
            let remedy = "list families and addresses in one order";
            faults.add(field, text, "not of the family in spec.ipFamilies", remedy);
        } else if found.iter().any(|other| Family::of(other) == family) {
            faults.add(field, text, "a second address of one family", "list one a family");
        } else if ip.is_unspecified() || ip.is_multicast() {
            faults.add(field, text, "no Service's address", "use one address");
        } else {
            found.push(ip);
        }
    }
    (found, false)
}

fn ports(list: &[api::ServicePort], names: &mut Names, faults: &mut Faults) -> Vec<ServicePort> {
    let mut found: Vec<ServicePort> = Vec::with_capacity(list.len());
    for (idx, port) in list.iter().enumerate() {
        let field = format_args!("spec.ports[{idx}]");
        let Some(number) = port_number(format_args!("{field}.port"), port.port, faults) else {
            continue;
        };
        let text = port.protocol.as_deref();
        let Some(protocol) = protocol(format_args!("{field}.protocol"), text, faults) else {
            continue;
        };
        let text = port.name.as_deref();
        let Some(name) = port_name(format_args!("{field}.name"), text, faults) else { continue };
        let same = |other: &ServicePort| other.protocol == protocol;
        if found.iter().any(|other| same(other) && *other.name == *name) {
            let wrong = "the name of another port of this protocol";
            faults.add(format_args!("{field}.name"), name, wrong, "name each port differently");
            continue;
        }
        if found.iter().any(|other| same(other) && other.port == number) {
            let wrong = "the number of another port of this protocol";
            faults.add(format_args!("{field}.port"), number, wrong, "leave one of them out");
            continue;
        }
        let node_port =
            port_or_none(&format!("spec.ports[{idx}].nodePort"), port.node_port, faults);
        found.push(ServicePort { name: names.share(name), protocol, port: number, node_port });
    }
    found
}

/// A port where 0 and absence mean none.
fn port_or_none(field: &str, number: Option<i32>, faults: &mut Faults) -> u16 {
    match number {
        None | Some(0) => 0,
        Some(number) => port_number(format_args!("{field}"), number, faults).unwrap_or(0),
    }
}

/// `None` when ranges were meant and none of them can be taken.
fn source_ranges(spec: &api::ServiceSpec, faults: &mut Faults) -> Option<Vec<IpNet>> {
    let list = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let ranges = address::nets("spec.loadBalancerSourceRanges", list, faults);
    if !ranges.is_empty() || list.iter().all(|range| range.trim().is_empty()) {
        return Some(ranges);
    }
    let reason =
        format_args!("no range is valid; the load balancer's addresses stay closed until one is");
    faults.say("spec.loadBalancerSourceRanges", reason);
    None
}

/// The ingress addresses that this node captures (KEP-1860).
fn load_balancer_vips(object: &api::Service, faults: &mut Faults) -> Vec<IpAddr> {
    let ingress = object
        .status
        .iter()
        .filter_map(|status| status.load_balancer.as_ref())
        .flat_map(|load_balancer| load_balancer.ingress.iter().flatten());
    let mut captured = Vec::new();
    for (idx, entry) in ingress.enumerate() {
        match entry.ip_mode.as_deref() {
            None | Some("" | "VIP") => captured.push(entry.ip.as_deref().unwrap_or_default()),
            // An empty text keeps the index in the faults right.
            Some("Proxy") => captured.push(""),
            Some(other) => {
                let field = format_args!("status.loadBalancer.ingress[{idx}].ipMode");
                faults.add(field, other, "no mode", "use VIP or Proxy");
                captured.push("");
            }
        }
    }
    address::ips("status.loadBalancer.ingress", captured, faults)
}

fn traffic_policy(field: &str, text: Option<&str>, faults: &mut Faults) -> TrafficPolicy {
    match text.unwrap_or_default() {
        "" | "Cluster" => TrafficPolicy::Cluster,
        "Local" => TrafficPolicy::Local,
        other => {
            faults.add(field, other, "no policy", "use Cluster or Local; Cluster counts");
            TrafficPolicy::Cluster
        }
    }
}

fn session_affinity(spec: &api::ServiceSpec, faults: &mut Faults) -> Option<Duration> {
    match spec.session_affinity.as_deref().unwrap_or_default() {
        "" | "None" => return None,
        "ClientIP" => {}
        other => {
            faults.add("spec.sessionAffinity", other, "no affinity", "use None or ClientIP");
            return None;
        }
    }
    let seconds = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref())
        .and_then(|client_ip| client_ip.timeout_seconds)
        .unwrap_or(DEFAULT_AFFINITY_SECONDS);
    let valid = (1..=MAX_AFFINITY_SECONDS).contains(&seconds);
    if !valid {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        faults.add(field, seconds, "no timeout", "use 1 to 86400; 10800 counts");
    }
    let seconds = if valid { seconds } else { DEFAULT_AFFINITY_SECONDS };
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

/// What an annotation says that is true or false.
fn said(metadata: &ObjectMeta, name: &str, otherwise: bool, faults: &mut Faults) -> bool {
    let annotation = metadata.annotations.as_ref().and_then(|all| all.get(name));
    match annotation.map(String::as_str) {
        None => otherwise,
        Some("true") => true,
        Some("false") => false,
        Some(other) => {
            let field = format_args!("metadata.annotations[{name}]");
            let remedy = format!("use \"{}\", or remove it", !otherwise);
            faults.add(field, other, "neither true nor false", &remedy);
            otherwise
        }
    }
}
