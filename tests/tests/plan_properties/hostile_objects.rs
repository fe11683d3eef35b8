//! Objects that nobody should have let in: nothing panics on them. The fuzz target under
//! `tests/fuzz` calls the same function.

use std::path::Path;

use model::parse::Names;
use proptest::collection::{hash_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};
use tests::hostile::{play, play_objects, play_value};
use tests::objects::Objects;

proptest! {
    #![proptest_config(crate::config_of_tests())]

    /// Objects of the right kind whose fields are anything.
    #[test]
    fn nothing_panics_on_objects_of_any_shape(values in vec(object(), 0..6)) {
        let mut objects = Objects::default();
        let mut names = Names::default();
        for value in values {
            play_value(&mut objects, value, &mut names);
        }
        play_objects(objects);
    }

    /// Any text.
    #[test]
    fn nothing_panics_on_any_text(text in "\\PC{0,200}") {
        play(text.as_bytes());
    }
}

/// The corpus of the fuzz target, as it is.
#[test]
fn nothing_panics_on_the_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/objects");
    let mut n_files = 0;
    for entry in std::fs::read_dir(&corpus).unwrap() {
        play(&std::fs::read(entry.unwrap().path()).unwrap());
        n_files += 1;
    }
    assert!(n_files > 0, "{} is empty", corpus.display());
}

const FIELDS: [&str; 40] = [
    "metadata",
    "name",
    "namespace",
    "labels",
    "annotations",
    "spec",
    "status",
    "type",
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "ports",
    "port",
    "nodePort",
    "protocol",
    "externalIPs",
    "loadBalancerSourceRanges",
    "sessionAffinity",
    "sessionAffinityConfig",
    "clientIP",
    "timeoutSeconds",
    "externalTrafficPolicy",
    "internalTrafficPolicy",
    "healthCheckNodePort",
    "loadBalancer",
    "ingress",
    "ip",
    "ipMode",
    "addressType",
    "endpoints",
    "addresses",
    "conditions",
    "ready",
    "serving",
    "terminating",
    "nodeName",
    "hints",
    "forZones",
    "podCIDRs",
    "address",
];

const TEXTS: [&str; 24] = [
    "",
    "web",
    "shop",
    "None",
    "10.96.0.10",
    "010.096.0.10",
    "fd00::1",
    "::ffff:10.0.0.1",
    "TCP",
    "UDP",
    "SCTP",
    "TPC",
    "Local",
    "Cluster",
    "ClientIP",
    "LoadBalancer",
    "ExternalName",
    "IPv4",
    "IPv6",
    "FQDN",
    "VIP",
    "node-a",
    "10.0.0.0/0",
    "255.255.255.255/33",
];

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-2..70_000_i64).prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        select(TEXTS.to_vec()).prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ]
}

fn anything() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(5, 64, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            hash_map(select(FIELDS.to_vec()), inner, 0..6).prop_map(|map| {
                Value::Object(map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
            }),
        ]
    })
}

/// A good object, some of whose fields are replaced by anything.
fn object() -> impl Strategy<Value = Value> {
    (select(good()), vec((any::<u32>(), anything()), 0..4)).prop_map(|(mut object, wounds)| {
        for (at, value) in wounds {
            wound(&mut object, at, value);
        }
        object
    })
}

/// Replaces one value below, which `at` picks.
fn wound(object: &mut Value, at: u32, value: Value) {
    let mut place = object;
    let mut at = usize::try_from(at).unwrap();
    loop {
        let n = match &*place {
            Value::Object(map) => map.len(),
            Value::Array(list) => list.len(),
            _ => 0,
        };
        let (idx, rest) = (at % (n + 1), at / (n + 1));
        at = rest;
        if idx == n {
            *place = value;
            return;
        }
        place = match place {
            Value::Object(map) => map.values_mut().nth(idx).unwrap(),
            Value::Array(list) => &mut list[idx],
            _ => return,
        };
    }
}

fn good() -> Vec<Value> {
    let labels: Map<String, Value> =
        [("kubernetes.io/service-name".to_owned(), json!("web"))].into_iter().collect();
    vec![
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "shop", "name": "web", "annotations": {"fairlead.dev/capture": "true"}},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00::10"],
                "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}],
                "externalIPs": ["192.0.2.1"], "loadBalancerSourceRanges": ["10.0.0.0/8"],
                "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
                "healthCheckNodePort": 32000, "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2", "ipMode": "VIP"}]}},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "shop", "name": "web-1", "labels": labels,
                "annotations": {"fairlead.dev/weight": "2"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.244.1.2"], "nodeName": "node-a",
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                    "hints": {"forZones": [{"name": "zone-a"}], "forNodes": [{"name": "node-a"}]}},
                {"addresses": ["10.244.2.2"], "conditions": {"ready": false}},
            ],
        }),
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": "zone-a"}},
            "spec": {"podCIDRs": ["10.244.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "172.18.0.1"}]},
        }),
    ]
}
