//! The Kubernetes objects of a sandbox as YAML, and the folder that a proxy reads them from.

use std::{
    fmt::Write as _,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use crate::{address::Addresses, node::Node, pod::Pod};

/// A Service.
#[derive(Debug, Clone)]
pub struct Service {
    namespace: String,
    name: String,
    cluster_ips: Vec<IpAddr>,
    ports: Vec<Port>,
    external_traffic_policy: &'static str,
}

#[derive(Debug, Clone)]
struct Port {
    name: String,
    protocol: &'static str,
    port: u16,
    target_port: u16,
    node_port: Option<u16>,
}

/// What stands behind a Service.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pod: String,
    node: String,
    addresses: Addresses,
    state: State,
}

/// As the conditions of an EndpointSlice have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Takes traffic.
    Ready,
    /// About to end; answers still.
    Terminating,
    /// Takes none.
    NotReady,
}

impl Service {
    /// A Service without addresses and ports, which is headless.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            cluster_ips: Vec::new(),
            ports: Vec::new(),
            external_traffic_policy: "Cluster",
        }
    }

    /// Adds a cluster IP; at most one of each family makes sense.
    #[must_use]
    pub fn cluster_ip(mut self, ip: impl Into<IpAddr>) -> Self {
        self.cluster_ips.push(ip.into());
        self
    }

    /// Adds a TCP port, served by `target_port` of the pods.
    #[must_use]
    pub fn tcp(self, name: &str, port: u16, target_port: u16) -> Self {
        self.port(name, "TCP", port, target_port)
    }

    /// Adds a UDP port, served by `target_port` of the pods.
    #[must_use]
    pub fn udp(self, name: &str, port: u16, target_port: u16) -> Self {
        self.port(name, "UDP", port, target_port)
    }

    fn port(mut self, name: &str, protocol: &'static str, port: u16, target_port: u16) -> Self {
        let node_port = None;
        self.ports.push(Port { name: name.to_owned(), protocol, port, target_port, node_port });
        self
    }

    /// Gives the port that was added last a node port.
    #[must_use]
    pub fn node_port(mut self, node_port: u16) -> Self {
        if let Some(port) = self.ports.last_mut() {
            port.node_port = Some(node_port);
        }
        self
    }

    /// Leads what comes from outside to pods of the node that it comes to, as it comes.
    #[must_use]
    pub fn external_traffic_local(mut self) -> Self {
        self.external_traffic_policy = "Local";
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The object.
    #[must_use]
    pub fn yaml(&self) -> String {
        let first = self.cluster_ips.first().map_or_else(|| "None".to_owned(), ToString::to_string);
        let all: Vec<_> = self.cluster_ips.iter().map(|ip| format!("\"{ip}\"")).collect();
        let families: Vec<_> = self.cluster_ips.iter().map(|ip| family(*ip)).collect();
        let policy = if all.len() > 1 { "RequireDualStack" } else { "SingleStack" };
        let is_outside_too = self.ports.iter().any(|port| port.node_port.is_some());
        let kind = if is_outside_too { "NodePort" } else { "ClusterIP" };
        let mut yaml = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  namespace: {}\n  name: {}\n  \
             creationTimestamp: \"2026-01-01T00:00:00Z\"\nspec:\n  type: {kind}\n  selector:\n    app: {}\n  clusterIP: \"{first}\"\n",
            self.namespace, self.name, self.name
        );
        if is_outside_too {
            let policy = self.external_traffic_policy;
            add(&mut yaml, format_args!("  externalTrafficPolicy: {policy}\n"));
        }
        if !all.is_empty() {
            let (all, families) = (all.join(", "), families.join(", "));
            add(&mut yaml, format_args!("  clusterIPs: [{all}]\n  ipFamilies: [{families}]\n"));
            add(&mut yaml, format_args!("  ipFamilyPolicy: {policy}\n"));
        }
        yaml += "  ports:\n";
        for Port { name, protocol, port, target_port, node_port } in &self.ports {
            add(
                &mut yaml,
                format_args!(
                    "  - name: {name}\n    protocol: {protocol}\n    port: {port}\n    \
                     targetPort: {target_port}\n"
                ),
            );
            if let Some(node_port) = node_port {
                add(&mut yaml, format_args!("    nodePort: {node_port}\n"));
            }
        }
        yaml
    }

    /// Its EndpointSlices, one for each family, in one text so that they change together.
    #[must_use]
    pub fn slices_yaml(&self, endpoints: &[Endpoint]) -> String {
        let of_family = |ip: &IpAddr| self.slice_yaml(family(*ip), endpoints);
        self.cluster_ips.iter().map(of_family).collect::<Vec<_>>().join("---\n")
    }

    fn slice_yaml(&self, family: &str, endpoints: &[Endpoint]) -> String {
        let Self { namespace, name, .. } = self;
        let suffix = family.to_lowercase();
        let mut yaml = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
             namespace: {namespace}\n  name: {name}-{suffix}\n  labels:\n    \
             kubernetes.io/service-name: {name}\naddressType: {family}\nports:\n"
        );
        for Port { name, protocol, target_port, .. } in &self.ports {
            add(
                &mut yaml,
                format_args!("- name: {name}\n  protocol: {protocol}\n  port: {target_port}\n"),
            );
        }
        yaml += if endpoints.is_empty() { "endpoints: []\n" } else { "endpoints:\n" };
        for endpoint in endpoints {
            yaml += &endpoint.yaml(family, namespace);
        }
        yaml
    }
}

impl Endpoint {
    /// A ready endpoint.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        Self {
            pod: pod.name().to_owned(),
            node: pod.node().name().to_owned(),
            addresses: pod.addresses(),
            state: State::Ready,
        }
    }

    /// The same in another state.
    #[must_use]
    pub fn in_state(mut self, state: State) -> Self {
        self.state = state;
        self
    }

    /// The pod behind it.
    #[must_use]
    pub fn pod(&self) -> &str {
        &self.pod
    }

    fn yaml(&self, family: &str, namespace: &str) -> String {
        let Addresses { v4, v6 } = self.addresses;
        let ip: IpAddr = if family == "IPv4" { v4.into() } else { v6.into() };
        let (pod, node) = (&self.pod, &self.node);
        let (ready, serving, terminating) = match self.state {
            State::Ready => (true, true, false),
            State::Terminating => (false, true, true),
            State::NotReady => (false, false, false),
        };
        format!(
            "- addresses: [\"{ip}\"]\n  nodeName: {node}\n  conditions: \
             {{ready: {ready}, serving: {serving}, terminating: {terminating}}}\n  targetRef: \
             {{kind: Pod, namespace: {namespace}, name: {pod}}}\n"
        )
    }
}

/// The Node object of a node.
#[must_use]
pub fn node_yaml(node: &Node) -> String {
    let Addresses { v4, v6 } = node.addresses();
    let [cidr_v4, cidr_v6] = node.pod_cidrs();
    let name = node.name();
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels:\n    \
         kubernetes.io/hostname: {name}\nspec:\n  podCIDR: \"{cidr_v4}\"\n  \
         podCIDRs: [\"{cidr_v4}\", \"{cidr_v6}\"]\nstatus:\n  addresses:\n  \
         - {{type: InternalIP, address: \"{v4}\"}}\n  - {{type: InternalIP, address: \"{v6}\"}}\n"
    )
}

/// A folder of objects.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes the folder, if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        Ok(Self { path: path.to_owned() })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `NAME.yaml`; a reader sees the old text or the new one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, yaml: &str) -> io::Result<()> {
        let new = self.path.join(format!(".{name}.new"));
        fs::write(&new, yaml)?;
        fs::rename(new, self.path.join(format!("{name}.yaml")))
    }

    /// Removes `NAME.yaml`.
    ///
    /// # Errors
    /// When it is not there or cannot be removed.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(format!("{name}.yaml")))
    }

    /// Writes a Service and its slices.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write_service(&self, service: &Service, endpoints: &[Endpoint]) -> io::Result<()> {
        self.write_endpoints(service, endpoints)?;
        self.write(&format!("{}-service", service.name), &service.yaml())
    }

    /// Writes the slices of a Service.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write_endpoints(&self, service: &Service, endpoints: &[Endpoint]) -> io::Result<()> {
        self.write(&format!("{}-endpoints", service.name), &service.slices_yaml(endpoints))
    }
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Formatting into a String does not fail.
fn add(yaml: &mut String, text: std::fmt::Arguments<'_>) {
    if yaml.write_fmt(text).is_err() {
        tracing::error!("formatting failed");
    }
}
