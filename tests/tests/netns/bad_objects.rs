//! A thousand objects that mean nothing, beside some that do.

use std::{fs, os::unix::ffi::OsStrExt};

use sandbox::traffic::Protocol;
use tests::cluster::{Cluster, answered_by, eventually, names};

/// A bad Service; what is bad comes from `spec`.
fn service(n: usize, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: bad, name: bad-{n}, \
         creationTimestamp: \"2026-06-01T00:00:00Z\"}}\nspec: {spec}\n"
    )
}

/// A bad slice of the good Service; what is bad comes from `rest`.
fn slice(n: usize, rest: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{namespace: default, name: bad-{n}, \
         labels: {{kubernetes.io/service-name: web}}}}\n{rest}\n"
    )
}

/// Every way to be bad, by turns.
fn bad_object(n: usize) -> String {
    let port = n % 60_000 + 1;
    match n % 25 {
        0 => service(n, "{clusterIP: 10.96.0.300, ports: [{port: 80}]}"),
        1 => service(n, "{clusterIP: 10.96.1.1, ports: [{port: 0}]}"),
        2 => service(n, "{clusterIP: 10.96.1.2, ports: [{port: 65536}]}"),
        3 => service(n, "{clusterIP: 10.96.1.3, ports: [{port: -1}]}"),
        4 => service(n, "{clusterIP: 10.96.1.4, ports: [{port: 80, protocol: CARRIERPIGEON}]}"),
        5 => service(n, "{clusterIP: 10.96.1.5, ports: [{port: eighty}]}"),
        6 => service(n, "{clusterIP: 10.96.1.6, ports: 80}"),
        7 => service(n, "7"),
        // The good Service's own address.
        8 => service(
            n,
            &format!(
                "{{clusterIP: 10.96.0.10, ports: [{{port: {port}, name: a}}, {{port: 80, name: b}}]}}"
            ),
        ),
        9 => slice(
            n,
            "addressType: IPv4\nports: [{name: tcp, port: 8080}]\nendpoints: [{addresses: [\"fd00::1\"]}]",
        ),
        10 => slice(
            n,
            "addressType: IPv6\nports: [{name: tcp, port: 8080}]\nendpoints: [{addresses: [\"10.0.0.1\"]}]",
        ),
        11 => slice(n, "addressType: Carrier\nports: [{name: tcp, port: 8080}]\nendpoints: []"),
        12 => slice(
            n,
            "addressType: IPv4\nports: [{name: tcp, port: 0}]\nendpoints: [{addresses: [10.9.9.9]}]",
        ),
        13 => slice(
            n,
            "addressType: IPv4\nports: [{name: tcp, port: 99999}]\nendpoints: [{addresses: [10.9.9.9]}]",
        ),
        14 => slice(
            n,
            "addressType: IPv4\nports: [{name: tcp, port: 8080}]\nendpoints: [{addresses: [127.0.0.1]}]",
        ),
        15 => slice(
            n,
            "addressType: IPv4\nports: [{name: tcp, port: 8080}]\nendpoints: [{addresses: []}]",
        ),
        16 => slice(n, "addressType: IPv4\nports: [{name: tcp, port: 8080}]\nendpoints: nobody"),
        17 => "{ this: is: not: yaml".to_owned(),
        18 => "\u{0}\u{1}\u{2}".to_owned(),
        19 => "- a\n- list\n".to_owned(),
        20 => {
            format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {}}}\n", "x".repeat(10_000))
        }
        21 => "apiVersion: v1\nkind: Service\n".to_owned(),
        22 => "kind: [".repeat(500),
        23 => "a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c, *e]\n".to_owned(),
        _ => service(n, "{clusterIP: \"::ffff:10.96.0.10\", ports: [{port: 80}]}"),
    }
}

#[test]
fn a_thousand_bad_objects_do_not_stop_their_neighbours() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    for n in 0..1000 {
        cluster.folder().write(&format!("bad-{n:04}"), &bad_object(n)).unwrap();
    }
    let not_text = cluster.folder().path().join("bad-text.yaml");
    fs::write(&not_text, [0xff, 0xfe, b'a', b':']).unwrap();
    fs::create_dir(cluster.folder().path().join("bad-directory.yaml")).unwrap();
    let not_utf8 = std::ffi::OsStr::from_bytes(b"bad-\xff.yaml");
    fs::write(cluster.folder().path().join(not_utf8), "x: [").unwrap();
    node.start_proxy();
    for target in service.ways() {
        let tally = cluster.send(&client, Protocol::Tcp, target, 60);
        assert_eq!(tally.failed, 0, "{target}: {:?}", tally.failures);
        assert_eq!(answered_by(&tally), names(&webs), "{target}");
    }

    // And the good ones go on changing.
    let added = cluster.service("added", &webs[..1]);
    eventually("a Service that came later is routed", || {
        cluster.send(&client, Protocol::Tcp, added.v4(), 3).failed == 0
    });
    let log = node.log();
    assert!(!log.contains("panicked"), "{log}");
    for n in 0..1000 {
        // What contradicts another object is found when all are known, files forgotten.
        let (file, object) = (format!("bad-{n:04}.yaml: "), format!(" Service bad/bad-{n}: "));
        let names_it = |line: &&str| line.contains(&file) || line.contains(&object);
        let named = log.lines().filter(names_it).count();
        assert_eq!(named, 1, "{file}is named once, with the reason: {}", bad_object(n));
    }
}
