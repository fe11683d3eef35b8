//! Why an answer is what it is, in sentences.

use model::cluster::ServiceState;
use model::name::NamespacedName;
use model::service::ServiceType;
use model::slices::MergedEndpoints;

use crate::answer::{Answer, Reason};
use crate::config::PodMode;
use crate::message::RecordType;
use crate::name::{LowerName, wire_labels};
use crate::query::{Asked, Key, What};
use crate::zone::ZoneView;
use crate::zone::service::Kind;

/// What decided an answer, from the name's shape to the objects behind it.
pub fn why(
    view: &ZoneView,
    name: &LowerName,
    rtype: RecordType,
    answer: &Answer<'_>,
) -> Vec<String> {
    let mut lines = Vec::new();
    match Asked::parse(view.options(), name) {
        Some(asked) => what(view, &asked, &mut lines),
        None => {
            let zones: Vec<String> =
                view.options().zones.iter().map(|zone| zone.name.to_string()).collect();
            lines.push(format!("{name:?} is not below {}", zones.join(" or ")));
        }
    }
    for target in answer.aliases.targets() {
        lines.push(format!("the alias leads to {target}"));
    }
    lines.push(match answer.reason {
        Reason::Found => format!("so there are records of type {rtype}"),
        Reason::NoData => format!("so the name exists, without records of type {rtype}"),
        Reason::NoName => "so the name does not exist".to_owned(),
        Reason::Outside => "so it is refused: nothing to ask is configured".to_owned(),
        Reason::AliasOutside => {
            "so it fails: that is outside, and nothing to ask is configured".to_owned()
        }
        Reason::AliasLoop => "so it fails: aliases lead in a circle, or too far".to_owned(),
        Reason::NotReady => "so it fails: the cluster has not been listed yet".to_owned(),
        Reason::NotRouted => "so it fails: the address is not routed on this node yet".to_owned(),
        Reason::Transfer => "so it is refused: zone transfers are not offered".to_owned(),
        Reason::Class => "so it is refused: only class IN is served".to_owned(),
        Reason::Prohibited => "so it is refused: this client may not ask here".to_owned(),
    });
    lines
}

fn what(view: &ZoneView, asked: &Asked<'_, '_>, lines: &mut Vec<String>) {
    let zone = &asked.zone.name;
    match asked.what {
        What::Apex => lines.push(format!("{zone} is the zone itself")),
        What::Version => lines.push("it names the schema of names that is followed".to_owned()),
        What::NameServer => lines.push("it is this server".to_owned()),
        What::Root => lines.push("names below it exist, so it does".to_owned()),
        What::Namespace(label) => {
            let namespace = label.escape_ascii();
            let exists = if view.has_namespace(label) { "exists" } else { "does not exist" };
            lines.push(format!("the namespace {namespace} {exists}"));
        }
        What::Service(key) => service(view, key, lines),
        What::Endpoint(key, label) => {
            service(view, key, lines);
            let label = label.escape_ascii();
            let host = view.service(key).and_then(|it| it.host(label.to_string().as_bytes()));
            let has = if host.is_some() { "a" } else { "no" };
            lines.push(format!("it has {has} ready endpoint called {label}"));
        }
        What::Protocol(key, _) => {
            service(view, key, lines);
            lines.push("it would be the parent of the names of ports".to_owned());
        }
        What::Port(key, protocol, port) => {
            service(view, key, lines);
            let (port, protocol) = (port.escape_ascii(), protocol.0.escape_ascii());
            lines.push(format!("the port asked for is {port:?} of {protocol}"));
        }
        What::Pod { address: None, .. } => {
            lines.push("pods are named for their addresses, and this spells none".to_owned());
        }
        What::Pod { namespace, address: Some(address) } => pod(view, namespace, address, lines),
        What::Address(address) => {
            let owners: Vec<String> =
                view.owners(address).map(|service| service.name().to_string()).collect();
            lines.push(match owners.is_empty() {
                true => format!("{address} belongs to no Service and no ready endpoint"),
                false => format!("{address} belongs to {}", owners.join(", ")),
            });
        }
        What::Range(range) => lines.push(format!("it is the parent of the addresses {range}")),
        What::Nothing => lines.push(format!("nothing in {zone} has a name of this shape")),
    }
}

fn pod(view: &ZoneView, namespace: &[u8], address: std::net::IpAddr, lines: &mut Vec<String>) {
    let namespace_name = namespace.escape_ascii();
    if !view.has_namespace(namespace) {
        lines.push(format!("the namespace {namespace_name} does not exist"));
        return;
    }
    lines.push(match view.options().pods {
        PodMode::Disabled => "pods are disabled: pods have no names".to_owned(),
        PodMode::Insecure => format!("pods are insecure: {address} is not looked for"),
        PodMode::Verified if view.has_pod(namespace, address) => {
            format!("a pod of {namespace_name} with {address} serves something")
        }
        PodMode::Verified => format!("no pod of {namespace_name} with {address} serves anything"),
    });
}

fn service(view: &ZoneView, key: Key<'_>, lines: &mut Vec<String>) {
    let labels: Vec<String> =
        wire_labels(key.0).map(|label| label.escape_ascii().to_string()).collect();
    let [name, namespace] = &labels[..] else { return };
    let name = NamespacedName::new(namespace.as_str(), name.as_str());
    let state = view.snapshot().services.get(&name);
    match (view.service(key), state) {
        (Some(service), _) => lines.push(match service.kind() {
            Kind::ClusterIp => {
                let ips = service.service().cluster_ips.iter().map(ToString::to_string);
                format!(
                    "Service {name} has the cluster IP {}",
                    ips.collect::<Vec<_>>().join(" and ")
                )
            }
            Kind::Headless => {
                let (ready, all) = state.map_or((0, 0), |state| count(&state.endpoints));
                format!("Service {name} is headless; {ready} of {all} endpoints are ready")
            }
            Kind::ExternalName(target) => format!("Service {name} is an alias for {target}"),
        }),
        (None, Some(state)) => lines.push(nameless(&name, state)),
        (None, None) => lines.push(format!("there is no Service {name}")),
    }
}

/// Why a Service that something is known of has no name.
fn nameless(name: &NamespacedName, state: &ServiceState) -> String {
    let Some(service) = &state.service else {
        return format!("there are EndpointSlices for {name}, but no such Service");
    };
    if let ServiceType::ExternalName(target) = &service.service_type {
        return format!("Service {name} has the external name {target}, which is no domain name");
    }
    let (ready, all) = count(&state.endpoints);
    match ready {
        0 if service.headless => {
            format!("Service {name} is headless, and none of its {all} endpoints is ready")
        }
        0 => format!("Service {name} has no ready endpoint, and such are ignored"),
        _ => format!("Service {name} is not exposed: see `namespaces` in the Corefile"),
    }
}

/// How many endpoints are ready, and how many there are, each once.
fn count(endpoints: &MergedEndpoints) -> (usize, usize) {
    let mut all: Vec<(std::net::IpAddr, bool)> = endpoints
        .ports
        .values()
        .chain([&endpoints.portless])
        .flat_map(|list| list.iter())
        .map(|endpoint| (endpoint.address.ip(), endpoint.conditions.ready))
        .collect();
    all.sort_unstable();
    all.dedup();
    (all.iter().filter(|(_, ready)| *ready).count(), all.len())
}
