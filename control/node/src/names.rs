//! What a pod calls itself and others: its host name, `/etc/hosts` and `/etc/resolv.conf`. `[pure]`

use std::fmt::Write;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

/// Where names are asked for, unless the pod says otherwise.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClusterDns {
    pub(crate) servers: Vec<IpAddr>,
    pub(crate) domain: String,
}

/// A pod's host name: as it says, or its own name, 63 bytes at most.
pub(crate) fn hostname(pod: &Pod) -> String {
    let own = pod.metadata.name.as_deref().unwrap_or_default();
    let name = pod.spec.as_ref().and_then(|spec| spec.hostname.as_deref()).unwrap_or(own);
    let short: String = name.chars().take(63).collect();
    short.trim_end_matches(['-', '.']).to_owned()
}

/// The pod's name in its subdomain, if it has one.
fn fqdn(pod: &Pod, dns: &ClusterDns) -> Option<String> {
    let subdomain = pod.spec.as_ref()?.subdomain.as_deref().filter(|name| !name.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!("{}.{subdomain}.{namespace}.svc.{}", hostname(pod), dns.domain))
}

/// The text of a pod's `/etc/hosts`; `host` is the node's own, for pods on its network.
pub(crate) fn hosts(pod: &Pod, addresses: &[IpAddr], dns: &ClusterDns, host: &str) -> String {
    let spec = pod.spec.as_ref();
    let mut text = String::from("# Kubernetes-managed hosts file.\n");
    if spec.and_then(|spec| spec.host_network) == Some(true) {
        text.push_str(host);
    } else {
        text.push_str(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n",
        );
        let name = hostname(pod);
        for address in addresses {
            let line = match fqdn(pod, dns) {
                Some(fqdn) => format!("{address}\t{fqdn}\t{name}\n"),
                None => format!("{address}\t{name}\n"),
            };
            text.push_str(&line);
        }
    }
    let aliases = spec.and_then(|spec| spec.host_aliases.as_ref()).into_iter().flatten();
    let mut first = true;
    for alias in aliases {
        if std::mem::take(&mut first) {
            text.push_str("\n# Entries added by HostAliases.\n");
        }
        let names = alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t");
        // Writing to a string cannot fail.
        _ = writeln!(text, "{}\t{names}", alias.ip);
    }
    text
}

/// The text of a pod's `/etc/resolv.conf`; `host` is the node's own.
pub(crate) fn resolv_conf(pod: &Pod, dns: &ClusterDns, host: &str) -> String {
    let spec = pod.spec.clone().unwrap_or_default();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let on_host = spec.host_network == Some(true);
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !on_host,
        _ => false,
    } && !dns.servers.is_empty();
    let mut conf = if policy == "None" {
        Resolver::default()
    } else if cluster {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let domain = &dns.domain;
        let own = Resolver::read(host);
        let mut searches =
            vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
        searches.extend(own.searches);
        Resolver {
            servers: dns.servers.iter().map(ToString::to_string).collect(),
            searches,
            options: vec!["ndots:5".into()],
        }
    } else {
        Resolver::read(host)
    };
    if let Some(own) = spec.dns_config {
        conf.servers.extend(own.nameservers.into_iter().flatten());
        conf.searches.extend(own.searches.into_iter().flatten());
        for option in own.options.into_iter().flatten() {
            let name = option.name.unwrap_or_default();
            conf.options.retain(|one| one.split(':').next() != Some(name.as_str()));
            conf.options.push(match option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }
    conf.write()
}

#[derive(Default)]
struct Resolver {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    /// From `resolv.conf(5)`.
    fn read(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let rest = |words: std::str::SplitWhitespace<'_>| words.map(Into::into).collect();
            match words.next() {
                Some("nameserver") => conf.servers.extend(words.next().map(Into::into)),
                Some("search") => conf.searches = rest(words),
                Some("options") => conf.options = rest(words),
                _ => {}
            }
        }
        conf
    }

    fn write(self) -> String {
        let mut text = String::new();
        let mut seen = std::collections::BTreeSet::new();
        for server in self.servers.into_iter().filter(|one| seen.insert(one.clone())) {
            _ = writeln!(text, "nameserver {server}");
        }
        if !self.searches.is_empty() {
            _ = writeln!(text, "search {}", self.searches.join(" "));
        }
        if !self.options.is_empty() {
            _ = writeln!(text, "options {}", self.options.join(" "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: &str) -> Pod {
        let text = format!(
            "{{metadata: {{name: web-0, namespace: shop}}, spec: {{containers: [], {spec}}}}}"
        );
        serde_saphyr::from_str(&text).unwrap()
    }

    fn dns() -> ClusterDns {
        ClusterDns { servers: vec!["10.96.0.10".parse().unwrap()], domain: "cluster.local".into() }
    }

    const HOST: &str = "nameserver 192.0.2.1\nsearch example.com\noptions edns0\n";

    #[test]
    fn cluster_names_come_first_by_default() {
        let text = resolv_conf(&pod(""), &dns(), HOST);
        assert_eq!(
            text,
            "nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local \
             example.com\noptions ndots:5\n"
        );
        for policy in ["dnsPolicy: Default", "hostNetwork: true"] {
            assert_eq!(resolv_conf(&pod(policy), &dns(), HOST), HOST, "{policy}");
        }
        let with_host = "hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet";
        assert!(resolv_conf(&pod(with_host), &dns(), HOST).contains("10.96.0.10"));
        assert_eq!(resolv_conf(&pod(""), &ClusterDns::default(), HOST), HOST);
    }

    #[test]
    fn a_pod_s_own_settings_are_added_and_options_replaced() {
        let own = "dnsPolicy: None, dnsConfig: {nameservers: [1.2.3.4], searches: [a.b], \
                   options: [{name: ndots, value: '2'}, {name: edns0}]}";
        let text = "nameserver 1.2.3.4\nsearch a.b\noptions ndots:2 edns0\n";
        assert_eq!(resolv_conf(&pod(own), &dns(), HOST), text);
        let own = "dnsConfig: {options: [{name: ndots, value: '1'}]}";
        assert!(resolv_conf(&pod(own), &dns(), HOST).ends_with("options ndots:1\n"));
    }

    #[test]
    fn a_pod_knows_its_own_names() {
        let own = "hostname: a, subdomain: b, hostAliases: [{ip: 9.9.9.9, hostnames: [x, y]}]";
        let text = hosts(&pod(own), &["10.244.0.2".parse().unwrap()], &dns(), "");
        assert!(text.contains("10.244.0.2\ta.b.shop.svc.cluster.local\ta\n"), "{text}");
        assert!(text.ends_with("9.9.9.9\tx\ty\n"));
        assert_eq!(hostname(&pod("")), "web-0");
        let host = hosts(&pod("hostNetwork: true"), &[], &dns(), "127.0.0.1 here\n");
        assert!(host.contains("127.0.0.1 here"));
    }
}
