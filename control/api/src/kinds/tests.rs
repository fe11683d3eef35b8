//! The table of kinds agrees with itself, and its defaults and rules do what upstream's do.

use serde_json::json;

use super::*;
use crate::object::at;

fn kind(plural: &str) -> &'static Kind {
    &KINDS[number(plural)]
}

#[test]
fn every_kind_is_found_and_has_a_type_on_the_wire() {
    for (i, kind) in KINDS.iter().enumerate() {
        assert_eq!(find(kind.group, kind.version, kind.plural), Some(i), "{kind:?}");
        assert!(crate::wire::type_of(&kind.api_version(), kind.kind).is_some(), "{kind:?}");
        assert!(kind.columns.iter().any(|column| column.name == "Name"), "{kind:?}");
    }
}

#[test]
fn a_deployment_gets_upstreams_defaults() {
    let mut deployment = json!({"metadata": {"name": "a"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "x", "ports": [{"containerPort": 80}]}]},
        },
    }});
    kind("deployments").default(&mut deployment, None);
    for (path, expected) in [
        ("spec.replicas", json!(1)),
        ("spec.strategy.rollingUpdate.maxSurge", json!("25%")),
        ("spec.progressDeadlineSeconds", json!(600)),
        ("spec.template.spec.restartPolicy", json!("Always")),
    ] {
        assert_eq!(at(&deployment, path), &expected, "{path}");
    }
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["imagePullPolicy"], "Always");
    assert_eq!(container["ports"][0]["protocol"], "TCP");
    assert_eq!(kind("deployments").check(&deployment, None), []);
}

#[test]
fn what_is_wrong_is_named_with_its_field() {
    let cases = [
        ("services", json!({"spec": {"type": "ClusterIP"}}), "spec.ports"),
        ("services", json!({"spec": {"ports": [{"port": 0}]}}), "spec.ports[0].port"),
        ("services", json!({"spec": {"ports": [{"port": 70000}]}}), "spec.ports[0].port"),
        ("services", json!({"spec": {"ports": [{"port": 1}, {"port": 2}]}}), "spec.ports[0].name"),
        ("services", json!({"spec": {"type": "X", "ports": [{"port": 1}]}}), "spec.type"),
        (
            "services",
            json!({"spec": {"ports": [{"port": 1, "nodePort": 30000}]}}),
            "spec.ports[0].nodePort",
        ),
        ("services", json!({"spec": {"type": "ExternalName"}}), "spec.externalName"),
        (
            "services",
            json!({"spec": {"type": "NodePort", "clusterIP": "None", "ports": [{"port": 1}]}}),
            "spec.clusterIPs[0]",
        ),
        (
            "services",
            json!({"spec": {"externalIPs": ["127.0.0.1"], "ports": [{"port": 1}]}}),
            "spec.externalIPs[0]",
        ),
        ("pods", json!({"spec": {"containers": []}}), "spec.containers"),
        ("pods", json!({"spec": {"containers": [{"name": "a"}]}}), "spec.containers[0].image"),
        (
            "pods",
            json!({"spec": {"containers": [{"name": "a", "image": "b",
                "resources": {"requests": {"cpu": "x"}}}]}}),
            "spec.containers[0].resources.requests[cpu]",
        ),
        (
            "endpointslices",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["127.0.0.1"]}]}),
            "endpoints[0].addresses[0]",
        ),
        ("configmaps", json!({"data": {"a/b": "c"}}), "data[a/b]"),
        (
            "nodes",
            json!({"spec": {"taints": [{"key": "a", "effect": "No"}]}}),
            "spec.taints[0].effect",
        ),
        (
            "rolebindings",
            json!({"subjects": [{"kind": "ServiceAccount", "name": "a"}],
            "roleRef": {"kind": "Role", "name": "r"}}),
            "subjects[0].namespace",
        ),
    ];
    for (plural, mut value, field) in cases {
        kind(plural).default(&mut value, None);
        let errors = kind(plural).check(&value, None);
        assert!(errors.iter().any(|error| error.field == field), "{plural} {field}: {errors:?}");
    }
}

#[test]
fn what_may_not_change_is_refused() {
    let selector = |value: &str| {
        json!({"spec": {
            "selector": {"matchLabels": {"a": value}},
            "template": {
                "metadata": {"labels": {"a": value}},
                "spec": {"containers": [{"name": "c", "image": "x"}]},
            },
        }})
    };
    let (mut old, mut new) = (selector("b"), selector("c"));
    kind("deployments").default(&mut old, None);
    kind("deployments").default(&mut new, Some(&old));
    let errors = kind("deployments").check(&new, Some(&old));
    assert!(errors.iter().any(|error| error.field == "spec.selector"), "{errors:?}");
}

#[test]
fn a_service_keeps_what_was_allocated() {
    let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.5",
        "clusterIPs": ["10.0.0.5"], "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}]}});
    let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    kind("services").default(&mut new, Some(&old));
    assert_eq!(at(&new, "spec.clusterIP"), "10.0.0.5");
    assert_eq!(new["spec"]["ports"][0]["nodePort"], 30001);

    let mut plain = json!({"spec": {"type": "ClusterIP", "ports":
        [{"port": 80, "protocol": "TCP", "nodePort": 30001}]}});
    kind("services").default(&mut plain, Some(&old));
    assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
}
