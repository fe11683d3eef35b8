//! Many Services with endpoints that nobody serves, on another node: as objects, and as a folder of
//! YAML. Their cluster IPs are those of 10.112.0.0/12, their endpoints those of 10.128.0.0/9.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use model::endpoint::{Conditions, Endpoint, EndpointPort, EndpointSlice};
use model::name::{Family, NamespacedName, Protocol};
use model::service::{Service, ServicePort, ServiceType, TrafficPolicy};

const NAMESPACE: &str = "bench";
const PORT_NAME: &str = "http";

/// The Service of that number.
pub fn service(number: u32) -> Service {
    Service {
        name: NamespacedName::new(NAMESPACE, format!("s{number}")),
        created: 0,
        service_type: ServiceType::ClusterIp,
        cluster_ips: vec![cluster_ip(number).into()],
        headless: false,
        ports: vec![ServicePort {
            name: PORT_NAME.into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 0,
        }],
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

/// Its slice. `moved` puts the last endpoint elsewhere, which is a change of one endpoint.
pub fn slice(number: u32, n_endpoints: u32, moved: u32) -> EndpointSlice {
    let elsewhere: Arc<str> = "elsewhere".into();
    EndpointSlice {
        name: NamespacedName::new(NAMESPACE, format!("s{number}-1")),
        service: NamespacedName::new(NAMESPACE, format!("s{number}")),
        family: Family::V4,
        ports: vec![EndpointPort { name: PORT_NAME.into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: addresses(number, n_endpoints, moved)
            .map(|address| Endpoint {
                address,
                conditions: Conditions::default(),
                node_name: Some(Arc::clone(&elsewhere)),
                zone: None,
                hints: None,
                hostname: None,
                pod: None,
            })
            .collect(),
        mirrored: false,
        weight: None,
        headless: false,
        last_change_trigger: None,
    }
}

/// The YAML of the Service of that number and its slice.
pub fn yaml(number: u32, n_endpoints: u32) -> String {
    let ip = cluster_ip(number);
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: {NAMESPACE}}}\n\
         spec: {{clusterIP: {ip}, clusterIPs: [{ip}], \
         ports: [{{name: {PORT_NAME}, port: 80, targetPort: 8080}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: s{number}-1, namespace: {NAMESPACE}, \
         labels: {{kubernetes.io/service-name: s{number}}}}}\n\
         addressType: IPv4\nports: [{{name: {PORT_NAME}, port: 8080}}]\nendpoints:\n"
    );
    for address in addresses(number, n_endpoints, 0) {
        // Writing to a String does not fail.
        _ = writeln!(
            yaml,
            "- {{addresses: [{address}], nodeName: elsewhere, conditions: {{ready: true}}}}"
        );
    }
    yaml.push_str("---\n");
    yaml
}

fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 112, 0, 1).to_bits() + number)
}

fn addresses(number: u32, n_endpoints: u32, moved: u32) -> impl Iterator<Item = IpAddr> {
    let first = Ipv4Addr::new(10, 128, 0, 0).to_bits() + number * n_endpoints;
    (0..n_endpoints).map(move |idx| {
        // 31 other ranges of a hundred thousand each; 0 is where it was at first.
        let elsewhere = if moved == 0 { 0 } else { 1 + moved % 31 };
        let shift = if idx + 1 == n_endpoints { elsewhere << 17 } else { 0 };
        IpAddr::from(Ipv4Addr::from_bits(first + idx + shift))
    })
}
