//! Services: defaults, what may be combined, what may change.

use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use super::columns::{AGE, Cell, NAME, joined, labels, text, wide};
use super::fields::Check::{Ip, Labels, Name, OneOf, Port, Range, Required, Unique};
use super::fields::Literal::{Bool, Number, Object, Text};
use super::life::Life;
use super::{Kind, Subresource, decode, fields, row};
use crate::allocate;
use crate::names;
use crate::object::{at, is_zero, list_at, object, str_at, unset};
use crate::status::FieldError;

pub(super) const SERVICE: Kind = Kind {
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    selectable: &["spec.clusterIP", "spec.type"],
    name_rule: names::dns1035_label,
    defaults: &[
        ("spec.type", Text("ClusterIP")),
        ("spec.sessionAffinity", Text("None")),
        ("spec.ports[].protocol", Text("TCP")),
    ],
    prepare,
    rules: &[
        ("spec.type", OneOf(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"])),
        ("spec.selector", Labels),
        ("spec.sessionAffinity", OneOf(&["ClientIP", "None"])),
        ("spec.sessionAffinityConfig.clientIP.timeoutSeconds", Range(1, 86_400)),
        ("spec.internalTrafficPolicy", OneOf(POLICIES)),
        ("spec.externalTrafficPolicy", OneOf(POLICIES)),
        ("spec.trafficDistribution", OneOf(&["PreferClose", "PreferSameNode", "PreferSameZone"])),
        ("spec.ipFamilyPolicy", OneOf(&["PreferDualStack", "RequireDualStack", "SingleStack"])),
        ("spec.ports", Unique("name")),
        ("spec.ports[].port", Required),
        ("spec.ports[].port", Port),
        ("spec.ports[].name", Name(names::dns_label)),
        ("spec.ports[].protocol", OneOf(&["SCTP", "TCP", "UDP"])),
        ("spec.ports[].nodePort", Range(0, 65535)),
        ("spec.loadBalancerIP", Ip),
        ("spec.healthCheckNodePort", Range(0, 65535)),
    ],
    validate,
    columns: &[
        NAME,
        text("Type", Cell::Path("spec.type")),
        text("Cluster-IP", Cell::Path("spec.clusterIP")),
        text("External-IP", Cell::Of(external)),
        text("Port(s)", Cell::Of(ports)),
        AGE,
        wide(text("Selector", Cell::Of(|service| json!(labels(at(service, "spec.selector")))))),
    ],
    life: Life {
        allocate: allocate::allocate,
        release: |txn, service| allocate::release(txn, Some(service), None),
        ..Life::PLAIN
    },
    ..row("", "Service", "services", decode::<core::Service>)
};

const POLICIES: &[&str] = &["Cluster", "Local"];

fn service_type(service: &Value) -> &str {
    str_at(service, "spec.type")
}

/// Whether the Service has node ports and is reached from outside.
pub(crate) fn is_external(service: &Value) -> bool {
    matches!(service_type(service), "NodePort" | "LoadBalancer")
}

pub(crate) fn is_headless(service: &Value) -> bool {
    str_at(service, "spec.clusterIP") == "None"
}

fn prepare(service: &mut Value, old: Option<&Value>) {
    if !service["spec"].is_object() {
        return;
    }
    if old.is_none() {
        service["status"] = json!({"loadBalancer": {}});
    }
    service["spec"]["ports"].as_array_mut().into_iter().flatten().for_each(drop_zero);
    let kind = service_type(service).to_owned();
    let external = is_external(service);
    if kind != "ExternalName" {
        default(service, "internalTrafficPolicy", Text("Cluster"));
    }
    if external || !list_at(service, "spec.externalIPs").is_empty() {
        default(service, "externalTrafficPolicy", Text("Cluster"));
    }
    if kind == "LoadBalancer" {
        default(service, "allocateLoadBalancerNodePorts", Bool(true));
    }
    if str_at(service, "spec.sessionAffinity") == "ClientIP" {
        default(service, "sessionAffinityConfig", Object);
        let spec = &mut service["spec"];
        fields::apply(
            &[("clientIP", Object), ("clientIP.timeoutSeconds", Number(10_800))],
            "sessionAffinityConfig",
            spec,
        );
    }
    for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
        if is_zero(&port["targetPort"]) {
            port["targetPort"] = port["port"].clone();
        }
    }
    if let Some(old) = old {
        keep_allocated(service, old);
        drop_left_over(service, old);
    }
}

/// A port with no node port is one that has none, not one with port 0.
fn drop_zero(port: &mut Value) {
    if port["nodePort"] == 0 || port["nodePort"].is_null() {
        object(port).remove("nodePort");
    }
}

fn default(service: &mut Value, field: &'static str, literal: fields::Literal) {
    fields::apply(&[(field, literal)], "spec", service);
}

/// A client that does not say what was allocated keeps it.
fn keep_allocated(service: &mut Value, old: &Value) {
    let had_address = service_type(old) != "ExternalName";
    if had_address && service_type(service) != "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if is_zero(&service["spec"][field]) && !is_zero(&old["spec"][field]) {
                service["spec"][field] = old["spec"][field].clone();
            }
        }
    }
    if is_external(service) && is_external(old) {
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            let same = list_at(old, "spec.ports").iter().find(|other| {
                other["port"] == port["port"] && other["protocol"] == port["protocol"]
            });
            if is_zero(&port["nodePort"])
                && let Some(same) = same
                && !is_zero(&same["nodePort"])
            {
                port["nodePort"] = same["nodePort"].clone();
            }
        }
    }
    let health = "healthCheckNodePort";
    if wants_health_check(service) && wants_health_check(old) && is_zero(&service["spec"][health]) {
        service["spec"][health] = old["spec"][health].clone();
    }
}

/// Whether a load balancer asks each node if it has endpoints of its own.
pub(crate) fn wants_health_check(service: &Value) -> bool {
    service_type(service) == "LoadBalancer"
        && str_at(service, "spec.externalTrafficPolicy") == "Local"
}

/// A changed type releases what only the old type had, unless the client changed it itself.
fn drop_left_over(service: &mut Value, old: &Value) {
    if is_external(old) && !is_external(service) {
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            let unchanged = list_at(old, "spec.ports").iter().any(|other| {
                other["port"] == port["port"] && other["nodePort"] == port["nodePort"]
            });
            if unchanged {
                object(port).remove("nodePort");
            }
        }
        if list_at(service, "spec.externalIPs").is_empty()
            && at(service, "spec.externalTrafficPolicy") == at(old, "spec.externalTrafficPolicy")
        {
            unset(service, "spec.externalTrafficPolicy");
        }
    }
    if wants_health_check(old)
        && !wants_health_check(service)
        && at(service, "spec.healthCheckNodePort") == at(old, "spec.healthCheckNodePort")
    {
        unset(service, "spec.healthCheckNodePort");
    }
    if service_type(old) == "LoadBalancer" && service_type(service) != "LoadBalancer" {
        unset(service, "spec.allocateLoadBalancerNodePorts");
        service["status"] = json!({"loadBalancer": {}});
    }
    if service_type(service) == "ExternalName" && service_type(old) != "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if service["spec"][field] == old["spec"][field] {
                object(&mut service["spec"]).remove(field);
            }
        }
        unset(service, "spec.internalTrafficPolicy");
    }
}

fn validate(service: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let spec = &service["spec"];
    check_ports(service, errors);
    check_addresses(service, old, errors);
    match service_type(service) {
        "ExternalName" => {
            let name = str_at(spec, "externalName");
            let why = names::dns_subdomain(name.trim_end_matches('.'));
            if name.is_empty() {
                errors.push(FieldError::required("spec.externalName", ""));
            } else if let Some(why) = why {
                errors.push(FieldError::invalid("spec.externalName", &spec["externalName"], why));
            }
            if !is_zero(&spec["clusterIP"]) {
                let why = "may not be set when `type` is 'ExternalName'";
                errors.push(FieldError::forbidden("spec.clusterIPs", why));
            }
        }
        "NodePort" | "LoadBalancer" if is_headless(service) => {
            let why = "may not be set to 'None' for LoadBalancer or NodePort services";
            errors.push(FieldError::invalid("spec.clusterIPs[0]", &spec["clusterIP"], why));
        }
        _ => {}
    }
    let external = is_external(service) || !list_at(spec, "externalIPs").is_empty();
    if !external && !is_zero(&spec["externalTrafficPolicy"]) {
        let why = "may only be set for externally-accessible services";
        let value = &spec["externalTrafficPolicy"];
        errors.push(FieldError::invalid("spec.externalTrafficPolicy", value, why));
    }
    if !is_zero(&spec["healthCheckNodePort"]) && !wants_health_check(service) {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is \
                   'Local'";
        let value = &spec["healthCheckNodePort"];
        errors.push(FieldError::invalid("spec.healthCheckNodePort", value, why));
    }
    if !is_zero(&spec["loadBalancerClass"]) && service_type(service) != "LoadBalancer" {
        let why = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden("spec.loadBalancerClass", why));
    }
}

fn check_ports(service: &Value, errors: &mut Vec<FieldError>) {
    let ports = list_at(service, "spec.ports");
    let may_be_empty = is_headless(service) || service_type(service) == "ExternalName";
    if ports.is_empty() && !may_be_empty {
        errors.push(FieldError::required("spec.ports", ""));
    }
    let mut seen = std::collections::BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{i}]");
        if ports.len() > 1 && str_at(port, "name").is_empty() {
            errors.push(FieldError::required(format!("{field}.name"), ""));
        }
        if !seen.insert((port["port"].as_i64(), str_at(port, "protocol"))) {
            errors.push(FieldError::duplicate(
                field.clone(),
                &json!({"port": port["port"], "protocol": port["protocol"]}),
            ));
        }
        check_target_port(&port["targetPort"], &field, errors);
        if !is_zero(&port["nodePort"]) && !is_external(service) {
            let why = format!("may not be used when `type` is '{}'", service_type(service));
            errors.push(FieldError::forbidden(format!("{field}.nodePort"), &why));
        }
    }
}

fn check_target_port(target: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let why = match target {
        Value::String(name) => names::port_name(name),
        Value::Number(n) => (!n.as_i64().is_some_and(|n| (1..=65535).contains(&n)))
            .then_some("must be between 1 and 65535, inclusive"),
        _ => None,
    };
    if let Some(why) = why {
        errors.push(FieldError::invalid(format!("{field}.targetPort"), target, why));
    }
}

fn check_addresses(service: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let spec = &service["spec"];
    for (i, ip) in list_at(spec, "clusterIPs").iter().enumerate() {
        let text = ip.as_str().unwrap_or_default();
        if text != "None" && text.parse::<std::net::IpAddr>().is_err() {
            let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(format!("spec.clusterIPs[{i}]"), ip, why));
        }
    }
    for (i, ip) in list_at(spec, "externalIPs").iter().enumerate() {
        let text = ip.as_str().unwrap_or_default();
        let why = match text.parse::<std::net::IpAddr>() {
            Ok(_) => super::endpoints::special_address(text),
            Err(_) => Some("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
        };
        if let Some(why) = why {
            errors.push(FieldError::invalid(format!("spec.externalIPs[{i}]"), ip, why));
        }
    }
    for (i, range) in list_at(spec, "loadBalancerSourceRanges").iter().enumerate() {
        let ok = range.as_str().is_some_and(|text| text.trim().parse::<ipnet::IpNet>().is_ok());
        if !ok {
            let field = format!("spec.loadBalancerSourceRanges[{i}]");
            let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.push(FieldError::invalid(field, range, why));
        }
    }
    // The primary cluster IP may not change, unless the Service had none.
    if let Some(old) = old
        && service_type(old) != "ExternalName"
        && service_type(service) != "ExternalName"
        && at(old, "spec.clusterIP") != &spec["clusterIP"]
    {
        let why = "may not change once set";
        errors.push(FieldError::invalid("spec.clusterIPs[0]", &spec["clusterIP"], why));
    }
}

fn external(service: &Value) -> Value {
    let ingress = list_at(service, "status.loadBalancer.ingress");
    let granted = ingress.iter().map(|one| match str_at(one, "ip") {
        "" => str_at(one, "hostname"),
        ip => ip,
    });
    let own = list_at(service, "spec.externalIPs").iter().filter_map(Value::as_str);
    match service_type(service) {
        "ExternalName" => json!(str_at(service, "spec.externalName")),
        "LoadBalancer" if ingress.is_empty() && own.clone().next().is_none() => json!("<pending>"),
        "LoadBalancer" => joined(granted.chain(own)),
        _ => joined(own),
    }
}

fn ports(service: &Value) -> Value {
    let ports: Vec<String> = list_at(service, "spec.ports")
        .iter()
        .map(|port| {
            let protocol = str_at(port, "protocol");
            match port["nodePort"].as_i64() {
                Some(node_port) if node_port > 0 => {
                    format!("{}:{node_port}/{protocol}", port["port"])
                }
                _ => format!("{}/{protocol}", port["port"]),
            }
        })
        .collect();
    joined(ports.iter().map(String::as_str))
}
