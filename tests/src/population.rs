//! Many Services, as a folder of YAML.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// The YAML of one Service of that number and its slice: endpoints that nobody serves, on another
/// node. The cluster IPs are those of 10.112.0.0/12, the endpoints those of 10.128.0.0/9.
pub fn service(number: u32, n_endpoints: u32) -> String {
    let cluster_ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 112, 0, 1).to_bits() + number);
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: bench}}\n\
         spec: {{clusterIP: {cluster_ip}, clusterIPs: [{cluster_ip}], \
         ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n---\n"
    );
    yaml.push_str(&slice(number, n_endpoints, 0));
    yaml
}

/// The YAML of its slice; `moved` changes the last endpoint's port, which is a change of one
/// endpoint.
pub fn slice(number: u32, n_endpoints: u32, moved: u16) -> String {
    let mut yaml = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: s{number}-1, namespace: bench, \
         labels: {{kubernetes.io/service-name: s{number}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n"
    );
    for idx in 0..n_endpoints {
        // The last endpoint moves to an address of its own range.
        let shift = if idx + 1 == n_endpoints { u32::from(moved) << 20 } else { 0 };
        let first = Ipv4Addr::new(10, 128, 0, 0).to_bits();
        let address = Ipv4Addr::from_bits(first + number * n_endpoints + idx + shift);
        // Writing to a String does not fail.
        _ = writeln!(
            yaml,
            "- {{addresses: [{address}], nodeName: elsewhere, conditions: {{ready: true}}}}"
        );
    }
    yaml.push_str("---\n");
    yaml
}
