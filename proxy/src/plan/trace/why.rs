//! The reasons for a decision, in words that name the field to change.

use std::net::IpAddr;

use model::cluster::ServiceState;
use model::name::{Family, NamespacedName, ServicePortName};
use model::service::{Service, ServiceType};
use model::slices::MergedEndpoint;

use crate::config::DetectLocal;
use crate::plan::build::Context;
use crate::plan::print::listed;
use crate::plan::trace::{Packet, Step, View, is_host};
use crate::plan::{
    At, EndpointSet, Frontend, FrontendKey, FrontendKind, Masquerade, Route, SourceKind, Target,
    Undefined,
};
use crate::select::{self, Policies, Selection, Topology};

/// The way to a decision, line by line.
pub(super) fn lines(
    view: &View<'_>,
    packet: &Packet,
    source: SourceKind,
    step: &Step,
) -> Vec<String> {
    let mut why = vec![source_line(view, packet, source)];
    match step {
        Step::Martian => why.push(format!(
            "{} is a loopback address, and only this node itself may reach it: dropped",
            packet.destination.ip()
        )),
        Step::Outside(key, frontend) => {
            why.push(frontend_line(view, key, frontend));
            why.push(format!(
                "{} is in none of the Service's spec.loadBalancerSourceRanges ({}): dropped; add \
                 its range there",
                packet.source,
                frontend.source_ranges.as_deref().map(listed).unwrap_or_default(),
            ));
        }
        Step::Route(key, frontend) => {
            why.push(frontend_line(view, key, frontend));
            routed(view, packet, source, frontend, &mut why);
        }
        Step::Undefined(undefined) => undefined_lines(view, packet, *undefined, &mut why),
        Step::Unallocated => why.push(format!(
            "{} is in the Service CIDRs ({}), but no Service has it: dropped",
            packet.destination.ip(),
            listed(&view.plan.settings.service_cidrs),
        )),
        Step::NotOurs => not_ours_lines(view, packet, &mut why),
    }
    why
}

fn source_line(view: &View<'_>, packet: &Packet, source: SourceKind) -> String {
    let from = packet.source;
    let detector = match &view.config.detect_local {
        DetectLocal::ClusterCidr(_) => "--cluster-cidr",
        DetectLocal::NodeCidr => "the Node's spec.podCIDRs",
        DetectLocal::BridgeInterface(_) => "--pod-bridge-interface",
        DetectLocal::InterfaceNamePrefix(_) => "--pod-interface-name-prefix",
    };
    match source {
        SourceKind::Pod => format!("{from} counts as a pod of this node, by {detector}"),
        SourceKind::Node => format!("{from} is an address of this node"),
        SourceKind::Outside if view.plan.settings.pods.get(Family::of(&from)).is_none() => {
            format!(
                "{from} is not an address of this node, and {detector} has no range to tell pods \
                 by: it counts as outside"
            )
        }
        SourceKind::Outside => format!(
            "{from} is neither a pod of this node, by {detector}, nor an address of it: it counts \
             as outside"
        ),
    }
}

fn frontend_line(view: &View<'_>, key: &FrontendKey, frontend: &Frontend) -> String {
    let what = match frontend.kind {
        FrontendKind::ClusterIp => "a cluster IP",
        FrontendKind::LoadBalancer => "a load balancer's address",
        FrontendKind::ExternalIp => "an external IP",
        FrontendKind::NodePort => "a node port",
    };
    let mut line = format!(
        "{key} is {what} of Service {}, {}",
        frontend.service.service,
        port_words(&frontend.service)
    );
    let losers: Vec<String> = view
        .plan
        .conflicts
        .keys()
        .filter(|(lost, _)| lost == key)
        .map(|(_, loser)| loser.to_string())
        .collect();
    if !losers.is_empty() {
        line.push_str(&format!(
            "; {} {} for it too and lost, as {} by kind, age or name",
            losers.join(", "),
            if losers.len() == 1 { "asks" } else { "ask" },
            if losers.len() == 1 { "it comes later" } else { "they come later" },
        ));
    }
    line
}

fn port_words(port: &ServicePortName) -> String {
    if port.port.is_empty() {
        format!("its unnamed port ({})", port.protocol)
    } else {
        format!("port {:?} ({})", &*port.port, port.protocol)
    }
}

/// A packet that a frontend decides.
fn routed(
    view: &View<'_>,
    packet: &Packet,
    source: SourceKind,
    frontend: &Frontend,
    why: &mut Vec<String>,
) {
    if frontend.source_ranges.is_some() {
        why.push(format!("{} is allowed by spec.loadBalancerSourceRanges", packet.source));
    }
    let Some(state) = view.snapshot.services.get(&frontend.service.service) else { return };
    let Some(service) = state.service.as_deref() else { return };
    let route = frontend.routes.from(source);
    let family = Family::of(&packet.destination.ip());
    let port = Port::new(view, state, service, &frontend.service, family);
    let local = policy_line(frontend.kind, source, &port.policies, why);
    let selection = select::select(&port.endpoints, &port.policies, port.place);
    if !local {
        topology_line(&port, &selection, why);
    }
    match &route.target {
        Target::Endpoints(set) => {
            if if local { selection.local_fallback } else { selection.cluster_fallback } {
                why.push(
                    "no endpoint is ready: those serve that are terminating, but still serving"
                        .to_owned(),
                );
            }
            endpoint_lines(&port, Some(set), local, selection.topology, why);
            masquerade_line(view, packet, source, frontend, why);
            if let Some(timeout) = frontend.affinity {
                why.push(format!(
                    "spec.sessionAffinity is ClientIP: {} keeps its endpoint until {} s after its \
                     last new connection, while that endpoint may serve",
                    packet.source,
                    timeout.as_secs()
                ));
            }
        }
        Target::Drop => {
            endpoint_lines(&port, None, local, selection.topology, why);
            let field = policy_field(frontend.kind);
            why.push(format!(
                "{field} is Local, and no endpoint on this node may serve: dropped; set it to \
                 Cluster, or run an endpoint on this node"
            ));
        }
        Target::Reject => {
            endpoint_lines(&port, None, local, selection.topology, why);
            why.push(no_endpoint_line(&port, frontend));
        }
    }
}

/// One Service port of one family, as selection sees it.
struct Port<'a> {
    state: &'a ServiceState,
    policies: Policies,
    endpoints: Vec<&'a MergedEndpoint>,
    place: select::Place<'a>,
    /// Its endpoints on this node are left out.
    asks_others: bool,
}

impl<'a> Port<'a> {
    fn new(
        view: &View<'a>,
        state: &'a ServiceState,
        service: &'a Service,
        name: &ServicePortName,
        family: Family,
    ) -> Self {
        let context = Context {
            config: view.config,
            settings: &view.plan.settings,
            node: view.snapshot.node.as_deref(),
            supports: &|_| Ok(()),
        };
        let port = service
            .ports
            .iter()
            .find(|port| port.name == name.port && port.protocol == name.protocol);
        let policies = port.map_or(
            Policies { internal_local: false, external_local: false, externally_accessible: false },
            |port| context.policies(service, port, family),
        );
        let endpoints: Vec<&MergedEndpoint> =
            state.endpoints.of(&name.port, name.protocol, family).collect();
        Self {
            state,
            asks_others: context.asks_others(service, &policies, &endpoints),
            policies,
            endpoints,
            place: select::Place {
                node: &view.config.node_name,
                zone: view.snapshot.node.as_ref().and_then(|node| node.zone.as_deref()),
            },
        }
    }
}

const fn policy_field(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "spec.internalTrafficPolicy",
        FrontendKind::LoadBalancer | FrontendKind::ExternalIp | FrontendKind::NodePort => {
            "spec.externalTrafficPolicy"
        }
    }
}

/// Says which policy holds, and whether that is `Local`.
fn policy_line(
    kind: FrontendKind,
    source: SourceKind,
    policies: &Policies,
    why: &mut Vec<String>,
) -> bool {
    let field = policy_field(kind);
    let is_local = match kind {
        FrontendKind::ClusterIp => policies.internal_local,
        FrontendKind::LoadBalancer | FrontendKind::ExternalIp | FrontendKind::NodePort => {
            policies.external_local
        }
    };
    let short_circuit = is_local && kind != FrontendKind::ClusterIp;
    match source {
        SourceKind::Pod | SourceKind::Node if short_circuit => {
            let who = if source == SourceKind::Pod { "a pod of this node" } else { "this node" };
            why.push(format!(
                "{field} is Local, which is for traffic from outside: {who} may use every endpoint"
            ));
            false
        }
        _ if is_local => {
            why.push(format!("{field} is Local: only endpoints on this node may serve"));
            true
        }
        _ => {
            why.push(format!("{field} is Cluster: every endpoint may serve"));
            false
        }
    }
}

fn topology_line(port: &Port<'_>, selection: &Selection<'_>, why: &mut Vec<String>) {
    match selection.topology {
        Topology::SameNode => why.push(format!(
            "every ready endpoint is hinted for nodes (hints.forNodes), and some for {:?}: only \
             those",
            port.place.node
        )),
        Topology::SameZone => why.push(format!(
            "every ready endpoint is hinted for zones (hints.forZones), and some for {:?}: only \
             those",
            port.place.zone.unwrap_or_default()
        )),
        Topology::Off => {}
    }
}

/// Each endpoint, and why it may or may not serve.
fn endpoint_lines(
    port: &Port<'_>,
    set: Option<&EndpointSet>,
    local: bool,
    topology: Topology,
    why: &mut Vec<String>,
) {
    for endpoint in &port.endpoints {
        let serves =
            set.is_some_and(|set| set.iter().any(|other| other.address == endpoint.address));
        let verb = if serves { "may serve" } else { "left out" };
        let mut line = format!("endpoint {}", endpoint.address);
        if let Some(pod) = &endpoint.pod {
            line.push_str(&format!(" (pod {pod})"));
        }
        line.push_str(&format!(" {verb}: {}", condition_words(endpoint)));
        if endpoint.local {
            line.push_str(", on this node");
            if !serves && port.asks_others {
                line.push_str(", which answers names itself, and asks others only while it cannot");
            }
        } else if !serves && local {
            line.push_str(", not on this node (nodeName)");
        }
        if !serves
            && !local
            && endpoint.conditions.ready
            && !select::available(endpoint, topology, port.place)
        {
            line.push_str(", hinted for elsewhere");
        }
        if let Some(weight) = endpoint.weight {
            line.push_str(&format!(", weight {weight} (annotation fairlead.dev/weight)"));
        }
        why.push(line);
    }
}

const fn condition_words(endpoint: &MergedEndpoint) -> &'static str {
    let conditions = endpoint.conditions;
    match (conditions.ready, conditions.serving, conditions.terminating) {
        (true, ..) => "ready",
        (false, true, true) => "terminating, still serving",
        (false, false, true) => "terminating, no longer serving",
        (false, _, false) => "not ready",
    }
}

fn no_endpoint_line(port: &Port<'_>, frontend: &Frontend) -> String {
    if !port.endpoints.is_empty() {
        return "no endpoint is ready, nor terminating and still serving: rejected; see the \
                pods' readiness probes"
            .to_owned();
    }
    let name = &frontend.service;
    let others: Vec<String> = port
        .state
        .endpoints
        .ports
        .iter()
        .map(|((port, protocol), _)| format!("{:?}/{protocol}", &**port))
        .collect();
    if others.is_empty() {
        format!(
            "no EndpointSlice of Service {} lists an endpoint: rejected; see that spec.selector \
             matches pods and that they run",
            name.service
        )
    } else {
        format!(
            "no EndpointSlice lists an endpoint of this family for port name {:?}/{}, only for \
             {}: rejected; see spec.ports[].name and targetPort",
            &*name.port,
            name.protocol,
            others.join(", ")
        )
    }
}

fn masquerade_line(
    view: &View<'_>,
    packet: &Packet,
    source: SourceKind,
    frontend: &Frontend,
    why: &mut Vec<String>,
) {
    let Route { target: Target::Endpoints(set), masquerade } = frontend.routes.from(source) else {
        return;
    };
    let is_cluster_ip = frontend.kind == FrontendKind::ClusterIp;
    why.push(match masquerade {
        Masquerade::Always if is_cluster_ip && view.config.masquerade_all => {
            "masqueraded: --masquerade-all".to_owned()
        }
        Masquerade::Always if is_cluster_ip => {
            "masqueraded: the source is no pod, so the reply would not come back here".to_owned()
        }
        Masquerade::Always => {
            "masqueraded, so that the reply comes back here; the endpoint does not see the \
             client's address (spec.externalTrafficPolicy: Local keeps it)"
                .to_owned()
        }
        Masquerade::Hairpin
            if set.iter().any(|endpoint| endpoint.address.ip() == packet.source) =>
        {
            "not masqueraded, unless the endpoint chosen is the source itself".to_owned()
        }
        Masquerade::Hairpin => "not masqueraded: the endpoint sees the client's address".to_owned(),
    });
}

/// A Service's address, at a port that is not the Service's.
fn undefined_lines(view: &View<'_>, packet: &Packet, undefined: Undefined, why: &mut Vec<String>) {
    let address = packet.destination.ip();
    for claim in view.plan.addresses.get(&address).into_iter().flat_map(|claims| claims.iter()) {
        let state = view.snapshot.services.get(&claim.service);
        let service = state.and_then(|state| state.service.as_deref());
        why.push(service.map_or_else(
            || format!("{address} belongs to Service {}", claim.service),
            |service| claim_line(address, service),
        ));
    }
    why.push(match undefined {
        Undefined::Reject => {
            format!("no Service has {} there: rejected; see spec.ports", port_of(packet))
        }
        Undefined::Leave | Undefined::NodePort => {
            "not ours: it goes where it would go without a proxy".to_owned()
        }
    });
}

fn claim_line(address: IpAddr, service: &Service) -> String {
    let name = &service.name;
    if service.foreign_proxy {
        return format!(
            "{address} belongs to Service {name}, which the label \
             service.kubernetes.io/service-proxy-name leaves to another proxy"
        );
    }
    if !service.capture {
        return format!(
            "{address} belongs to Service {name}, which its annotation fairlead.dev/capture leaves \
             to somebody else"
        );
    }
    let ports: Vec<String> =
        service.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect();
    format!("{address} belongs to Service {name}, whose ports are {}", ports.join(", "))
}

fn port_of(packet: &Packet) -> String {
    format!("port {}/{}", packet.destination.port(), packet.protocol)
}

fn not_ours_lines(view: &View<'_>, packet: &Packet, why: &mut Vec<String>) {
    let address = packet.destination.ip();
    let family = Family::of(&address);
    if is_host(view, &address) {
        let key = FrontendKey {
            at: At::NodePort(family),
            port: packet.destination.port(),
            protocol: packet.protocol,
        };
        let serves = view.plan.settings.node_ports.get(family).serve(&address);
        why.push(match view.plan.frontends.get(&key) {
            Some(frontend) if !serves => format!(
                "node port {} is Service {}'s, but {address} serves no node ports; see \
                 --nodeport-addresses",
                key.port, frontend.service.service
            ),
            _ => format!(
                "{address} is this node's, and no Service has the node port {}/{}",
                key.port, packet.protocol
            ),
        });
    } else {
        why.push(format!("no Service has {address} as clusterIP, load balancer or external IP"));
    }
    for (name, state) in &view.snapshot.services {
        let Some(service) = state.service.as_deref() else { continue };
        if let Some(line) = near_miss(view, address, name, service) {
            why.push(line);
        }
    }
    why.push("not ours: it goes where it would go without a proxy".to_owned());
}

/// A Service that has the address, but is not routed there.
fn near_miss(
    view: &View<'_>,
    address: IpAddr,
    name: &NamespacedName,
    service: &Service,
) -> Option<String> {
    let is_external_name = matches!(service.service_type, ServiceType::ExternalName(_));
    if is_external_name && service.cluster_ips.contains(&address) {
        return Some(format!("Service {name} is of type ExternalName: its address is not routed"));
    }
    let mentions =
        service.external_ips.contains(&address) || service.load_balancer_vips.contains(&address);
    if !mentions {
        return None;
    }
    let plan = view.plan.services.get(name);
    let told = plan.into_iter().flat_map(|plan| plan.problems.iter()).map(ToString::to_string);
    let reasons: Vec<String> = told.collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}
