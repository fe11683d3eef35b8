//! What this node's kernel holds of the Services: the proxy writes it, DNS reads it.
//!
//! ```text
//!  proxy: sync round ─▶ AppliedWriter ──newest set──▶ AppliedReader ─▶ dns: which names may be told
//! ```

use std::net::IpAddr;

use imbl::OrdSet;
use tokio::sync::watch;

use crate::name::Protocol;
use crate::service::Service;

/// An address and port of a Service, from which connections are led to its endpoints, or refused
/// where it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Routed {
    /// The address.
    pub address: IpAddr,
    /// The Service's port.
    pub port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
}

/// What is routed. Never changes; cloning copies a pointer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Every address and port.
    pub routed: OrdSet<Routed>,
}

impl Applied {
    /// Whether every cluster IP of a Service is routed at every port. Where the proxy has nothing
    /// to do (headless, an alias, another proxy's), nothing is missing.
    pub fn routes(&self, service: &Service) -> bool {
        !service.is_routed()
            || service.cluster_ips.iter().all(|&address| {
                service.ports.iter().all(|port| {
                    let (port, protocol) = (port.port, port.protocol);
                    self.routed.contains(&Routed { address, port, protocol })
                })
            })
    }
}

/// Makes the proxy's end, which holds nothing at first, and a reader's.
pub fn applied() -> (AppliedWriter, AppliedReader) {
    let (sender, receiver) = watch::channel(Applied::default());
    (AppliedWriter(sender), AppliedReader(receiver))
}

/// The proxy's end.
#[derive(Debug)]
pub struct AppliedWriter(watch::Sender<Applied>);

/// A reader's end.
#[derive(Clone, Debug)]
pub struct AppliedReader(watch::Receiver<Applied>);

impl AppliedWriter {
    /// Says what the kernel holds now.
    pub fn publish(&self, applied: Applied) {
        self.0.send_replace(applied);
    }
}

impl AppliedReader {
    /// What the kernel holds.
    pub fn now(&self) -> Applied {
        self.0.borrow().clone()
    }

    /// Waits until something was published since the last call. Forever, once the proxy
    /// has gone. Safe to cancel.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::NamespacedName;
    use crate::service::{ServicePort, ServiceType, TrafficPolicy};

    fn service(ports: &[u16]) -> Service {
        let port = |&port: &u16| ServicePort {
            name: port.to_string().into(),
            protocol: Protocol::Tcp,
            port,
            node_port: 0,
        };
        Service {
            name: NamespacedName::new("shop", "web"),
            created: 0,
            service_type: ServiceType::ClusterIp,
            cluster_ips: vec!["10.96.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            headless: false,
            ports: ports.iter().map(port).collect(),
            external_ips: Vec::new(),
            load_balancer_vips: Vec::new(),
            load_balancer_source_ranges: Vec::new(),
            external_traffic_policy: TrafficPolicy::Cluster,
            internal_traffic_policy: TrafficPolicy::Cluster,
            session_affinity: None,
            health_check_node_port: 0,
            foreign_proxy: false,
            capture: true,
            ends_connections: false,
        }
    }

    fn routed(address: &str, port: u16) -> Routed {
        Routed { address: address.parse().unwrap(), port, protocol: Protocol::Tcp }
    }

    #[test]
    fn a_service_is_routed_once_every_port_of_every_address_is() {
        let mut applied = Applied::default();
        for part in [routed("10.96.0.1", 80), routed("10.96.0.1", 443), routed("fd00::1", 80)] {
            applied.routed.insert(part);
            assert!(!applied.routes(&service(&[80, 443])));
        }
        assert!(applied.routes(&service(&[80])));
        applied.routed.insert(routed("fd00::1", 443));
        assert!(applied.routes(&service(&[80, 443])));
    }

    #[test]
    fn what_the_proxy_leaves_alone_is_waited_for_by_nobody() {
        let applied = Applied::default();
        assert!(!applied.routes(&service(&[80])));
        assert!(applied.routes(&Service { foreign_proxy: true, ..service(&[80]) }));
        assert!(applied.routes(&Service { cluster_ips: Vec::new(), ..service(&[80]) }));
    }

    #[tokio::test]
    async fn a_reader_wakes_when_something_is_published() {
        let (writer, mut reader) = applied();
        let now = Applied { routed: [routed("10.96.0.1", 80)].into_iter().collect() };
        writer.publish(now.clone());
        reader.changed().await;
        assert_eq!(reader.now(), now);
    }
}
