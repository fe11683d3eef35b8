//! The Service that is brought up: of our own, or from a folder of YAML.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context, ensure};
use loadtest::kind::Kind;
use model::name::NamespacedName;
use sandbox::manifest;
use serde_json::Value;

use super::Args;
use super::target::{Target, of_folder};

/// Our own Service's address, from the range that Kubernetes documents use.
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const OWN: (&str, &str) = ("default", "hello");
/// Servers behind a Service of a folder, at most.
const MOST_SERVERS: usize = 100;

/// What is brought up.
#[derive(Debug)]
pub(super) struct Given {
    /// The Service that load is sent to.
    pub(super) tested: Tested,
    /// It and all the other objects, save its slices.
    pub(super) others: String,
    /// Its endpoints: each gets a pod.
    pub(super) endpoints: Vec<Wanted>,
}

/// The Service that load is sent to.
#[derive(Debug, Clone)]
pub(super) struct Tested {
    pub(super) name: NamespacedName,
    pub(super) ip: IpAddr,
    pub(super) port: u16,
    /// The name and protocol of each of its ports.
    pub(super) ports: Vec<(String, String)>,
}

/// A pod that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) weight: u32,
}

impl Given {
    /// Our own Service, or the first of a folder.
    ///
    /// # Errors
    /// The folder cannot be read, or has no Service for such requests.
    pub(super) fn read(args: &Args, kind: Kind) -> anyhow::Result<Self> {
        match args.targets.first() {
            None => Ok(Self::own(args)),
            Some(dir) => Self::of_folder(Path::new(dir), args, kind),
        }
    }

    fn own(args: &Args) -> Self {
        let service = manifest::Service::new(OWN.0, OWN.1)
            .cluster_ip(CLUSTER_IP)
            .tcp("tcp", 80, 8080)
            .udp("udp", 80, 8080);
        let named = |name: &str| {
            args.weights.iter().find(|(it, _)| it == name).map_or(1, |(_, weight)| *weight)
        };
        let wanted = |n: u32| {
            let name = format!("web-{n}");
            Wanted { weight: named(&name), name }
        };
        Self {
            tested: Tested {
                name: NamespacedName::new(OWN.0, OWN.1),
                ip: CLUSTER_IP.into(),
                port: 80,
                ports: vec![("tcp".into(), "TCP".into()), ("udp".into(), "UDP".into())],
            },
            others: service.yaml(),
            endpoints: (1..=args.pods).map(wanted).collect(),
        }
    }

    fn of_folder(dir: &Path, args: &Args, kind: Kind) -> anyhow::Result<Self> {
        let (target, name, ports) = of_folder(dir, kind)?;
        let others = documents(dir)?
            .into_iter()
            .filter(|document| !is_replaced(&document.value, &name))
            .map(|document| format!("---\n{}\n", document.text))
            .collect();
        let mut endpoints = named(&target);
        if endpoints.is_empty() {
            let wanted = |n: u32| Wanted { name: format!("{}-{n}", name.name), weight: 1 };
            endpoints = (1..=args.pods).map(wanted).collect();
        }
        ensure!(
            endpoints.len() <= MOST_SERVERS,
            "{name} has {} endpoints; {MOST_SERVERS} servers are the most that are brought up",
            endpoints.len()
        );
        let tested = Tested { name, ip: target.address.ip(), port: target.address.port(), ports };
        Ok(Self { tested, others, endpoints })
    }
}

/// A server for each endpoint, of the same name.
fn named(target: &Target) -> Vec<Wanted> {
    let endpoints = target.endpoints.iter().zip(1..);
    endpoints
        .map(|(endpoint, n)| Wanted {
            name: endpoint.name.clone().unwrap_or_else(|| format!("endpoint-{n}")),
            weight: endpoint.weight,
        })
        .collect()
}

impl Tested {
    /// As the report calls it.
    pub(super) fn label(&self) -> String {
        format!("{}:{}", self.name, self.port)
    }

    /// One slice, of endpoints of one weight.
    pub(super) fn slice_yaml<'e>(
        &self,
        weight: u32,
        endpoints: impl Iterator<Item = &'e super::target::Endpoint>,
    ) -> String {
        let NamespacedName { namespace, name } = &self.name;
        let family = if self.ip.is_ipv4() { "IPv4" } else { "IPv6" };
        let annotation = match weight {
            1 => String::new(),
            n => format!("  annotations:\n    fairlead.dev/weight: \"{n}\"\n"),
        };
        let mut yaml = format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
             namespace: {namespace}\n  name: {name}-w{weight}\n  labels:\n    \
             kubernetes.io/service-name: {name}\n{annotation}addressType: {family}\nports:\n"
        );
        for (name, protocol) in &self.ports {
            // Writing to a String does not fail.
            _ = writeln!(yaml, "- {{name: \"{name}\", protocol: {protocol}, port: 8080}}");
        }
        yaml.push_str("endpoints:\n");
        let mut is_empty = true;
        for endpoint in endpoints {
            is_empty = false;
            let pod = endpoint.name.as_deref().unwrap_or_default();
            _ = writeln!(
                yaml,
                "- {{addresses: [\"{}\"], conditions: {{ready: true}}, \
                 targetRef: {{kind: Pod, namespace: {namespace}, name: {pod}}}}}",
                endpoint.address.ip()
            );
        }
        if is_empty { yaml.replace("endpoints:\n", "endpoints: []\n") } else { yaml }
    }
}

/// A document of a folder.
struct Document {
    text: String,
    value: Value,
}

/// Every document of every file.
fn documents(dir: &Path) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    let reading = || format!("reading {}", dir.display());
    for entry in fs::read_dir(dir).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let is_yaml =
            path.extension().is_some_and(|it| it == "yaml" || it == "yml" || it == "json");
        if !is_yaml {
            continue;
        }
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let mut part = String::new();
        for line in text.lines().chain(["---"]) {
            if line.trim_end() != "---" {
                part.push_str(line);
                part.push('\n');
                continue;
            }
            let text = std::mem::take(&mut part);
            if text.lines().all(|line| line.trim().is_empty() || line.starts_with('#')) {
                continue;
            }
            let value = serde_saphyr::from_str(&text)
                .with_context(|| format!("a document of {}", path.display()))?;
            documents.push(Document { text, value });
        }
    }
    Ok(documents)
}

/// The tested Service's slices are made anew, and so is the node.
fn is_replaced(object: &Value, name: &NamespacedName) -> bool {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let in_namespace = text("/metadata/namespace") == &*name.namespace;
    match text("/kind") {
        "Node" => true,
        "EndpointSlice" => {
            in_namespace && text("/metadata/labels/kubernetes.io~1service-name") == &*name.name
        }
        "Endpoints" => in_namespace && text("/metadata/name") == &*name.name,
        _ => false,
    }
}

/// A Service that nobody sends to, with endpoints that nobody serves.
pub(super) fn filler(number: u32, n_endpoints: u32) -> String {
    let ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 112, 0, 0).to_bits() + number);
    let mut yaml = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: filler}}\n\
         spec: {{clusterIP: {ip}, clusterIPs: [{ip}], \
         ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: s{number}-1, namespace: filler, \
         labels: {{kubernetes.io/service-name: s{number}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\n"
    );
    yaml.push_str(if n_endpoints == 0 { "endpoints: []\n" } else { "endpoints:\n" });
    let first = Ipv4Addr::new(10, 128, 0, 0).to_bits() + number * n_endpoints;
    for address in (first..first + n_endpoints).map(Ipv4Addr::from_bits) {
        // Writing to a String does not fail.
        _ = writeln!(yaml, "- {{addresses: [{address}], nodeName: elsewhere}}");
    }
    yaml
}
