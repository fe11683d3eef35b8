//! Corefiles as clusters have them, and as they should not be.

use super::*;
use crate::config::PodMode;

const KUBEADM: &str = "\
.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
    }
    loop
    reload
    loadbalance
}
";

#[test]
fn the_corefile_of_kubeadm_is_taken_and_its_forward_is_a_problem() {
    let file = Corefile::parse(KUBEADM).unwrap();
    assert_eq!(file.options, Options { ttl: 30, ..Options::default() });
    assert_eq!(file.port, 53);
    assert_eq!(file.lameduck, Duration::from_secs(5));
    assert_eq!(file.health, Some("[::]:8080".parse().unwrap()));
    assert_eq!(file.ready, Some("[::]:8181".parse().unwrap()));
    assert_eq!(file.metrics, Some("[::]:9153".parse().unwrap()));
    let fields: Vec<&str> = file.problems.iter().map(|problem| &*problem.field).collect();
    assert_eq!(fields, ["line 13: forward", "line 20: reload"]);
}

#[test]
fn zones_come_from_the_server_block_when_the_plugin_has_none() {
    let file = Corefile::parse("k8s.example:1053, 10.96.0.0/12 {\n kubernetes\n}\n").unwrap();
    assert_eq!(file.port, 1053);
    assert_eq!(file.options.zones, [Zone::parse("k8s.example").unwrap()]);
    assert_eq!(file.options.reverse.len(), 16);
    assert_eq!(file.options.pods, PodMode::Disabled);
    assert!(file.options.fallthrough.is_empty());
}

#[test]
fn every_option_of_kubernetes_is_read() {
    let text = "cluster.local {\n kubernetes {\n  pods verified\n  namespaces a b\n  endpoint_pod_names\n  \
                noendpoints\n  ignore empty_service\n  fallthrough\n  kubeconfig /a b\n }\n}";
    let file = Corefile::parse(text).unwrap();
    assert_eq!(file.options.pods, PodMode::Verified);
    assert_eq!(file.options.namespaces.unwrap().len(), 2);
    assert!(file.options.endpoint_pod_names && file.options.ignore_empty_service);
    assert!(!file.options.endpoints);
    assert_eq!(file.options.fallthrough, [Zone::parse(".").unwrap()]);
    assert_eq!(file.problems.len(), 1);
}

#[test]
fn what_cannot_be_done_is_refused_with_line_and_remedy() {
    let refuse = |inner: &str| {
        let text = format!("cluster.local {{\n kubernetes {{\n{inner}\n}}\n}}");
        Corefile::parse(&text).unwrap_err().to_string()
    };
    assert_eq!(
        refuse("ttl 3601"),
        "Corefile, line 3: ttl \"3601\" is out of range; write 0 to 3600"
    );
    assert_eq!(
        refuse("labels a=b"),
        "Corefile, line 3: kubernetes labels is not served; remove it"
    );
    assert!(refuse("upstream").starts_with("Corefile, line 3: kubernetes has no option"));
    let error = Corefile::parse(". {\n rewrite name a b\n}").unwrap_err();
    assert_eq!(
        error.to_string(),
        "Corefile, line 2: the plugin \"rewrite\" is not served; remove it"
    );
    for text in [
        "",
        ". {\n",
        ". {\n}",
        ". }",
        "tls://. {\n kubernetes\n}",
        ".:x {\n kubernetes a\n}",
        ". {\n kubernetes {$ZONE}\n}",
        ". {\n kubernetes \"a\n}",
        ". {\n kubernetes a..b\n}",
        ". {\n kubernetes a\n kubernetes b\n}",
        ". {\n kubernetes a\n ready x\n}",
        ". {\n kubernetes 10.0.0.0/8\n}",
        ". {\n kubernetes a\n health {\n lameduck 5\n}\n}",
    ] {
        assert!(Corefile::parse(text).is_err(), "{text:?}");
    }
}
