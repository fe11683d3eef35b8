//! Endpoints and endpoint slices.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::columns::{AGE, Cell, NAME, text};
use super::fields::Check::{Immutable, Ip, Name, OneOf, Port, Required};
use super::fields::Literal::Text;
use super::{Kind, decode, row};
use crate::names;
use crate::object::{list_at, str_at};
use crate::status::FieldError;

pub(super) const ENDPOINTS: Kind = Kind {
    short_names: &["ep"],
    defaults: &[("subsets[].ports[].protocol", Text("TCP"))],
    rules: &[
        ("subsets[].addresses[].ip", Required),
        ("subsets[].addresses[].ip", Ip),
        ("subsets[].notReadyAddresses[].ip", Ip),
        ("subsets[].ports[].port", Required),
        ("subsets[].ports[].port", Port),
        ("subsets[].ports[].protocol", OneOf(PROTOCOLS)),
        ("subsets[].ports[].name", Name(names::dns_label)),
    ],
    columns: &[NAME, text("Endpoints", Cell::Of(|endpoints| json!(subsets(endpoints)))), AGE],
    ..row("", "Endpoints", "endpoints", decode::<core::Endpoints>)
};

pub(super) const ENDPOINT_SLICE: Kind = Kind {
    indexed: Some("kubernetes.io/service-name"),
    defaults: &[("ports[].protocol", Text("TCP")), ("ports[].name", Text(""))],
    rules: &[
        ("addressType", Required),
        ("addressType", OneOf(&["FQDN", "IPv4", "IPv6"])),
        ("addressType", Immutable),
        ("endpoints[].addresses", Required),
        ("endpoints[].hostname", Name(names::dns_label)),
        ("ports[].port", Port),
        ("ports[].protocol", OneOf(PROTOCOLS)),
        ("ports[].name", Name(slice_port_name)),
    ],
    validate: |slice, _, errors| {
        check_endpoints(slice, errors);
        check_ports(slice, errors);
    },
    columns: &[
        NAME,
        text("AddressType", Cell::Path("addressType")),
        text("Ports", Cell::Of(|slice| few(ports(slice), "<unset>"))),
        text("Endpoints", Cell::Of(|slice| few(addresses(slice), "<unset>"))),
        AGE,
    ],
    generation: true,
    ..row("discovery.k8s.io", "EndpointSlice", "endpointslices", decode::<EndpointSlice>)
};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

fn slice_port_name(name: &str) -> Option<&'static str> {
    names::dns_label(name)
}

fn check_endpoints(slice: &Value, errors: &mut Vec<FieldError>) {
    let endpoints = list_at(slice, "endpoints");
    if endpoints.len() > 1000 {
        let message = format!("Too many: {}: must have at most 1000 items", endpoints.len());
        errors.push(FieldError { reason: "FieldValueTooMany", field: "endpoints".into(), message });
    }
    let family = str_at(slice, "addressType");
    for (i, endpoint) in endpoints.iter().enumerate() {
        let addresses = list_at(endpoint, "addresses");
        if addresses.len() > 100 {
            let field = format!("endpoints[{i}].addresses");
            let message = format!("Too many: {}: must have at most 100 items", addresses.len());
            errors.push(FieldError { reason: "FieldValueTooMany", field, message });
        }
        for (j, address) in addresses.iter().enumerate() {
            let text = address.as_str().unwrap_or_default();
            let why = match family {
                "IPv4" => (text.parse::<std::net::Ipv4Addr>().is_err())
                    .then_some("must be a valid IPv4 address"),
                "IPv6" => (text.parse::<std::net::Ipv6Addr>().is_err())
                    .then_some("must be a valid IPv6 address"),
                "FQDN" => names::dns_subdomain(text),
                _ => None,
            };
            let why = why.or_else(|| special_address(text));
            if let Some(why) = why {
                let field = format!("endpoints[{i}].addresses[{j}]");
                errors.push(FieldError::invalid(field, address, why));
            }
        }
    }
}

/// Why an address may not be an endpoint.
pub(super) fn special_address(text: &str) -> Option<&'static str> {
    let address: std::net::IpAddr = text.parse().ok()?;
    let link_local = match address {
        std::net::IpAddr::V4(v4) => v4.is_link_local(),
        std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_unspecified() {
        Some("may not be unspecified (0.0.0.0 or ::)")
    } else if address.is_loopback() {
        Some("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    } else if link_local {
        Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    } else {
        None
    }
}

fn check_ports(slice: &Value, errors: &mut Vec<FieldError>) {
    let ports = list_at(slice, "ports");
    if ports.len() > 100 {
        let message = format!("Too many: {}: must have at most 100 items", ports.len());
        errors.push(FieldError { reason: "FieldValueTooMany", field: "ports".into(), message });
    }
    for (i, port) in ports.iter().enumerate() {
        let earlier = ports.iter().take(i);
        if earlier.clone().any(|other| str_at(other, "name") == str_at(port, "name")) {
            errors.push(FieldError::duplicate("ports", &json!(str_at(port, "name"))));
        }
    }
}

fn subsets(endpoints: &Value) -> String {
    let mut all = Vec::new();
    for subset in list_at(endpoints, "subsets") {
        let addresses = list_at(subset, "addresses").iter().map(|address| str_at(address, "ip"));
        for ip in addresses {
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            let ports = list_at(subset, "ports");
            if ports.is_empty() {
                all.push(host.clone());
            }
            all.extend(ports.iter().map(|port| format!("{host}:{}", port["port"])));
        }
    }
    few(all, "<none>").as_str().unwrap_or_default().to_owned()
}

fn ports(slice: &Value) -> Vec<String> {
    list_at(slice, "ports").iter().map(|port| port["port"].to_string()).collect()
}

fn addresses(slice: &Value) -> Vec<String> {
    let endpoints = list_at(slice, "endpoints").iter();
    endpoints
        .flat_map(|endpoint| list_at(endpoint, "addresses"))
        .filter_map(Value::as_str)
        .map(Into::into)
        .collect()
}

/// The first three, and how many more.
fn few(all: Vec<String>, none: &str) -> Value {
    let n = all.len();
    if n == 0 {
        return json!(none);
    }
    let shown: Vec<String> = all.into_iter().take(3).collect();
    let shown = shown.join(",");
    json!(if n > 3 { format!("{shown} + {} more...", n - 3) } else { shown })
}
