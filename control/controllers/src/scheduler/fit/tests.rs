//! Where pods go, as tables: nodes, a pod, the node it gets or why none suits.

use serde_json::{Value, json};

use super::*;

fn node(name: &str, extra: &Value) -> Value {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"zone": name, "kubernetes.io/hostname": name}},
        "spec": {}, "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "3"}},
    });
    for (key, value) in extra.as_object().unwrap() {
        node["spec"][key] = value.clone();
    }
    node
}

fn pod(spec: &Value) -> Value {
    json!({"metadata": {"name": "p", "namespace": "d", "labels": {"app": "x"}}, "spec": spec})
}

fn choose(nodes: &[Value], placed: Vec<Value>, pod: &Value) -> Result<String, String> {
    Placement::new(nodes.iter(), placed)
        .choose(pod)
        .map_err(|reasons| reasons.into_keys().collect::<Vec<_>>().join("; "))
}

fn on(node: &str, mut pod: Value) -> Value {
    pod["spec"]["nodeName"] = json!(node);
    pod
}

#[test]
fn a_pod_goes_where_it_is_allowed_and_fits() {
    let nodes = [node("a", &json!({})), node("b", &json!({}))];
    let cpu = |amount: &str| json!({"containers": [{"resources": {"requests": {"cpu": amount}}}]});
    let full = on("a", pod(&cpu("1500m")));
    assert_eq!(choose(&nodes, vec![full.clone()], &pod(&cpu("1"))), Ok("b".into()));
    assert_eq!(choose(&nodes, vec![full], &pod(&cpu("3"))), Err("Insufficient cpu".into()));
    assert_eq!(
        choose(&nodes, vec![], &pod(&json!({"nodeSelector": {"zone": "b"}}))),
        Ok("b".into())
    );
    let refused = choose(&nodes, vec![], &pod(&json!({"nodeSelector": {"zone": "c"}})));
    assert_eq!(refused, Err("node(s) didn't match Pod's node affinity/selector".into()));
}

#[test]
fn taints_keep_pods_away_unless_tolerated() {
    let taint = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
    let nodes = [node("a", &taint)];
    let refused = choose(&nodes, vec![], &pod(&json!({})));
    assert_eq!(refused, Err("node(s) had untolerated taint {k: v}".into()));
    for toleration in [
        json!({"key": "k", "operator": "Exists"}),
        json!({"key": "k", "value": "v", "effect": "NoSchedule"}),
        json!({"operator": "Exists"}),
    ] {
        let pod = pod(&json!({"tolerations": [toleration]}));
        assert_eq!(choose(&nodes, vec![], &pod), Ok("a".into()));
    }
    let cordoned = [node("a", &json!({"unschedulable": true}))];
    let refused = choose(&cordoned, vec![], &pod(&json!({})));
    assert_eq!(refused, Err("node(s) were unschedulable".into()));
}

#[test]
fn pods_keep_apart_or_together_as_they_ask() {
    let nodes = [node("a", &json!({})), node("b", &json!({}))];
    let term = json!([{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "x"}}}]);
    let affinity = |form: &str| {
        pod(&json!({"affinity": {form: {"requiredDuringSchedulingIgnoredDuringExecution": term}}}))
    };
    let plain = pod(&json!({}));
    let apart = affinity("podAntiAffinity");
    assert_eq!(choose(&nodes, vec![on("a", plain.clone())], &apart), Ok("b".into()));
    let both = vec![on("a", plain.clone()), on("b", plain.clone())];
    let refused = choose(&nodes, both, &apart);
    assert_eq!(refused, Err("node(s) didn't match pod anti-affinity rules".into()));
    // What keeps away others is also kept away from.
    assert_eq!(choose(&nodes, vec![on("a", apart)], &plain), Ok("b".into()));
    let together = affinity("podAffinity");
    assert_eq!(choose(&nodes, vec![on("b", plain)], &together), Ok("b".into()));
    assert!(choose(&nodes, vec![], &together).is_ok_and(|node| !node.is_empty()));
}

#[test]
fn a_spread_is_kept() {
    let nodes = [node("a", &json!({})), node("b", &json!({}))];
    let spread = pod(&json!({"topologySpreadConstraints": [{
        "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "x"}},
    }]}));
    let placed = vec![on("a", pod(&json!({})))];
    assert_eq!(choose(&nodes, placed, &spread), Ok("b".into()));
}

#[test]
fn too_many_pods_and_taken_ports_are_told() {
    let nodes = [node("a", &json!({}))];
    let plain = pod(&json!({}));
    let three = vec![on("a", plain.clone()), on("a", plain.clone()), on("a", plain.clone())];
    assert_eq!(choose(&nodes, three, &plain), Err("Too many pods".into()));
    let port = pod(&json!({"containers": [{"ports": [{"hostPort": 80, "protocol": "TCP"}]}]}));
    let refused = choose(&nodes, vec![on("a", port.clone())], &port);
    assert_eq!(refused, Err("node(s) didn't have free ports for the requested pod ports".into()));
}

#[test]
fn ports_of_two_addresses_do_not_meet() {
    let nodes = [node("a", &json!({}))];
    let at = |address: &str, protocol: &str| {
        let port = json!({"hostPort": 80, "hostIP": address, "protocol": protocol});
        pod(&json!({"containers": [{"ports": [port]}]}))
    };
    let suits = |used: Value, wanted: Value| choose(&nodes, vec![on("a", used)], &wanted).is_ok();
    assert!(suits(at("192.0.2.1", "TCP"), at("192.0.2.2", "TCP")));
    assert!(suits(at("", "TCP"), at("", "UDP")));
    assert!(!suits(at("192.0.2.1", "TCP"), at("192.0.2.1", "TCP")));
    assert!(!suits(at("192.0.2.1", "TCP"), at("", "TCP")));
    assert!(!suits(at("0.0.0.0", "TCP"), at("192.0.2.1", "TCP")));
}

#[test]
fn quantities_are_compared_by_what_they_are() {
    for (small, large) in
        [("100m", "1"), ("1", "1.5"), ("1k", "1Ki"), ("999Mi", "1Gi"), ("1M", "1Mi")]
    {
        assert!(amount(&json!(small)) < amount(&json!(large)), "{small} {large}");
    }
}
