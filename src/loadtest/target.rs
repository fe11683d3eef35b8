//! What is tested, found in a cluster or by its address.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use loadtest::kind::Kind;
use model::cluster::{ServiceState, Snapshot};
use model::name::{Family, NamespacedName, Protocol};
use model::service::{Service, ServicePort};
use model::watch::Watch;

use super::Args;

/// How long the cluster may take to tell what it has.
const LIST_WITHIN: Duration = Duration::from_secs(15);
/// Names like the one that was not found.
const SUGGESTED: usize = 5;

/// One target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// As the report calls it.
    pub(super) label: String,
    /// Where clients send to.
    pub(super) address: SocketAddr,
    /// What stands behind it, as far as is known.
    pub(super) endpoints: Vec<Endpoint>,
}

/// An endpoint of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Its pod, which is what it is expected to answer.
    pub(super) name: Option<String>,
    pub(super) address: SocketAddr,
    pub(super) weight: u32,
}

impl Target {
    /// Finds a Service by `NS/NAME[:PORT]`, or takes an address.
    ///
    /// # Errors
    /// There is none of that name, or it has no address to send to.
    pub(super) fn find(text: &str, args: &Args) -> anyhow::Result<Self> {
        if let Some((service, port)) = parse_service(text) {
            let snapshot = snapshot(args)?;
            return of_service(&snapshot, &service, port, args.kind.unwrap_or(Kind::Http));
        }
        let mut addresses = text.to_socket_addrs().with_context(|| {
            format!("{text} is neither a folder, nor NS/NAME[:PORT], nor HOST:PORT that resolves")
        })?;
        let address = addresses.next().with_context(|| format!("{text} has no address"))?;
        let endpoint = |address: &SocketAddr| Endpoint { name: None, address: *address, weight: 1 };
        let endpoints = args.direct.iter().map(endpoint).collect();
        Ok(Self { label: text.to_owned(), address, endpoints })
    }
}

/// From `ns/name` or `ns/name:port`.
fn parse_service(text: &str) -> Option<(NamespacedName, Option<&str>)> {
    let (namespace, rest) = text.split_once('/')?;
    if rest.contains('/') || namespace.is_empty() || rest.is_empty() {
        return None;
    }
    let (name, port) = match rest.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (rest, None),
    };
    Some((NamespacedName::new(namespace, name), port))
}

/// The first Service of a folder that such requests can be sent to: it, its name, and the name and
/// protocol of each of its ports.
///
/// # Errors
/// The folder cannot be read, or there is none.
pub(super) fn of_folder(dir: &Path, kind: Kind) -> anyhow::Result<Found> {
    let snapshot = listed(async || Ok(model::watch::files(dir, "")?))?;
    let protocol = protocol_of(kind);
    for (name, state) in &snapshot.services {
        let Some(service) = &state.service else { continue };
        let (Some(ip), Ok(port)) = (service.cluster_ips.first(), port_of(service, None, protocol))
        else {
            continue;
        };
        let address = SocketAddr::new(*ip, port.port);
        let label = format!("{name}:{}", port.port);
        let target = Target { label, address, endpoints: ready(state, port, *ip) };
        let ports = service.ports.iter().map(|it| (it.name.to_string(), it.protocol.to_string()));
        return Ok((target, name.clone(), ports.collect()));
    }
    bail!("{} has no Service with a cluster IP and a {protocol} port", dir.display())
}

/// A Service of a folder.
type Found = (Target, NamespacedName, Vec<(String, String)>);

fn protocol_of(kind: Kind) -> Protocol {
    if kind.is_datagram() { Protocol::Udp } else { Protocol::Tcp }
}

/// The cluster as it is now.
fn snapshot(args: &Args) -> anyhow::Result<Snapshot> {
    listed(async || args.source.watch("").await)
}

/// What a source lists first.
fn listed(watch: impl AsyncFnOnce() -> anyhow::Result<Watch>) -> anyhow::Result<Snapshot> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let Watch { mut feed, health, task, notices: _ } = watch().await?;
        let first = async {
            tokio::select! {
                update = feed.next() => update,
                () = task => None,
            }
        };
        match tokio::time::timeout(LIST_WITHIN, first).await {
            Ok(Some(update)) => Ok(update.snapshot),
            Ok(None) => bail!("the source of objects ended"),
            Err(_) => {
                let health = health.borrow().clone();
                let errors: Vec<_> =
                    health.errors.iter().map(|(part, error)| format!("{part}: {error}")).collect();
                bail!(
                    "{} has not told its Services within {} s ({})",
                    health.source,
                    LIST_WITHIN.as_secs(),
                    errors.join("; ")
                )
            }
        }
    })
}

/// The cluster IP of a Service's port, and its ready endpoints.
///
/// # Errors
/// There is no such Service or port, or no address.
pub(super) fn of_service(
    snapshot: &Snapshot,
    name: &NamespacedName,
    port: Option<&str>,
    kind: Kind,
) -> anyhow::Result<Target> {
    let state = snapshot.services.get(name);
    let found = state.and_then(|state| state.service.as_ref().map(|service| (state, service)));
    let Some((state, service)) = found else { bail!(unknown(snapshot, name)) };
    let port = port_of(service, port, protocol_of(kind))?;
    let ip = service.cluster_ips.first().copied();
    let ip = ip.with_context(|| format!("{name} is headless: it has no cluster IP to measure"))?;
    let endpoints = ready(state, port, ip);
    ensure!(!endpoints.is_empty(), "{name} has no ready endpoint for port {}", port.port);
    let label = format!("{name}:{}", port.port);
    Ok(Target { label, address: SocketAddr::new(ip, port.port), endpoints })
}

fn port_of<'s>(
    service: &'s Service,
    port: Option<&str>,
    protocol: Protocol,
) -> anyhow::Result<&'s ServicePort> {
    let mut of_protocol = service.ports.iter().filter(|it| it.protocol == protocol);
    let found = match port {
        None => of_protocol.next(),
        Some(text) => of_protocol.find(|it| *it.name == *text || it.port.to_string() == text),
    };
    found.with_context(|| {
        let all: Vec<_> =
            service.ports.iter().map(|it| format!("{}/{}", it.port, it.protocol)).collect();
        let wanted = port.map_or_else(String::new, |port| format!("{port}/"));
        format!(
            "{} has no port {wanted}{protocol}; it has {} (--kind says what is sent)",
            service.name,
            all.join(", ")
        )
    })
}

fn ready(state: &ServiceState, port: &ServicePort, ip: IpAddr) -> Vec<Endpoint> {
    let name: Arc<str> = Arc::clone(&port.name);
    let endpoints = state.endpoints.of(&name, port.protocol, Family::of(&ip));
    endpoints
        .filter(|endpoint| endpoint.conditions.ready)
        .map(|endpoint| Endpoint {
            name: endpoint.pod.as_deref().map(str::to_owned),
            address: endpoint.address,
            weight: endpoint.weight.unwrap_or(1).into(),
        })
        .collect()
}

fn unknown(snapshot: &Snapshot, name: &NamespacedName) -> String {
    let existing = || snapshot.services.iter().filter(|(_, state)| state.service.is_some());
    let named = existing().filter(|(it, _)| it.name == name.name);
    let beside = existing().filter(|(it, _)| it.namespace == name.namespace);
    let mut alike: Vec<String> = named.chain(beside).map(|(it, _)| it.to_string()).collect();
    alike.dedup();
    alike.truncate(SUGGESTED);
    match alike.is_empty() {
        true => format!("there is no Service {name}, nor any other in that namespace"),
        false => format!("there is no Service {name}; there is {}", alike.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, yaml: &str, kind: Kind) -> anyhow::Result<Target> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("objects.yaml"), yaml).unwrap();
        let args = clap_args(&["--objects", dir.path().to_str().unwrap()]);
        let (name, port) = parse_service(text).unwrap();
        of_service(&snapshot(&args).unwrap(), &name, port, kind)
    }

    fn clap_args(words: &[&str]) -> Args {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: Args,
        }
        let words = ["loadtest"].iter().chain(words);
        <Cli as clap::Parser>::parse_from(words).args
    }

    const YAML: &str = "
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: cart}
spec:
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7]
  ports:
  - {name: web, port: 80, targetPort: 8080}
  - {name: admin, port: 81, targetPort: 8081}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  namespace: shop
  name: cart-1
  labels: {kubernetes.io/service-name: cart}
  annotations: {fairlead.dev/weight: '3'}
addressType: IPv4
ports:
- {name: web, port: 8080}
endpoints:
- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: cart-a}}
- {addresses: [10.0.0.2], conditions: {ready: false}}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: peers}
spec: {clusterIP: None, clusterIPs: [None], ports: [{port: 80}]}
";

    #[test]
    fn a_service_is_its_cluster_ip_and_its_ready_endpoints() {
        for text in ["shop/cart", "shop/cart:80", "shop/cart:web"] {
            let target = found(text, YAML, Kind::Http).unwrap();
            assert_eq!(target.label, "shop/cart:80");
            assert_eq!(target.address, "10.96.0.7:80".parse().unwrap());
            let address = "10.0.0.1:8080".parse().unwrap();
            let name = Some("cart-a".to_owned());
            assert_eq!(target.endpoints, [Endpoint { name, address, weight: 3 }]);
        }
    }

    #[test]
    fn what_cannot_be_tested_is_refused_by_name() {
        let refused = |text: &str, kind| found(text, YAML, kind).unwrap_err().to_string();
        let answers = [
            refused("shop/kart", Kind::Http),
            refused("elsewhere/cart", Kind::Http),
            refused("elsewhere/kart", Kind::Http),
            refused("shop/cart:82", Kind::Http),
            refused("shop/cart", Kind::Dns),
            refused("shop/cart:81", Kind::Http),
            refused("shop/peers", Kind::Http),
        ];
        expect_test::expect![[r"
            there is no Service shop/kart; there is shop/cart, shop/peers
            there is no Service elsewhere/cart; there is shop/cart
            there is no Service elsewhere/kart, nor any other in that namespace
            shop/cart has no port 82/TCP; it has 80/TCP, 81/TCP (--kind says what is sent)
            shop/cart has no port UDP; it has 80/TCP, 81/TCP (--kind says what is sent)
            shop/cart has no ready endpoint for port 81
            shop/peers is headless: it has no cluster IP to measure"]]
        .assert_eq(&answers.join("\n"));
    }
}
