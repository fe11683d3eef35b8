//! What a load balancer is told that asks at a Service's health check node port, as kube-proxy tells it.
//! `[pure]`

use model::name::NamespacedName;
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

/// Whether this node has endpoints of a Service, for one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    service: Named,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Named {
    namespace: String,
    name: String,
}

impl CheckReport {
    /// Of a Service that has so many ready endpoints here, by a proxy that keeps up or does not.
    pub fn new(service: &NamespacedName, local_endpoints: usize, is_healthy: bool) -> Self {
        let service =
            Named { namespace: service.namespace.to_string(), name: service.name.to_string() };
        Self { service, local_endpoints, service_proxy_healthy: is_healthy }
    }

    /// 200 where connections are served, else 503.
    pub const fn status(&self) -> u16 {
        if self.local_endpoints > 0 && self.service_proxy_healthy { 200 } else { 503 }
    }

    /// How many endpoints are ready here: load balancers weigh nodes by it.
    pub const fn weight(&self) -> usize {
        self.local_endpoints
    }

    /// As JSON, indented by tabs.
    pub fn json(&self) -> String {
        let mut text = Vec::new();
        let mut out = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"\t"));
        // Texts and numbers, and nothing that fails.
        match self.serialize(&mut out) {
            Ok(()) => String::from_utf8(text).unwrap_or_default(),
            Err(_) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_as_kube_proxy_tells_it() {
        let report = CheckReport::new(&NamespacedName::new("ns", "svc"), 2, true);
        assert_eq!(
            report.json(),
            "{\n\t\"service\": {\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"svc\"\n\t},\n\
             \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
        );
    }

    #[test]
    fn connections_are_asked_for_where_there_are_endpoints_and_a_proxy_that_keeps_up() {
        for (n, is_healthy, status) in [(2, true, 200), (0, true, 503), (2, false, 503)] {
            let report = CheckReport::new(&NamespacedName::new("ns", "svc"), n, is_healthy);
            assert_eq!((report.status(), report.weight()), (status, n));
        }
    }
}
