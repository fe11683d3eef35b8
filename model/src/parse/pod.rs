//! Pod: whether its sockets are left alone, and the ports of its node that lead to it.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as api;

use crate::endpoint::{Conditions, Endpoint, EndpointPort, EndpointSlice};
use crate::host_port::{self, HostPorts};
use crate::name::{Family, NamespacedName};
use crate::parse::address::{self, parse_ip};
use crate::parse::fault::{Faults, Parsed};
use crate::parse::names::Names;
use crate::parse::node::socket_lb;
use crate::parse::slice::{port_number, protocol, push_port};
use crate::parse::{object_name, object_title};
use crate::pod::Pod;
use crate::service::{Service, ServicePort, ServiceType, TrafficPolicy};

/// A pod that has not ended.
pub fn pod(object: &api::Pod, names: &mut Names) -> Parsed<Pod> {
    let metadata = &object.metadata;
    let mut faults = Faults::of(object_title("Pod", metadata));
    let Some(spec) = &object.spec else { return faults.with(None) };
    let status = object.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return faults.with(None);
    }
    let Some(name) = object_name(metadata, names, &mut faults) else {
        return faults.with(None);
    };
    let ips = status.into_iter().flat_map(|status| status.pod_ips.iter().flatten());
    let ips = ips.map(|one| one.ip.as_str());
    let mut pod = Pod {
        name,
        uid: metadata.uid.as_deref().unwrap_or_default().into(),
        node_name: names.share_some(spec.node_name.as_deref()),
        host_network: spec.host_network == Some(true),
        addresses: address::ips("status.podIPs", ips, &mut faults),
        socket_lb: socket_lb(metadata, &mut faults),
        host_ports: None,
    };
    // On the node's own network it listens there by itself.
    if !pod.host_network && asked(spec).next().is_some() {
        let created = metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
        pod.host_ports = host_ports(&pod, ports(spec, names, &mut faults), created);
    }
    faults.with(Some(pod))
}

/// The host ports of a pod that has an address.
fn host_ports(pod: &Pod, ports: Ports, created: i64) -> Option<HostPorts> {
    let Ports { node, at, own } = ports;
    if pod.addresses.is_empty() || node.is_empty() {
        return None;
    }
    let name = host_port::name(&pod.name);
    let slices = pod.addresses.iter().map(|address| {
        let endpoint = Endpoint {
            address: *address,
            conditions: Conditions::default(),
            node_name: pod.node_name.clone(),
            zone: None,
            hints: None,
            hostname: None,
            pod: Some(Arc::clone(&pod.name.name)),
        };
        Arc::new(slice(&name, endpoint, own.clone()))
    });
    let slices = slices.collect();
    let service = Arc::new(service(name, created, node, at));
    Some(HostPorts { service, slices })
}

/// Ports in the order of the containers.
#[derive(Default)]
struct Ports {
    node: Vec<ServicePort>,
    /// At which of the node's addresses; `None` is all.
    at: Vec<Option<IpAddr>>,
    own: Vec<EndpointPort>,
}

fn ports(spec: &api::PodSpec, names: &mut Names, faults: &mut Faults) -> Ports {
    let mut ports = Ports::default();
    for port in asked(spec) {
        let field = format_args!("spec.containers[].ports[]");
        let host = port.host_port.unwrap_or_default();
        let number = port_number(format_args!("{field}.hostPort"), host, faults);
        let own = port_number(format_args!("{field}.containerPort"), port.container_port, faults);
        let text = port.protocol.as_deref();
        let protocol = protocol(format_args!("{field}.protocol"), text, faults);
        let (Some(number), Some(own), Some(protocol)) = (number, own, protocol) else { continue };
        let text = port.host_ip.as_deref().unwrap_or_default();
        let address = match (text, parse_ip(text)) {
            ("", _) => None,
            (_, Some(ip)) => Some(ip).filter(|ip| !ip.is_unspecified()),
            (_, None) => {
                faults.add(
                    format_args!("{field}.hostIP"),
                    text,
                    "no IP address",
                    address::WRITE_IP,
                );
                continue;
            }
        };
        let name = address.map_or_else(|| number.to_string(), |ip| format!("{ip}:{number}"));
        let name = names.share(&name);
        let before = ports.own.len();
        let own = EndpointPort { name: Arc::clone(&name), protocol, port: own };
        push_port(&mut ports.own, field, own, faults);
        if ports.own.len() > before {
            ports.node.push(ServicePort { name, protocol, port: number, node_port: number });
            ports.at.push(address);
        }
    }
    ports
}

/// The ports of containers that run on, which ask for one of the node's.
fn asked(spec: &api::PodSpec) -> impl Iterator<Item = &api::ContainerPort> {
    let inits = spec.init_containers.iter().flatten();
    let sidecars = inits.filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|one| one.ports.iter().flatten());
    ports.filter(|port| port.host_port.is_some_and(|number| number != 0))
}

fn slice(service: &NamespacedName, endpoint: Endpoint, ports: Vec<EndpointPort>) -> EndpointSlice {
    let family = Family::of(&endpoint.address);
    EndpointSlice {
        name: service.clone(),
        service: service.clone(),
        family,
        ports,
        endpoints: vec![endpoint],
        mirrored: false,
        weight: None,
        headless: false,
        last_change_trigger: None,
    }
}

fn service(
    name: NamespacedName,
    created: i64,
    ports: Vec<ServicePort>,
    at: Vec<Option<IpAddr>>,
) -> Service {
    Service {
        name,
        created,
        external_ips: at.iter().flatten().copied().collect(),
        service_type: ServiceType::HostPort(at.into()),
        cluster_ips: Vec::new(),
        headless: false,
        ports,
        load_balancer_vips: Vec::new(),
        load_balancer_source_ranges: Vec::new(),
        // The one endpoint is here, and sees who asks.
        external_traffic_policy: TrafficPolicy::Local,
        internal_traffic_policy: TrafficPolicy::Cluster,
        session_affinity: None,
        health_check_node_port: 0,
        foreign_proxy: false,
        capture: true,
        ends_connections: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::SocketLb;

    fn parsed(spec: &str, status: &str) -> Parsed<HostPorts> {
        let Parsed { object, problems } = pod_of("name: web", spec, status);
        Parsed { object: object.and_then(|pod| pod.host_ports), problems }
    }

    fn pod_of(metadata: &str, spec: &str, status: &str) -> Parsed<Pod> {
        let text = format!("{{metadata: {{{metadata}}}, spec: {spec}, status: {status}}}");
        pod(&serde_saphyr::from_str(&text).unwrap(), &mut Names::default())
    }

    const STATUS: &str = "{podIPs: [{ip: 10.244.1.7}, {ip: 'fd00::7'}]}";

    #[test]
    fn a_pod_s_host_ports_are_a_service_of_its_own() {
        let spec = "{nodeName: a, containers: [{name: c, ports: [{containerPort: 80, hostPort: 8080}, \
                    {containerPort: 53, hostPort: 53, protocol: UDP, hostIP: 192.0.2.1}, \
                    {containerPort: 9}]}]}";
        let Parsed { object, problems } = parsed(spec, STATUS);
        let HostPorts { service, slices } = object.unwrap();
        assert_eq!(problems, []);
        assert_eq!(service.name.to_string(), "default/pod/web");
        assert_eq!(host_port::title(&service.name), "Pod default/web");
        let ports: Vec<u16> = service.ports.iter().map(|port| port.port).collect();
        assert_eq!(ports, [8080, 53]);
        let at = [None, Some("192.0.2.1".parse().unwrap())];
        assert_eq!(service.service_type, ServiceType::HostPort(at.into()));
        let own: Vec<u16> = slices[1].ports.iter().map(|port| port.port).collect();
        assert_eq!((slices.len(), slices[1].family, own), (2, Family::V6, vec![80, 53]));
    }

    #[test]
    fn there_are_none_without_an_address_or_on_the_nodes_own_network() {
        let ports = "containers: [{name: c, ports: [{containerPort: 80, hostPort: 80}]}]";
        assert!(parsed(&format!("{{{ports}}}"), STATUS).object.is_some());
        assert_eq!(parsed(&format!("{{{ports}}}"), "{}").object, None);
        assert_eq!(parsed(&format!("{{hostNetwork: true, {ports}}}"), STATUS).object, None);
        let over = "{phase: Succeeded, podIPs: [{ip: 10.244.1.7}]}";
        assert_eq!(parsed(&format!("{{{ports}}}"), over).object, None);
    }

    #[test]
    fn a_pod_says_whether_its_sockets_are_left_alone() {
        let said = |value: &str| {
            let metadata = format!("name: web, annotations: {{fairlead.dev/socket-lb: {value}}}");
            let Parsed { object, problems } = pod_of(&metadata, "{containers: []}", STATUS);
            (object.unwrap().socket_lb, problems)
        };
        assert_eq!(said("'off'"), (Some(SocketLb::Off), vec![]));
        assert_eq!(said("'on'"), (Some(SocketLb::On), vec![]));
        let (said, problems) = said("'no'");
        assert_eq!(said, None);
        assert_eq!(
            problems[0].to_string(),
            "Pod default/web: metadata.annotations[fairlead.dev/socket-lb]: \"no\" is neither on nor \
             off; use \"on\" or \"off\", or remove it"
        );
        assert_eq!(pod_of("name: web", "{}", "{phase: Failed}").object, None);
        let pod = pod_of("name: web, uid: u-1", "{hostNetwork: true, containers: []}", "{}");
        let pod = pod.object.unwrap();
        assert_eq!((&*pod.uid, pod.host_network, pod.addresses), ("u-1", true, vec![]));
    }

    #[test]
    fn what_is_no_address_is_named() {
        let spec =
            "{containers: [{name: c, ports: [{containerPort: 1, hostPort: 1, hostIP: here}]}]}";
        let Parsed { object, problems } = parsed(spec, STATUS);
        assert_eq!(object, None);
        assert!(problems[0].to_string().contains("hostIP"), "{problems:?}");
    }
}
