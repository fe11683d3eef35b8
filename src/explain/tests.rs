//! What a new user reads for the flows that they ask about first.

use clap::Parser;
use expect_test::{Expect, expect};

use super::{Args, explain};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

const OBJECTS: &str = r#"apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  externalTrafficPolicy: Local
  loadBalancerSourceRanges: [172.18.0.0/24]
  ports: [{name: http, port: 80, nodePort: 30080}]
status: {loadBalancer: {ingress: [{ip: 192.0.2.20}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: shop, name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.2], nodeName: node-a, targetRef: {kind: Pod, name: web-abc}}
- {addresses: [10.244.1.3], nodeName: node-a, conditions: {ready: false}}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: empty}
spec: {clusterIP: 10.96.0.20, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: misnamed}
spec: {clusterIP: 10.96.0.30, ports: [{name: web, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: shop, name: misnamed-1, labels: {kubernetes.io/service-name: misnamed}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.1.2], nodeName: node-a}]
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: left, annotations: {fairlead.dev/capture: "false"}}
spec: {clusterIP: 10.96.0.40, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: weighted}
spec: {clusterIP: 10.96.0.50, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  namespace: shop
  name: weighted-1
  labels: {kubernetes.io/service-name: weighted}
  annotations: {fairlead.dev/weight: "3"}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.2], nodeName: node-a}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: shop, name: weighted-2, labels: {kubernetes.io/service-name: weighted}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.3], nodeName: node-a}]
---
apiVersion: v1
kind: Node
metadata: {name: node-a}
status: {addresses: [{type: InternalIP, address: 172.18.0.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: node-b}
status: {addresses: [{type: InternalIP, address: 172.18.0.2}]}
"#;

fn check(packet: &str, more: &[&str], expected: &Expect) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("shop.yaml"), OBJECTS).unwrap();
    let objects = dir.path().to_str().unwrap();
    let mut line = vec!["explain", "--objects", objects, "--cluster-cidr", "10.244.0.0/16"];
    line.extend(["--service-cidrs", "10.96.0.0/16", "--proxy-mode", "ebpf"]);
    line.extend(["--bpffs", "/nonexistent/fairlead"]);
    line.extend(packet.split(' ').chain(more.iter().copied()));
    if !more.contains(&"--hostname-override") {
        line.extend(["--hostname-override", "node-a"]);
    }
    let mut out = Vec::new();
    let told = match explain(&Cli::try_parse_from(line).unwrap().args, &mut out) {
        Ok(()) => String::from_utf8(out).unwrap(),
        Err(error) => error.to_string(),
    };
    // What this build's dataplane cannot do yet is no part of what a Service means.
    let told: Vec<&str> = told.lines().filter(|line| !line.contains("beyond --proxy")).collect();
    expected.assert_eq(&told.join("\n"));
}

#[test]
fn a_healthy_flow() {
    check(
        "10.244.1.9 10.96.0.10:80/tcp",
        &[],
        &expect![[r#"
            10.244.1.9 → 10.96.0.10:80/tcp
            Service   shop/web:http (cluster-ip)
            outcome   to 10.244.1.2:8080, not masqueraded
            because   10.244.1.9 counts as a pod of this node, by --cluster-cidr
                      10.96.0.10:80/tcp is a cluster IP of Service shop/web, port "http" (TCP)
                      spec.internalTrafficPolicy is Cluster: every endpoint may serve
                      endpoint 10.244.1.2:8080 (pod web-abc) may serve: ready, on this node
                      endpoint 10.244.1.3:8080 left out: not ready, on this node
                      not masqueraded: the endpoint sees the client's address
            kernel    not compared: no dataplane is pinned under /nonexistent/fairlead; if a proxy runs here, name its --bpffs"#]],
    );
}

#[test]
fn a_service_without_endpoints() {
    check(
        "10.244.1.9 10.96.0.20:80/tcp",
        &[],
        &expect![[r#"
            10.244.1.9 → 10.96.0.20:80/tcp
            Service   shop/empty (cluster-ip)
            outcome   REJECT, with ICMP port unreachable
            because   10.244.1.9 counts as a pod of this node, by --cluster-cidr
                      10.96.0.20:80/tcp is a cluster IP of Service shop/empty, its unnamed port (TCP)
                      spec.internalTrafficPolicy is Cluster: every endpoint may serve
                      no EndpointSlice of Service shop/empty lists an endpoint: rejected; see that spec.selector matches pods and that they run
            kernel    not compared: no dataplane is pinned under /nonexistent/fairlead; if a proxy runs here, name its --bpffs"#]],
    );
}

#[test]
fn a_port_that_is_named_differently_in_the_slice() {
    check(
        "10.244.1.9 10.96.0.30:80/tcp",
        &[],
        &expect![[r#"
            10.244.1.9 → 10.96.0.30:80/tcp
            Service   shop/misnamed:web (cluster-ip)
            outcome   REJECT, with ICMP port unreachable
            because   10.244.1.9 counts as a pod of this node, by --cluster-cidr
                      10.96.0.30:80/tcp is a cluster IP of Service shop/misnamed, port "web" (TCP)
                      spec.internalTrafficPolicy is Cluster: every endpoint may serve
                      no EndpointSlice lists an endpoint of this family for port name "web"/TCP, only for "http"/TCP: rejected; see spec.ports[].name and targetPort
            kernel    not compared: no dataplane is pinned under /nonexistent/fairlead; if a proxy runs here, name its --bpffs"#]],
    );
}

#[test]
fn a_source_outside_of_the_ranges() {
    check(
        "203.0.113.9:4711 192.0.2.20:80/tcp",
        &[],
        &expect![[r#"
            203.0.113.9 → 192.0.2.20:80/tcp
            Service   shop/web:http (load-balancer)
            outcome   DROP, without an answer
            because   203.0.113.9 is neither a pod of this node, by --cluster-cidr, nor an address of it: it counts as outside
                      192.0.2.20:80/tcp is a load balancer's address of Service shop/web, port "http" (TCP)
                      203.0.113.9 is in none of the Service's spec.loadBalancerSourceRanges (172.18.0.0/24, 192.0.2.20/32): dropped; add its range there
            kernel    not compared: no dataplane is pinned under /nonexistent/fairlead; if a proxy runs here, name its --bpffs"#]],
    );
}

#[test]
fn a_local_policy_on_a_node_without_endpoints() {
    let node = ["--hostname-override", "node-b"];
    check(
        "172.18.0.9 172.18.0.2:30080/tcp",
        &node,
        &expect![[r#"
            172.18.0.9 → 172.18.0.2:30080/tcp
            Service   shop/web:http (node-port)
            outcome   DROP, without an answer
            because   172.18.0.9 is neither a pod of this node, by --cluster-cidr, nor an address of it: it counts as outside
                      *:30080/tcp is a node port of Service shop/web, port "http" (TCP)
                      spec.externalTrafficPolicy is Local: only endpoints on this node may serve
                      endpoint 10.244.1.2:8080 (pod web-abc) left out: ready, not on this node (nodeName)
                      endpoint 10.244.1.3:8080 left out: not ready, not on this node (nodeName)
                      spec.externalTrafficPolicy is Local, and no endpoint on this node may serve: dropped; set it to Cluster, or run an endpoint on this node
            kernel    not compared: no dataplane is pinned under /nonexistent/fairlead; if a proxy runs here, name its --bpffs"#]],
    );
}

#[test]
fn an_address_that_is_no_service() {
    check(
        "10.244.1.9 198.51.100.1:80/TCP",
        &[],
        &expect![[r#"
            10.244.1.9 → 198.51.100.1:80/tcp
            outcome   not ours
            because   10.244.1.9 counts as a pod of this node, by --cluster-cidr
                      no Service has 198.51.100.1 as clusterIP, load balancer or external IP
                      not ours: it goes where it would go without a proxy
            kernel    not compared: no dataplane is pinned under /nonexistent/fairlead; if a proxy runs here, name its --bpffs"#]],
    );
}

#[test]
fn a_port_that_the_service_has_not() {
    check(
        "10.244.1.9 10.96.0.10:443/tcp",
        &[],
        &expect![[r#"
            10.244.1.9 → 10.96.0.10:443/tcp
            outcome   REJECT, with ICMP port unreachable
            because   10.244.1.9 counts as a pod of this node, by --cluster-cidr
                      10.96.0.10 belongs to Service shop/web, whose ports are 80/TCP
                      no Service has port 443/TCP there: rejected; see spec.ports
            kernel    not compared: no dataplane is pinned under /nonexistent/fairlead; if a proxy runs here, name its --bpffs"#]],
    );
}

#[test]
fn an_address_that_nobody_has_yet() {
    check(
        "10.244.1.9 10.96.0.99:80/tcp",
        &[],
        &expect![[r#"
            10.244.1.9 → 10.96.0.99:80/tcp
            outcome   DROP, without an answer
            because   10.244.1.9 counts as a pod of this node, by --cluster-cidr
                      10.96.0.99 is in the Service CIDRs (10.96.0.0/16), but no Service has it: dropped
            kernel    not compared: no dataplane is pinned under /nonexistent/fairlead; if a proxy runs here, name its --bpffs"#]],
    );
}

#[test]
fn a_service_that_is_left_to_somebody_else() {
    check(
        "10.244.1.9 10.96.0.40:80/tcp",
        &[],
        &expect![[r#"
        10.244.1.9 → 10.96.0.40:80/tcp
        outcome   not ours
        because   10.244.1.9 counts as a pod of this node, by --cluster-cidr
                  10.96.0.40 belongs to Service shop/left, which its annotation fairlead.dev/capture leaves to somebody else
                  not ours: it goes where it would go without a proxy
        kernel    not compared: no dataplane is pinned under /nonexistent/fairlead; if a proxy runs here, name its --bpffs"#]],
    );
}

#[test]
fn endpoints_of_different_weight() {
    check(
        "10.244.1.9 10.96.0.50:80/tcp",
        &[],
        &expect![[r#"
        10.244.1.9 → 10.96.0.50:80/tcp
        Service   shop/weighted (cluster-ip)
        outcome   to 10.244.1.2:8080 or 10.244.1.3:8080, not masqueraded
        because   10.244.1.9 counts as a pod of this node, by --cluster-cidr
                  10.96.0.50:80/tcp is a cluster IP of Service shop/weighted, its unnamed port (TCP)
                  spec.internalTrafficPolicy is Cluster: every endpoint may serve
                  endpoint 10.244.1.2:8080 may serve: ready, on this node, weight 3 (annotation fairlead.dev/weight)
                  endpoint 10.244.1.3:8080 may serve: ready, on this node
                  not masqueraded: the endpoint sees the client's address
        kernel    not compared: no dataplane is pinned under /nonexistent/fairlead; if a proxy runs here, name its --bpffs"#]],
    );
}

#[test]
fn one_json_object_of_a_fixed_form() {
    check(
        "172.18.0.1 10.96.0.10:80/tcp",
        &["-o", "json"],
        &expect![[
            r#"{"verdict":"endpoints","endpoints":["10.244.1.2:8080"],"masquerade":true,"service":"shop/web:http","frontend":"cluster-ip","why":["172.18.0.1 is an address of this node","10.96.0.10:80/tcp is a cluster IP of Service shop/web, port \"http\" (TCP)","spec.internalTrafficPolicy is Cluster: every endpoint may serve","endpoint 10.244.1.2:8080 (pod web-abc) may serve: ready, on this node","endpoint 10.244.1.3:8080 left out: not ready, on this node","masqueraded: the source is no pod, so the reply would not come back here","kernel: not compared: no dataplane is pinned under /nonexistent/fairlead; if a proxy runs here, name its --bpffs"]}"#
        ]],
    );
}

#[test]
fn nothing_is_invented_where_nothing_decides() {
    check(
        "10.244.1.9 198.51.100.1:80/udp",
        &["-o", "json"],
        &expect![[
            r#"{"verdict":"not-ours","endpoints":[],"masquerade":false,"service":null,"frontend":null,"why":["10.244.1.9 counts as a pod of this node, by --cluster-cidr","no Service has 198.51.100.1 as clusterIP, load balancer or external IP","not ours: it goes where it would go without a proxy","kernel: not compared: no dataplane is pinned under /nonexistent/fairlead; if a proxy runs here, name its --bpffs"]}"#
        ]],
    );
}

#[test]
fn two_families_do_not_meet() {
    check(
        "fd00::9 10.96.0.10:80/tcp",
        &[],
        &expect!["fd00::9 and 10.96.0.10 are of different families; give both of one"],
    );
}

#[test]
fn a_destination_that_is_none_is_refused_with_its_form() {
    for (text, reason) in [
        ("10.96.0.10", "write it as 10.96.0.10:53/udp"),
        ("10.96.0.10/tcp", "write it as 10.96.0.10:53/udp"),
        ("10.96.0.10:http/tcp", "write it as 10.96.0.10:53/udp"),
        ("fd00::10:80/tcp", "write it as 10.96.0.10:53/udp or [fd00::10]:80/tcp"),
        ("10.96.0.10:80/icmp", "none of TCP, UDP, SCTP"),
    ] {
        let told = super::destination(text).unwrap_err().to_string();
        assert!(told.contains(reason), "{text}: {told}");
    }
    assert_eq!(
        super::destination("[::ffff:10.0.0.1]:80/tcp").unwrap().socket.to_string(),
        "10.0.0.1:80"
    );
    assert_eq!(super::destination("010.0.0.1:80/sctp").unwrap().socket.to_string(), "10.0.0.1:80");
}
