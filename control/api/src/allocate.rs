//! Addresses and ports for Services: chosen, honoured or refused as the Service is written.
//!
//! An address is taken when its `IPAddress` exists, and that is written in the Service's own
//! transaction; node ports and load balancer addresses are indexed from the Services. So nothing
//! can leak, and a restart knows exactly what the Services say.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::kinds::network::RANGE_IN_USE;
use crate::kinds::service::{is_external, is_headless, wants_health_check};
use crate::kinds::{self, KINDS, Kind};
use crate::object::{Key, Object, at, is_zero, list_at, object, set, str_at, unset};
use crate::status::{FieldError, Result, Status};
use crate::store::{Event, State, Txn};

/// From what Services get their ports and outside addresses.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// Cluster IPs, one or two families; the first is the default. Kept as the `ServiceCIDR`
    /// `kubernetes`.
    pub service_cidrs: Vec<IpNet>,
    /// Node ports.
    pub node_ports: RangeInclusive<u16>,
    /// Addresses for Services of type `LoadBalancer`; empty: another program gives them.
    pub load_balancer: Vec<IpNet>,
}

/// Which node ports and load balancer addresses the Services hold.
#[derive(Debug, Default)]
pub(crate) struct ServiceIndex {
    node_ports: HashMap<(u16, String), Key>,
    load_balancer: HashMap<IpAddr, Key>,
}

impl ServiceIndex {
    pub(crate) fn build(state: &State) -> Self {
        let mut index = Self::default();
        let kind = kinds::number("services");
        for ((namespace, name), object) in state.list(kind, None) {
            index.add(&Key::new(kind, namespace, name), object);
        }
        index
    }

    /// Takes up a committed change.
    pub(crate) fn replace(&mut self, event: &Event) {
        if KINDS.get(event.key.kind).is_none_or(|kind| kind.plural != "services") {
            return;
        }
        if let Some(previous) = &event.previous {
            let service = previous.value();
            for port in node_ports(&service) {
                self.node_ports.remove(&port);
            }
            for ip in granted(&service) {
                self.load_balancer.remove(&ip);
            }
        }
        if !event.deleted {
            self.add(&event.key, &event.object);
        }
    }

    fn add(&mut self, key: &Key, object: &Object) {
        let service = object.value();
        for port in node_ports(&service) {
            self.node_ports.insert(port, key.clone());
        }
        for ip in granted(&service) {
            self.load_balancer.insert(ip, key.clone());
        }
    }
}

/// Gives a Service what it asks for. Writes and releases `IPAddress` objects.
pub(crate) fn allocate(
    txn: &mut Txn<'_>,
    ranges: &Ranges,
    key: &Key,
    service: &mut Value,
    old: Option<&Value>,
) -> Result<()> {
    let mut errors = Vec::new();
    if str_at(service, "spec.type") != "ExternalName" {
        cluster_ips(txn, key, service, old, &mut errors)?;
    }
    if is_external(service) {
        service_ports(txn, ranges, key, service, &mut errors);
    }
    if !errors.is_empty() {
        return Err(Status::invalid(service_kind()?, &key.name, &errors));
    }
    load_balancer(txn, ranges, key, service);
    release(txn, old, Some(service));
    Ok(())
}

/// Takes back the addresses of a Service that is gone, or that it no longer has.
pub(crate) fn release(txn: &mut Txn<'_>, old: Option<&Value>, new: Option<&Value>) {
    let kept = new.map(addresses).unwrap_or_default();
    let gone: Vec<IpAddr> = old
        .map(addresses)
        .unwrap_or_default()
        .into_iter()
        .filter(|ip| !kept.contains(ip))
        .collect();
    for key in gone.iter().map(|ip| address_key(*ip)) {
        if let Some(object) = txn.get(&key) {
            txn.delete(key, object.value());
        }
    }
    if !gone.is_empty() {
        retire_ranges(txn);
    }
}

/// Lets go of the ranges that are being deleted, once no Service has an address of theirs.
pub(crate) fn retire_ranges(txn: &mut Txn<'_>) {
    for (key, object) in txn.list(kinds::number("servicecidrs"), None) {
        let mut cidr = object.value();
        let held = list_at(&cidr, "metadata.finalizers").iter().any(|one| one == RANGE_IN_USE);
        if !held || str_at(&cidr, "metadata.deletionTimestamp").is_empty() || in_use(txn, &cidr) {
            continue;
        }
        let mut finalizers = list_at(&cidr, "metadata.finalizers").to_vec();
        finalizers.retain(|one| one != RANGE_IN_USE);
        if finalizers.is_empty() {
            unset(&mut cidr, "metadata.finalizers");
            txn.delete(key, cidr);
        } else {
            set(&mut cidr, "metadata.finalizers", Value::Array(finalizers));
            txn.put(key, cidr);
        }
    }
}

/// Whether an address is of this range and of no other that stays.
fn in_use(txn: &Txn<'_>, cidr: &Value) -> bool {
    let (ours, others) = (ranges_of(cidr), service_cidrs(txn));
    txn.list(kinds::number("ipaddresses"), None).iter().any(|(key, _)| {
        let of = |ranges: &[IpNet]| {
            key.name.parse::<IpAddr>().is_ok_and(|ip| ranges.iter().any(|net| net.contains(&ip)))
        };
        of(&ours) && !of(&others)
    })
}

fn service_kind() -> Result<&'static Kind> {
    KINDS.get(kinds::number("services")).ok_or_else(Status::no_such_path)
}

fn address_key(ip: IpAddr) -> Key {
    Key::new(kinds::number("ipaddresses"), "", &ip.to_string())
}

/// The cluster IPs that a Service has.
fn addresses(service: &Value) -> Vec<IpAddr> {
    let all = list_at(service, "spec.clusterIPs").iter();
    all.filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

/// The outside addresses that a Service has.
fn granted(service: &Value) -> Vec<IpAddr> {
    let all = list_at(service, "status.loadBalancer.ingress").iter();
    all.filter_map(|one| str_at(one, "ip").parse().ok()).collect()
}

fn node_ports(service: &Value) -> Vec<(u16, String)> {
    let ports = list_at(service, "spec.ports").iter().filter_map(|port| {
        let number = u16::try_from(port["nodePort"].as_i64()?).ok().filter(|port| *port > 0)?;
        Some((number, str_at(port, "protocol").to_owned()))
    });
    let health = at(service, "spec.healthCheckNodePort").as_i64();
    let health = health.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    ports.chain(health.map(|port| (port, "TCP".to_owned()))).collect()
}

/// Sets families, policy and addresses, and takes the addresses.
fn cluster_ips(
    txn: &mut Txn<'_>,
    key: &Key,
    service: &mut Value,
    old: Option<&Value>,
    errors: &mut Vec<FieldError>,
) -> Result<()> {
    let cidrs = service_cidrs(txn);
    let families = families(service, &cidrs, errors);
    let spec = &mut service["spec"];
    spec["ipFamilies"] = json!(families);
    if is_zero(&spec["ipFamilyPolicy"]) {
        spec["ipFamilyPolicy"] = json!("SingleStack");
    }
    align(spec, errors);
    if !errors.is_empty() {
        return Ok(());
    }
    if is_headless(service) {
        return Ok(());
    }
    let held = old.map(addresses).unwrap_or_default();
    let mut chosen = Vec::new();
    for (i, family) in families.iter().enumerate() {
        let asked = list_at(service, "spec.clusterIPs").get(i).and_then(Value::as_str);
        let asked = asked.and_then(|ip| ip.parse::<IpAddr>().ok());
        let field = format!("spec.clusterIPs[{i}]");
        let ip = match asked {
            Some(ip) if held.contains(&ip) => Ok(ip),
            Some(ip) => honour(txn, &cidrs, ip, family),
            None => choose(txn, &cidrs, family, key),
        };
        match ip {
            Ok(ip) => chosen.push(ip),
            Err(why) => errors.push(FieldError {
                reason: "FieldValueInvalid",
                field,
                message: format!(
                    "Invalid value: {}: {why}",
                    json!(asked.map(|ip| vec![ip.to_string()]))
                ),
            }),
        }
    }
    if !errors.is_empty() {
        return Ok(());
    }
    for ip in chosen.iter().filter(|ip| !held.contains(ip)) {
        take(txn, key, *ip)?;
    }
    service["spec"]["clusterIP"] = json!(chosen.first().map(ToString::to_string));
    service["spec"]["clusterIPs"] =
        json!(chosen.iter().map(ToString::to_string).collect::<Vec<_>>());
    Ok(())
}

/// The first of `clusterIPs` and `clusterIP` say the same.
fn align(spec: &mut Value, errors: &mut Vec<FieldError>) {
    let first = list_at(spec, "clusterIPs").first().cloned().unwrap_or_default();
    let one = spec["clusterIP"].clone();
    match (is_zero(&one), is_zero(&first)) {
        (false, true) => spec["clusterIPs"] = json!([one]),
        (true, false) => spec["clusterIP"] = first,
        (false, false) if one != first => {
            let why = "first value must match `clusterIP`";
            errors.push(FieldError::invalid("spec.clusterIPs", &spec["clusterIPs"], why));
        }
        _ => {}
    }
}

/// Which families the Service has, by its policy and what it asks for.
fn families(service: &Value, cidrs: &[IpNet], errors: &mut Vec<FieldError>) -> Vec<String> {
    let spec = &service["spec"];
    let served = |family: &str| {
        is_headless(service) && is_zero(&spec["selector"])
            || cidrs.iter().any(|cidr| family_of(cidr.addr()) == family)
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut families: Vec<String> = list_at(spec, "ipFamilies").iter().map(text).collect();
    if families.is_empty() {
        let asked = list_at(spec, "clusterIPs").iter().chain(std::iter::once(&spec["clusterIP"]));
        for ip in asked.filter_map(|ip| ip.as_str()?.parse::<IpAddr>().ok()) {
            let family = family_of(ip).to_owned();
            if !families.contains(&family) {
                families.push(family);
            }
        }
    }
    if families.is_empty() {
        families.extend(cidrs.first().map(|cidr| family_of(cidr.addr()).to_owned()));
    }
    let policy = str_at(spec, "ipFamilyPolicy");
    let other = if families.first().is_some_and(|one| one == "IPv4") { "IPv6" } else { "IPv4" };
    match policy {
        "RequireDualStack" if families.len() < 2 => families.push(other.into()),
        "PreferDualStack" if families.len() < 2 && served(other) => families.push(other.into()),
        "SingleStack" | "" if families.len() > 1 && policy == "SingleStack" => {
            families.truncate(1);
        }
        _ => {}
    }
    for (i, family) in families.iter().enumerate() {
        if !served(family) {
            let why = "not configured on this cluster";
            errors.push(FieldError::invalid(format!("spec.ipFamilies[{i}]"), &json!(family), why));
        }
    }
    families
}

fn family_of(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The ranges of all `ServiceCIDR`s that are not being deleted.
fn service_cidrs(txn: &Txn<'_>) -> Vec<IpNet> {
    let mut objects = txn.list(kinds::number("servicecidrs"), None);
    // The server's own ranges come first: they say which family is the default.
    objects.sort_by_key(|(key, _)| (&*key.name != "kubernetes", Arc::clone(&key.name)));
    let live = objects.into_iter().map(|(_, object)| object.value());
    let live = live.filter(|cidr| str_at(cidr, "metadata.deletionTimestamp").is_empty());
    live.flat_map(|cidr| ranges_of(&cidr)).collect()
}

fn ranges_of(cidr: &Value) -> Vec<IpNet> {
    let ranges = list_at(cidr, "spec.cidrs").iter();
    ranges.filter_map(|range| range.as_str()?.parse().ok()).collect()
}

fn honour(txn: &Txn<'_>, cidrs: &[IpNet], ip: IpAddr, family: &str) -> Result<IpAddr, String> {
    if family_of(ip) != family {
        return Err(format!("expected an {family} value as indicated by `ipFamilies`"));
    }
    let cidr = cidrs.iter().find(|cidr| cidr.contains(&ip));
    let Some(cidr) = cidr.filter(|cidr| usable(cidr, ip)) else {
        return Err(
            "failed to allocate IP: the provided network does not match the current range".into()
        );
    };
    if txn.get(&address_key(ip)).is_some() {
        return Err(format!("failed to allocate IP {ip}: provided IP is already allocated"));
    }
    debug_assert!(cidr.contains(&ip));
    Ok(ip)
}

/// Neither the network's own address nor IPv4's broadcast address.
fn usable(cidr: &IpNet, ip: IpAddr) -> bool {
    ip != cidr.network() && (ip.is_ipv6() || ip != cidr.broadcast())
}

/// A free address: anywhere in the upper part of a range first, as upstream leaves the lower
/// part to those who ask for an address by name.
fn choose(txn: &Txn<'_>, cidrs: &[IpNet], family: &str, key: &Key) -> Result<IpAddr, String> {
    for cidr in cidrs.iter().filter(|cidr| family_of(cidr.addr()) == family) {
        let size = size(cidr);
        let reserved = (size / 16).clamp(16, 256).min(size.saturating_sub(1));
        let seed = seed(key);
        let upper = size - reserved;
        let offsets = (0..upper).map(|i| reserved + (seed + i) % upper).chain(1..reserved);
        let mut free = offsets
            .take(1 << 20)
            .map(|offset| nth(cidr, offset))
            .filter(|ip| usable(cidr, *ip) && txn.get(&address_key(*ip)).is_none());
        if let Some(ip) = free.next() {
            return Ok(ip);
        }
    }
    Err(format!("failed to allocate IP: range is full ({family})"))
}

/// Where in a range the search begins: spread by name, so that a name tends to keep its address.
fn seed(key: &Key) -> u128 {
    let bytes = key.namespace.bytes().chain(std::iter::once(b'/')).chain(key.name.bytes());
    // FNV-1a.
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    u128::from(hash)
}

fn size(cidr: &IpNet) -> u128 {
    let bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
    // Upstream limits IPv6 ranges to 2^64 as well; more could not be walked.
    1_u128 << bits.min(64)
}

fn nth(cidr: &IpNet, offset: u128) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(base) => {
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            Ipv4Addr::from(u32::from(base).wrapping_add(offset)).into()
        }
        IpAddr::V6(base) => Ipv6Addr::from(u128::from(base).wrapping_add(offset)).into(),
    }
}

fn take(txn: &mut Txn<'_>, key: &Key, ip: IpAddr) -> Result<()> {
    let family = family_of(ip);
    let mut address = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {"name": ip.to_string(), "labels": {
            "ipaddress.kubernetes.io/ip-family": family,
            "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
        }},
        "spec": {"parentRef": {
            "group": "", "resource": "services", "namespace": &*key.namespace, "name": &*key.name,
        }},
    });
    crate::server::identity::stamp(&mut address);
    txn.put(address_key(ip), address);
    Ok(())
}

fn service_ports(
    txn: &Txn<'_>,
    ranges: &Ranges,
    key: &Key,
    service: &mut Value,
    errors: &mut Vec<FieldError>,
) {
    let wants_ports = str_at(service, "spec.type") == "NodePort"
        || at(service, "spec.allocateLoadBalancerNodePorts") != false;
    let health = wants_health_check(service);
    let mut own: Vec<(u16, String)> = Vec::new();
    let taken = |port: u16, protocol: &str, own: &[(u16, String)]| {
        let holder = txn.services().node_ports.get(&(port, protocol.to_owned()));
        holder.is_some_and(|holder| holder != key)
            || own.iter().any(|(p, proto)| *p == port && proto == protocol)
    };
    let mut assign = |slot: &mut Value, protocol: &str, field: String| {
        let port = match slot.as_i64().filter(|port| *port != 0) {
            Some(asked) => match u16::try_from(asked) {
                Ok(port) if !ranges.node_ports.contains(&port) => {
                    let (low, high) = (ranges.node_ports.start(), ranges.node_ports.end());
                    let why = format!(
                        "provided port is not in the valid range. The range of valid ports is \
                         {low}-{high}"
                    );
                    errors.push(FieldError::invalid(field, slot, &why));
                    return;
                }
                Ok(port) if taken(port, protocol, &own) => {
                    errors.push(FieldError::invalid(
                        field,
                        slot,
                        "provided port is already allocated",
                    ));
                    return;
                }
                Ok(port) => port,
                // The rules refuse it.
                Err(_) => return,
            },
            None => {
                let span = u128::from(ranges.node_ports.end() - ranges.node_ports.start()) + 1;
                let start = seed(key);
                let candidates = (0..span).filter_map(|i| {
                    let offset = u16::try_from((start + i) % span).ok()?;
                    ranges.node_ports.start().checked_add(offset)
                });
                let free = candidates.into_iter().find(|port| {
                    ["TCP", "UDP", "SCTP"].into_iter().all(|any| !taken(*port, any, &own))
                        || own.iter().any(|(p, proto)| p == port && proto != protocol)
                            && !taken(*port, protocol, &own)
                });
                match free {
                    Some(port) => port,
                    None => {
                        let why = "failed to allocate a nodePort: range is full";
                        errors.push(FieldError::invalid(field, slot, why));
                        return;
                    }
                }
            }
        };
        own.push((port, protocol.to_owned()));
        *slot = json!(port);
    };
    for (i, port) in service["spec"]["ports"].as_array_mut().into_iter().flatten().enumerate() {
        let protocol = str_at(port, "protocol").to_owned();
        if wants_ports || !is_zero(&port["nodePort"]) {
            let field = format!("spec.ports[{i}].nodePort");
            assign(object(port).entry("nodePort").or_insert(Value::Null), &protocol, field);
        }
    }
    if health {
        let slot = object(&mut service["spec"]).entry("healthCheckNodePort").or_insert(Value::Null);
        assign(slot, "TCP", "spec.healthCheckNodePort".into());
    }
}

/// Grants a `LoadBalancer` Service an address of the pool, and takes it back otherwise.
fn load_balancer(txn: &Txn<'_>, ranges: &Ranges, key: &Key, service: &mut Value) {
    let ours = str_at(service, "spec.type") == "LoadBalancer"
        && is_zero(at(service, "spec.loadBalancerClass"));
    if !ours || ranges.load_balancer.is_empty() {
        return;
    }
    let in_pool = |ip: &IpAddr| ranges.load_balancer.iter().any(|net| net.contains(ip));
    let free =
        |ip: &IpAddr| txn.services().load_balancer.get(ip).is_none_or(|holder| holder == key);
    let asked: Option<IpAddr> = str_at(service, "spec.loadBalancerIP").parse().ok();
    let held = granted(service);
    let families = list_at(service, "spec.ipFamilies").to_vec();
    let ingress: Vec<Value> = families
        .iter()
        .filter_map(|family| {
            let of_family = |ip: &IpAddr| family == family_of(*ip);
            let wanted = asked.filter(of_family);
            let ip = match wanted {
                Some(ip) => Some(ip).filter(|ip| in_pool(ip) && free(ip)),
                None => {
                    held.iter().copied().find(|ip| of_family(ip) && in_pool(ip)).or_else(|| {
                        let pools =
                            ranges.load_balancer.iter().filter(|net| of_family(&net.addr()));
                        let mut all = pools.flat_map(|net| {
                            let n = size(net).min(1 << 16);
                            (0..n).map(|i| nth(net, i)).filter(move |ip| n <= 2 || usable(net, *ip))
                        });
                        all.find(free)
                    })
                }
            };
            ip.map(|ip| json!({"ip": ip.to_string(), "ipMode": "VIP"}))
        })
        .collect();
    unset(service, "status.loadBalancer.ingress");
    if !ingress.is_empty() {
        set(service, "status.loadBalancer.ingress", json!(ingress));
    }
}
