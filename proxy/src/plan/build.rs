//! One Service's part of the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use model::cluster::ServiceState;
use model::host_port;
use model::name::{Family, Protocol, ServicePortName};
use model::node::Node;
use model::problem::Problem;
use model::service::{Service, ServicePort, ServiceType, TrafficPolicy};
use model::slices::MergedEndpoint;

use crate::backend::Unsupported;
use crate::by_family::ByFamily;
use crate::config::{ExternalIps, HostPorts, NodeConfig};
use crate::plan::{
    At, Endpoint, EndpointSet, Frontend, FrontendKey, FrontendKind, HealthCheck, Masquerade, Route,
    Routes, ServicePlan, Settings, Target, Undefined,
};
use crate::select::{Place, Policies, Selection, select};

/// Namespace and name of the cluster's DNS, everywhere.
const CLUSTER_DNS: (&str, &str) = ("kube-system", "kube-dns");

/// What a Service's part of the plan depends on besides the Service: the node.
pub(crate) struct Context<'a> {
    pub(crate) config: &'a NodeConfig,
    pub(crate) settings: &'a Settings,
    pub(crate) node: Option<&'a Node>,
    pub(crate) supports: &'a dyn Fn(&Frontend) -> Result<(), Unsupported>,
}

impl Context<'_> {
    /// What a Service asks for by itself; `None` if that is nothing.
    pub(crate) fn service(&self, state: &ServiceState) -> Option<ServicePlan> {
        let service = state.service.as_deref()?;
        if let ServiceType::HostPort(addresses) = &service.service_type {
            return match self.config.host_ports {
                HostPorts::Led => {
                    Some(ServiceBuild::new(self, state, service).host_ports(addresses))
                }
                HostPorts::Left => None,
            };
        }
        if service.cluster_ips.is_empty() {
            return None;
        }
        if !service.is_routed() {
            // Allocated, though not to us: not to be dropped as if it were nobody's.
            let addresses = service.cluster_ips.iter().map(|ip| (*ip, Undefined::Leave)).collect();
            return Some(ServicePlan { addresses, ..ServicePlan::default() });
        }
        let mut build = ServiceBuild::new(self, state, service);
        for family in Family::ALL {
            if let Some(cluster_ip) = service.cluster_ip(family) {
                build.family(family, cluster_ip);
            }
        }
        if service.ends_connections && !self.config.at_sockets {
            build.problem(
                "metadata.annotations[fairlead.dev/end-connections]",
                "in this --proxy-mode connections are left to their endpoints; ebpf ends them",
            );
        }
        Some(build.finish())
    }

    pub(crate) fn place(&self) -> Place<'_> {
        Place {
            node: &self.config.node_name,
            zone: self.node.and_then(|node| node.zone.as_deref()),
        }
    }

    /// The policies of one port of a Service, in one family.
    pub(crate) fn policies(
        &self,
        service: &Service,
        port: &ServicePort,
        family: Family,
    ) -> Policies {
        let has_addresses = [FrontendKind::LoadBalancer, FrontendKind::ExternalIp]
            .into_iter()
            .any(|kind| !self.usable(service, family, kind).is_empty());
        Policies {
            internal_local: service.internal_traffic_policy == TrafficPolicy::Local,
            external_local: service.external_traffic_policy == TrafficPolicy::Local,
            externally_accessible: has_addresses || port.node_port != 0,
        }
    }

    /// Whether a Service's endpoints on this node are left out: it is the cluster's DNS, which this
    /// node answers itself while it can, and somebody else is there.
    pub(crate) fn asks_others(
        &self,
        service: &Service,
        policies: &Policies,
        endpoints: &[&MergedEndpoint],
    ) -> bool {
        self.config.answers_names
            && (&*service.name.namespace, &*service.name.name) == CLUSTER_DNS
            && !policies.use_local()
            && endpoints.iter().any(|endpoint| !endpoint.local && endpoint.conditions.ready)
    }

    /// The addresses of one kind and family that are served, ordered.
    fn usable(&self, service: &Service, family: Family, kind: FrontendKind) -> BTreeSet<IpAddr> {
        claimed(service, family, kind)
            .filter(|address| self.refusal(address, kind).is_none())
            .collect()
    }

    fn refusal(&self, address: &IpAddr, kind: FrontendKind) -> Option<String> {
        if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
            return Some(format!("{address} is no address that a Service can have; remove it"));
        }
        if kind != FrontendKind::ExternalIp {
            return None;
        }
        match &self.config.external_ips {
            ExternalIps::Any => None,
            ExternalIps::Off => Some(format!(
                "{address} is left out: the feature gate AllowServiceExternalIPs is off"
            )),
            ExternalIps::Within(ranges) if ranges.iter().any(|range| range.contains(address)) => {
                None
            }
            ExternalIps::Within(_) => Some(format!(
                "{address} is left out: it is in none of the ranges allowed for external IPs"
            )),
        }
    }

    fn is_own(&self, address: &IpAddr) -> bool {
        self.node.is_some_and(|node| node.addresses.contains(address))
            || *self.settings.node_ips.get(Family::of(address)) == Some(*address)
    }
}

/// A Service's part of the plan, half built.
struct ServiceBuild<'a> {
    context: &'a Context<'a>,
    state: &'a ServiceState,
    service: &'a Service,
    frontends: BTreeMap<FrontendKey, Arc<Frontend>>,
    addresses: BTreeMap<IpAddr, Undefined>,
    local_ready: BTreeSet<IpAddr>,
    plan: ServicePlan,
}

/// What the frontends of one Service port and family have in common.
struct PortBuild<'a> {
    port: &'a ServicePort,
    family: Family,
    name: ServicePortName,
    internal: Routes,
    external: Routes,
    serving: Arc<[SocketAddr]>,
}

impl<'a> ServiceBuild<'a> {
    fn new(context: &'a Context<'a>, state: &'a ServiceState, service: &'a Service) -> Self {
        Self {
            context,
            state,
            service,
            frontends: BTreeMap::new(),
            addresses: BTreeMap::new(),
            local_ready: BTreeSet::new(),
            plan: ServicePlan { created: service.created, ..ServicePlan::default() },
        }
    }

    fn family(&mut self, family: Family, cluster_ip: IpAddr) {
        for kind in [FrontendKind::LoadBalancer, FrontendKind::ExternalIp] {
            for address in claimed(self.service, family, kind) {
                if let Some(reason) = self.context.refusal(&address, kind) {
                    self.problem(kind.field(), reason);
                }
            }
        }
        let vips = self.context.usable(self.service, family, FrontendKind::LoadBalancer);
        let external_ips = self.context.usable(self.service, family, FrontendKind::ExternalIp);
        let source_ranges = self.source_ranges(family, &vips);
        self.own(cluster_ip, Undefined::Reject);
        for address in vips.iter().chain(&external_ips) {
            self.own(*address, Undefined::Leave);
        }
        for port in &self.service.ports {
            let build = self.port(family, port);
            self.frontend(&build, FrontendKind::ClusterIp, At::Address(cluster_ip), None);
            for vip in &vips {
                let ranges = source_ranges.clone();
                self.frontend(&build, FrontendKind::LoadBalancer, At::Address(*vip), ranges);
            }
            for ip in &external_ips {
                self.frontend(&build, FrontendKind::ExternalIp, At::Address(*ip), None);
            }
            if port.node_port != 0 {
                self.frontend(&build, FrontendKind::NodePort, At::NodePort(family), None);
            }
        }
    }

    /// Ports of this node that lead to one of its pods: at one of the node's addresses, or at all that
    /// serve node ports. A family of which the pod has no address is left alone.
    fn host_ports(mut self, addresses: &[Option<IpAddr>]) -> ServicePlan {
        let service = self.service;
        for (port, address) in service.ports.iter().zip(addresses) {
            let of = |family: &Family| address.is_none_or(|ip| Family::of(&ip) == *family);
            for family in Family::ALL.into_iter().filter(of) {
                let build = self.port(family, port);
                if build.serving.is_empty() {
                    continue;
                }
                let Some(address) = *address else {
                    self.frontend(&build, FrontendKind::NodePort, At::NodePort(family), None);
                    continue;
                };
                let kind = FrontendKind::ExternalIp;
                if let Some(reason) = self.context.refusal(&address, kind) {
                    self.problem("spec.containers[].ports[].hostIP", reason);
                    continue;
                }
                self.own(address, Undefined::Leave);
                self.frontend(&build, kind, At::Address(address), None);
            }
        }
        self.finish()
    }

    /// Which sources may use the load balancer's VIPs; `None` is all.
    fn source_ranges(&self, family: Family, vips: &BTreeSet<IpAddr>) -> Option<Arc<[IpNet]>> {
        let mut ranges: BTreeSet<IpNet> = self
            .service
            .load_balancer_source_ranges
            .iter()
            .filter(|range| Family::of(&range.addr()) == family)
            .map(IpNet::trunc)
            .collect();
        if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
            return None;
        }
        // A node that may use the Service may do so with the VIP as its source, too: that is what
        // a host to which the VIP is bound picks.
        let node_ip = self.context.settings.node_ips.get(family);
        if node_ip.is_some_and(|ip| ranges.iter().any(|range| range.contains(&ip))) {
            ranges.extend(vips.iter().copied().map(IpNet::from));
        }
        Some(ranges.into_iter().collect())
    }

    fn own(&mut self, address: IpAddr, undefined: Undefined) {
        let undefined = if self.context.is_own(&address) { Undefined::NodePort } else { undefined };
        let known = self.addresses.entry(address).or_insert(undefined);
        *known = undefined.min(*known);
    }

    fn port(&mut self, family: Family, port: &'a ServicePort) -> PortBuild<'a> {
        let policies = self.context.policies(self.service, port, family);
        let mut endpoints: Vec<&MergedEndpoint> =
            self.state.endpoints.of(&port.name, port.protocol, family).collect();
        if self.context.asks_others(self.service, &policies, &endpoints) {
            endpoints.retain(|endpoint| !endpoint.local);
        }
        let selection = select(&endpoints, &policies, self.context.place());
        self.count(family, &endpoints, &policies, &selection);
        let sets = Sets {
            cluster: set(&selection.cluster),
            local: set(&selection.local),
            has_any: selection.has_any,
        };
        PortBuild {
            port,
            family,
            name: ServicePortName {
                service: self.service.name.clone(),
                port: Arc::clone(&port.name),
                protocol: port.protocol,
            },
            internal: self.internal(family, &sets, policies.internal_local),
            external: external(&sets, policies.external_local),
            serving: endpoints
                .iter()
                .filter(|endpoint| endpoint.conditions.serving)
                .map(|endpoint| endpoint.address)
                .collect(),
        }
    }

    fn count(
        &mut self,
        family: Family,
        endpoints: &[&MergedEndpoint],
        policies: &Policies,
        selection: &Selection<'_>,
    ) {
        self.local_ready.extend(
            endpoints
                .iter()
                .filter(|endpoint| endpoint.local && endpoint.conditions.ready)
                .map(|endpoint| endpoint.address.ip()),
        );
        if !selection.has_any || !selection.local.is_empty() {
            return;
        }
        if policies.internal_local {
            *self.plan.no_local_endpoints.internal.get_mut(family) += 1;
        }
        if policies.external_local && policies.externally_accessible {
            *self.plan.no_local_endpoints.external.get_mut(family) += 1;
        }
    }

    /// The routes of a cluster IP. Without a way to tell pods, all sources count as pods.
    fn internal(&self, family: Family, sets: &Sets, local: bool) -> Routes {
        let target = if local { sets.local() } else { sets.cluster() };
        let has_detector = self.context.settings.pods.get(family).is_some();
        let masquerade = |not_a_pod| {
            if self.context.config.masquerade_all || (has_detector && not_a_pod) {
                Masquerade::Always
            } else {
                Masquerade::Hairpin
            }
        };
        Routes {
            pod: Route::new(target.clone(), masquerade(false)),
            node: Route::new(target.clone(), masquerade(true)),
            outside: Route::new(target, masquerade(true)),
        }
    }

    fn frontend(
        &mut self,
        build: &PortBuild<'_>,
        kind: FrontendKind,
        at: At,
        source_ranges: Option<Arc<[IpNet]>>,
    ) {
        let (port, routes) = match kind {
            FrontendKind::ClusterIp => (build.port.port, &build.internal),
            FrontendKind::NodePort => (build.port.node_port, &build.external),
            FrontendKind::LoadBalancer | FrontendKind::ExternalIp => {
                (build.port.port, &build.external)
            }
        };
        let key = FrontendKey { at, port, protocol: build.port.protocol };
        if kind == FrontendKind::ExternalIp && self.is_protected(&key) {
            self.problem(
                kind.field(),
                format!(
                    "{key} is a port that this node itself is reached by; allow its address for \
                     external IPs if that is meant"
                ),
            );
            return;
        }
        let frontend = Frontend {
            service: build.name.clone(),
            kind,
            routes: routes.clone(),
            source_ranges,
            affinity: self.service.session_affinity,
            ends_connections: self.service.ends_connections && build.port.protocol == Protocol::Tcp,
            serving: Arc::clone(&build.serving),
        };
        match self.frontends.get(&key).map(Arc::clone) {
            None => {
                if let Err(unsupported) = (self.context.supports)(&frontend) {
                    self.problem(&unsupported.field, format!("{key}: {}", unsupported.reason));
                    self.plan.refused.insert(key);
                }
                self.frontends.insert(key, Arc::new(frontend));
            }
            // One address in two fields of one Service: the first kind says more about it.
            Some(other) if other.service == frontend.service => {}
            Some(other) => self.problem(
                "spec.ports",
                format!(
                    "{key} is asked for by port {:?} and by port {:?}, and served for the first; \
                     change one of the two",
                    other.service.port, frontend.service.port
                ),
            ),
        }
        debug_assert_eq!(build.family, at.family());
    }

    /// Taking a node's own ports away needs to be allowed by name (CVE-2020-8554).
    fn is_protected(&self, key: &FrontendKey) -> bool {
        let config = self.context.config;
        let At::Address(address) = key.at else { return false };
        config.external_ips == ExternalIps::Any
            && key.protocol == Protocol::Tcp
            && config.protected_ports.contains(&key.port)
            && self.context.is_own(&address)
    }

    fn problem(&mut self, field: &str, reason: impl std::fmt::Display) {
        let object = host_port::title(&self.service.name);
        self.plan.problems.push(Problem::new(object, field, reason));
    }

    fn finish(self) -> ServicePlan {
        let mut plan = self.plan;
        if self.service.service_type == ServiceType::LoadBalancer
            && self.service.external_traffic_policy == TrafficPolicy::Local
            && self.service.health_check_node_port != 0
        {
            let count =
                |family| self.local_ready.iter().filter(|ip| Family::of(ip) == family).count();
            plan.health_check = Some(HealthCheck {
                port: self.service.health_check_node_port,
                local_endpoints: ByFamily::from_fn(count),
            });
        }
        plan.frontends = self.frontends.into_iter().collect();
        plan.addresses = self.addresses.into_iter().collect();
        plan.problems.sort_unstable();
        plan
    }
}

/// The addresses that a Service has in one field, of one family.
fn claimed(service: &Service, family: Family, kind: FrontendKind) -> impl Iterator<Item = IpAddr> {
    let addresses: &[IpAddr] = match kind {
        FrontendKind::ClusterIp => &service.cluster_ips,
        FrontendKind::LoadBalancer => &service.load_balancer_vips,
        FrontendKind::ExternalIp => &service.external_ips,
        FrontendKind::NodePort => &[],
    };
    addresses.iter().copied().filter(move |address| Family::of(address) == family)
}

/// The endpoint sets of one Service port and family.
struct Sets {
    cluster: Option<EndpointSet>,
    local: Option<EndpointSet>,
    has_any: bool,
}

impl Sets {
    fn cluster(&self) -> Target {
        self.cluster.clone().map_or(Target::Reject, Target::Endpoints)
    }

    fn local(&self) -> Target {
        match &self.local {
            Some(set) => Target::Endpoints(set.clone()),
            None if self.has_any => Target::Drop,
            None => Target::Reject,
        }
    }
}

/// The routes of a node port, a load balancer's VIP or an external IP.
fn external(sets: &Sets, local: bool) -> Routes {
    let cluster = Route::new(sets.cluster(), Masquerade::Always);
    if !local {
        return Routes::same(&cluster);
    }
    // What this node's pods and the node itself send has not left the cluster: the policy is for
    // traffic from outside (the "short circuit").
    Routes {
        pod: Route::new(sets.cluster(), Masquerade::Hairpin),
        node: cluster,
        outside: Route::new(sets.local(), Masquerade::Hairpin),
    }
}

fn set(endpoints: &[&MergedEndpoint]) -> Option<EndpointSet> {
    // Weight 0 asks for no traffic, which is fulfilled while there is another endpoint.
    let all_zero = endpoints.iter().all(|endpoint| endpoint.weight == Some(0));
    let usable = endpoints
        .iter()
        .filter(|endpoint| all_zero || endpoint.weight != Some(0))
        .map(|endpoint| Endpoint {
            address: endpoint.address,
            weight: if all_zero { 1 } else { endpoint.weight.unwrap_or(1) },
            local: endpoint.local,
        })
        .collect();
    EndpointSet::new(usable)
}
