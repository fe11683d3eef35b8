//! The plan for a reader: as text, and as a value for JSON.

use std::fmt;

use ipnet::IpNet;
use model::name::{Family, NamespacedName};
use serde::Serialize;

use crate::plan::{
    Frontend, FrontendKey, Masquerade, NoLocalEndpoints, Plan, Route, Routes, ServicePlan,
    Settings, SourceKind, Target, Undefined,
};

/// Services in order; in each its frontends, and what is lost to another Service.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.settings)?;
        for (name, service) in &self.services {
            writeln!(f, "\nService {name}")?;
            self.service(f, name, service)?;
        }
        write!(f, "{}", self.left_alone)?;
        let mut problems = self.problems().peekable();
        if problems.peek().is_some() {
            writeln!(f, "\nleft out")?;
        }
        for problem in problems {
            writeln!(f, "  {problem}")?;
        }
        Ok(())
    }
}

impl Plan {
    fn service(
        &self,
        f: &mut fmt::Formatter<'_>,
        name: &NamespacedName,
        service: &ServicePlan,
    ) -> fmt::Result {
        for (key, frontend) in &service.frontends {
            write!(f, "  {key} {}", frontend.kind.name())?;
            if !frontend.service.port.is_empty() {
                write!(f, " (port {})", frontend.service.port)?;
            }
            match self.frontends.get(key) {
                Some(winner) if winner.service.service != *name => {
                    writeln!(f, ": lost to Service {}", winner.service.service)?;
                    continue;
                }
                Some(_) => writeln!(f)?,
                None => {
                    writeln!(f, ": left out")?;
                    continue;
                }
            }
            write!(f, "{frontend}")?;
        }
        for (address, undefined) in &service.addresses {
            let what = match undefined {
                Undefined::Reject => "REJECT",
                Undefined::Leave => "left alone",
                Undefined::NodePort => "left alone, except node ports",
            };
            writeln!(f, "  {address}, other ports: {what}")?;
        }
        if let Some(check) = service.health_check {
            let count = check.local_endpoints;
            writeln!(
                f,
                "  health check node port {}: {} IPv4, {} IPv6 ready on this node",
                check.port, count.v4, count.v6
            )?;
        }
        write!(f, "{}", service.no_local_endpoints)
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ranges) = &self.source_ranges {
            writeln!(f, "    only from {}", listed(ranges))?;
        }
        if let Some(affinity) = self.affinity {
            writeln!(f, "    a client keeps its endpoint for {} s", affinity.as_secs())?;
        }
        if self.ends_connections {
            writeln!(f, "    connections are ended once their endpoint serves no more")?;
        }
        for (sources, route) in grouped(&self.routes) {
            writeln!(f, "    from {sources}: {route}")?;
        }
        Ok(())
    }
}

/// The kinds of source that have the same route, together.
fn grouped(routes: &Routes) -> Vec<(String, &Route)> {
    let mut groups: Vec<(String, &Route)> = Vec::new();
    for source in [SourceKind::Pod, SourceKind::Node, SourceKind::Outside] {
        let route = routes.from(source);
        match groups.iter_mut().find(|(_, other)| *other == route) {
            Some((sources, _)) => sources.push_str(&format!(", {source}")),
            None => groups.push((source.to_string(), route)),
        }
    }
    if let [(sources, _)] = groups.as_mut_slice() {
        "anywhere".clone_into(sources);
    }
    groups
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Node")?;
        for family in Family::ALL {
            let node_ip =
                self.node_ips.get(family).map_or_else(|| "none".to_owned(), |ip| ip.to_string());
            let pods = self
                .pods
                .get(family)
                .as_ref()
                .map_or_else(|| "not told".to_owned(), ToString::to_string);
            let node_ports = self.node_ports.get(family);
            writeln!(f, "  {family}: address {node_ip}; pods {pods}; node ports {node_ports}")?;
        }
        if !self.service_cidrs.is_empty() {
            writeln!(f, "  Service CIDRs: {}", listed(&self.service_cidrs))?;
        }
        Ok(())
    }
}

impl fmt::Display for NoLocalEndpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (policy, count) in
            [("internalTrafficPolicy", self.internal), ("externalTrafficPolicy", self.external)]
        {
            let n_ports = count.v4 + count.v6;
            if n_ports > 0 {
                writeln!(f, "  {policy} is Local, and {n_ports} ports have no endpoint here")?;
            }
        }
        Ok(())
    }
}

/// Ranges, separated by commas.
pub(super) fn listed(ranges: &[IpNet]) -> String {
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A plan as `fairlead plan -o json` prints it.
#[derive(Debug, Serialize)]
pub struct PlanView {
    /// How pods of this node are told, by family.
    pods: [Option<String>; 2],
    service_cidrs: Vec<String>,
    frontends: Vec<FrontendView>,
    addresses: Vec<AddressView>,
    health_checks: Vec<HealthCheckView>,
    /// Pods whose sockets are not translated.
    left_alone: Vec<String>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct FrontendView {
    at: String,
    service: String,
    frontend: &'static str,
    routes: RoutesView,
    source_ranges: Option<Vec<String>>,
    affinity_seconds: Option<u64>,
    ends_connections: bool,
}

#[derive(Debug, Serialize)]
struct RoutesView {
    pod: RouteView,
    node: RouteView,
    outside: RouteView,
}

#[derive(Debug, Serialize)]
struct RouteView {
    verdict: &'static str,
    endpoints: Vec<EndpointView>,
    masquerade: bool,
}

#[derive(Debug, Serialize)]
struct EndpointView {
    address: String,
    weight: u16,
    local: bool,
}

#[derive(Debug, Serialize)]
struct AddressView {
    address: String,
    undefined_ports: &'static str,
    services: Vec<String>,
}

#[derive(Debug, Serialize)]
struct HealthCheckView {
    service: String,
    port: u16,
    local_endpoints: [usize; 2],
}

impl PlanView {
    /// Adds what was left out before or after planning.
    #[must_use]
    pub fn with_problems(mut self, problems: impl IntoIterator<Item = String>) -> Self {
        self.problems.extend(problems);
        self
    }
}

impl From<&Plan> for PlanView {
    fn from(plan: &Plan) -> Self {
        let settings = &plan.settings;
        Self {
            pods: Family::ALL
                .map(|family| settings.pods.get(family).as_ref().map(ToString::to_string)),
            service_cidrs: settings.service_cidrs.iter().map(ToString::to_string).collect(),
            frontends: plan
                .frontends
                .iter()
                .map(|(key, frontend)| FrontendView::new(key, frontend))
                .collect(),
            addresses: plan
                .addresses
                .iter()
                .map(|(address, claims)| AddressView {
                    address: address.to_string(),
                    undefined_ports: match plan.undefined(address) {
                        Some(Undefined::Reject) => "reject",
                        Some(Undefined::Leave) | None => "leave",
                        Some(Undefined::NodePort) => "node-port",
                    },
                    services: claims.iter().map(|claim| claim.service.to_string()).collect(),
                })
                .collect(),
            health_checks: plan
                .health_checks
                .iter()
                .map(|(service, check)| HealthCheckView {
                    service: service.to_string(),
                    port: check.port,
                    local_endpoints: Family::ALL.map(|family| *check.local_endpoints.get(family)),
                })
                .collect(),
            left_alone: plan.left_alone.pods.keys().map(ToString::to_string).collect(),
            problems: plan.problems().map(ToString::to_string).collect(),
        }
    }
}

impl FrontendView {
    fn new(key: &FrontendKey, frontend: &Frontend) -> Self {
        let route = |source| RouteView::new(frontend.routes.from(source));
        Self {
            at: key.to_string(),
            service: frontend.service.to_string(),
            frontend: frontend.kind.name(),
            routes: RoutesView {
                pod: route(SourceKind::Pod),
                node: route(SourceKind::Node),
                outside: route(SourceKind::Outside),
            },
            source_ranges: frontend
                .source_ranges
                .as_ref()
                .map(|ranges| ranges.iter().map(ToString::to_string).collect()),
            affinity_seconds: frontend.affinity.map(|affinity| affinity.as_secs()),
            ends_connections: frontend.ends_connections,
        }
    }
}

impl RouteView {
    fn new(route: &Route) -> Self {
        let (verdict, endpoints) = match &route.target {
            Target::Endpoints(set) => ("endpoints", set.to_vec()),
            Target::Drop => ("drop", Vec::new()),
            Target::Reject => ("reject", Vec::new()),
        };
        Self {
            verdict,
            masquerade: !endpoints.is_empty() && route.masquerade == Masquerade::Always,
            endpoints: endpoints
                .iter()
                .map(|endpoint| EndpointView {
                    address: endpoint.address.to_string(),
                    weight: endpoint.weight,
                    local: endpoint.local,
                })
                .collect(),
        }
    }
}
