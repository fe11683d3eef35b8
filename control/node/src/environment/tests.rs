//! Environments, by examples.

use super::*;

fn pod(container: &str) -> (Pod, Container) {
    let text = format!(
        "{{metadata: {{name: p, namespace: n, uid: u, labels: {{a: b}}}}, \
         spec: {{nodeName: here, containers: [{{name: c, {container}}}]}}}}"
    );
    let pod: Pod = serde_saphyr::from_str(&text).unwrap();
    let container = pod.spec.clone().unwrap().containers.remove(0);
    (pod, container)
}

fn sources() -> Sources {
    let map: ConfigMap =
        serde_saphyr::from_str("{metadata: {name: m}, data: {k: from map}}").unwrap();
    let secret: Secret =
        serde_saphyr::from_str("{metadata: {name: s}, data: {k: aGlkZGVu}}").unwrap();
    let service = "{metadata: {name: my-db, namespace: n}, spec: {clusterIP: 10.96.0.7, \
                   ports: [{name: sql-x, port: 5432}]}}";
    Sources {
        config_maps: [("m".to_owned(), map)].into(),
        secrets: [("s".to_owned(), secret)].into(),
        services: vec![serde_saphyr::from_str(service).unwrap()],
        pod_ips: vec!["10.244.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        node_cpu_milli: 2000,
        ..Sources::default()
    }
}

fn value(container: &str, name: &str) -> Option<String> {
    let (pod, container) = pod(container);
    variables(&pod, &container, &sources()).unwrap().remove(name)
}

#[test]
fn references_are_replaced_by_earlier_variables() {
    let none = BTreeMap::new();
    for (text, expected) in
        [("$(X)", "$(X)"), ("$$(X)", "$(X)"), ("a$b", "a$b"), ("$(X", "$(X"), ("$", "$")]
    {
        assert_eq!(expand(text, &none), expected, "{text}");
    }
    let env =
        "env: [{name: A, value: one}, {name: B, value: '$(A) two $(C)'}, {name: C, value: x}]";
    assert_eq!(value(env, "B").unwrap(), "one two $(C)");
}

#[test]
fn a_pod_knows_itself() {
    for (path, expected) in [
        ("metadata.name", "p"),
        ("metadata.labels['a']", "b"),
        ("spec.nodeName", "here"),
        ("status.podIP", "10.244.0.5"),
        ("status.podIPs", "10.244.0.5,fd00::5"),
    ] {
        let env = format!("env: [{{name: X, valueFrom: {{fieldRef: {{fieldPath: \"{path}\"}}}}}}]");
        assert_eq!(value(&env, "X").unwrap(), expected, "{path}");
    }
    let env = "resources: {limits: {memory: 64Mi}}, env: [\
        {name: M, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}, \
        {name: C, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}]";
    assert_eq!(value(env, "M").unwrap(), "64");
    assert_eq!(value(env, "C").unwrap(), "2");
}

#[test]
fn maps_and_secrets_are_read_whole_and_by_key() {
    let env = "envFrom: [{prefix: P_, configMapRef: {name: m}}, {secretRef: {name: s}}]";
    assert_eq!(value(env, "P_k").unwrap(), "from map");
    assert_eq!(value(env, "k").unwrap(), "hidden");
    let key = "env: [{name: X, valueFrom: {secretKeyRef: {name: s, key: k}}}]";
    assert_eq!(value(key, "X").unwrap(), "hidden");
    let absent =
        "env: [{name: X, valueFrom: {configMapKeyRef: {name: m, key: z, optional: true}}}]";
    assert_eq!(value(absent, "X"), None);
}

#[test]
fn what_is_missing_is_named() {
    for (env, expected) in [
        (
            "env: [{name: X, valueFrom: {configMapKeyRef: {name: q, key: k}}}]",
            "configmap \"q\" not found",
        ),
        (
            "env: [{name: X, valueFrom: {configMapKeyRef: {name: m, key: z}}}]",
            "couldn't find key z in ConfigMap n/m",
        ),
        ("envFrom: [{secretRef: {name: q}}]", "secret \"q\" not found"),
        ("env: [{name: X, valueFrom: {fieldRef: {fieldPath: x.y}}}]", "unsupported fieldPath: x.y"),
    ] {
        let (pod, container) = pod(env);
        let error = variables(&pod, &container, &sources()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn services_of_the_namespace_are_variables_unless_not_wanted() {
    assert_eq!(value("", "MY_DB_SERVICE_HOST").unwrap(), "10.96.0.7");
    assert_eq!(value("", "MY_DB_SERVICE_PORT_SQL_X").unwrap(), "5432");
    let (mut pod, container) = pod("");
    pod.spec.as_mut().unwrap().enable_service_links = Some(false);
    assert!(variables(&pod, &container, &sources()).unwrap().is_empty());
}
