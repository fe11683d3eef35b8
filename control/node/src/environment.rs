//! A container's environment and command line: references replaced. `[pure]`

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, Pod, ResourceFieldSelector, Secret, Service,
};

use crate::quantity;

/// What references are looked up in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    pub(crate) config_maps: BTreeMap<String, ConfigMap>,
    pub(crate) secrets: BTreeMap<String, Secret>,
    /// Those of the pod's namespace, and the API's own.
    pub(crate) services: Vec<Service>,
    pub(crate) pod_ips: Vec<IpAddr>,
    pub(crate) host_ips: Vec<IpAddr>,
    /// What a limit is that is not set.
    pub(crate) node_cpu_milli: u64,
    pub(crate) node_memory: u64,
}

/// Why a container cannot be configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{kind} {name:?} not found")]
    Object { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key { kind: &'static str, namespace: String, name: String, key: String },
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    #[error("unsupported resource: {0}")]
    Resource(String),
}

/// The variables of a container, each with its references replaced.
pub(crate) fn variables(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut all = service_variables(pod, &sources.services);
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(source) = &from.config_map_ref {
            let optional = source.optional == Some(true);
            let found = sources.config_maps.get(&source.name);
            let data = found.and_then(|one| one.data.clone());
            require("configmap", &source.name, found.is_some() || optional)?;
            let data = data.into_iter().flatten();
            all.extend(data.map(|(key, value)| (format!("{prefix}{key}"), value)));
        }
        if let Some(source) = &from.secret_ref {
            let optional = source.optional == Some(true);
            let found = sources.secrets.get(&source.name);
            require("secret", &source.name, found.is_some() || optional)?;
            let data = found.and_then(|one| one.data.as_ref()).into_iter().flatten();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            all.extend(data.map(|(key, value)| (format!("{prefix}{key}"), text(&value.0))));
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(from)) => from_source(pod, container, from, sources)?,
            (Some(value), None) => Some(expand(value, &all)),
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            all.insert(variable.name.clone(), value);
        }
    }
    Ok(all)
}

fn require(kind: &'static str, name: &str, there: bool) -> Result<(), ConfigError> {
    if there { Ok(()) } else { Err(ConfigError::Object { kind, name: name.to_owned() }) }
}

fn from_source(
    pod: &Pod,
    container: &Container,
    from: &k8s_openapi::api::core::v1::EnvVarSource,
    sources: &Sources,
) -> Result<Option<String>, ConfigError> {
    let missing = |kind, name: &str, key: &str| ConfigError::Key {
        kind,
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: name.to_owned(),
        key: key.to_owned(),
    };
    if let Some(field) = &from.field_ref {
        return field_value(pod, &field.field_path, sources).map(Some);
    }
    if let Some(resource) = &from.resource_field_ref {
        return resource_value(pod, container, resource, sources).map(Some);
    }
    if let Some(key) = &from.config_map_key_ref {
        let found = sources.config_maps.get(&key.name);
        let optional = key.optional == Some(true);
        require("configmap", &key.name, found.is_some() || optional)?;
        let value = found.and_then(|one| one.data.as_ref()?.get(&key.key).cloned());
        return match value {
            None if !optional => Err(missing("ConfigMap", &key.name, &key.key)),
            value => Ok(value),
        };
    }
    if let Some(key) = &from.secret_key_ref {
        let found = sources.secrets.get(&key.name);
        let optional = key.optional == Some(true);
        require("secret", &key.name, found.is_some() || optional)?;
        let value = found.and_then(|one| one.data.as_ref()?.get(&key.key));
        return match value {
            None if !optional => Err(missing("Secret", &key.name, &key.key)),
            value => Ok(value.map(|value| String::from_utf8_lossy(&value.0).into_owned())),
        };
    }
    Ok(None)
}

/// A field of the pod's own, as the downward API names it.
pub(crate) fn field_value(pod: &Pod, path: &str, sources: &Sources) -> Result<String, ConfigError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let ip = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    let ips = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let lines = |map: &Option<BTreeMap<String, String>>| {
        let pairs = map.iter().flatten();
        pairs.map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n")
    };
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => lines(&meta.labels),
        "metadata.annotations" => lines(&meta.annotations),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default()
        }
        "status.podIP" => ip(&sources.pod_ips),
        "status.podIPs" => ips(&sources.pod_ips),
        "status.hostIP" => ip(&sources.host_ips),
        "status.hostIPs" => ips(&sources.host_ips),
        path => {
            let key = |map: &str| path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']");
            let of = |map: &Option<BTreeMap<String, String>>, key: &str| {
                map.as_ref().and_then(|map| map.get(key).cloned()).unwrap_or_default()
            };
            match (key("metadata.labels"), key("metadata.annotations")) {
                (Some(key), _) => of(&meta.labels, key),
                (_, Some(key)) => of(&meta.annotations, key),
                _ => return Err(ConfigError::Field(path.to_owned())),
            }
        }
    })
}

/// A limit or request of a container, in units of a divisor.
pub(crate) fn resource_value(
    pod: &Pod,
    container: &Container,
    selector: &ResourceFieldSelector,
    sources: &Sources,
) -> Result<String, ConfigError> {
    let unknown = || ConfigError::Resource(selector.resource.clone());
    let (list, resource) = selector.resource.split_once('.').ok_or_else(unknown)?;
    let named = selector.container_name.as_deref();
    let mut all = pod.spec.iter().flat_map(|spec| &spec.containers);
    let container = named.and_then(|name| all.find(|one| one.name == name)).unwrap_or(container);
    let resources = container.resources.clone().unwrap_or_default();
    let list = match list {
        "limits" => resources.limits,
        "requests" => resources.requests,
        _ => return Err(unknown()),
    };
    let set = quantity::find(list.as_ref(), resource).and_then(quantity::milli);
    let value = match (set, resource) {
        (Some(value), _) => value,
        (None, "cpu") => sources.node_cpu_milli,
        (None, "memory") => sources.node_memory.saturating_mul(1000),
        (None, "ephemeral-storage") => 0,
        _ => return Err(unknown()),
    };
    let divisor = selector.divisor.as_ref().and_then(quantity::milli).filter(|one| *one > 0);
    Ok(value.div_ceil(divisor.unwrap_or(1000)).to_string())
}

/// The variables by which pods found Services before there was DNS.
fn service_variables(pod: &Pod, services: &[Service]) -> BTreeMap<String, String> {
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let mut all = BTreeMap::new();
    for service in services {
        let meta = &service.metadata;
        let is_api = meta.name.as_deref() == Some("kubernetes")
            && meta.namespace.as_deref() == Some("default");
        let Some(spec) = service.spec.as_ref().filter(|_| links || is_api) else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !matches!(*ip, "" | "None")) else {
            continue;
        };
        let Some(port) = spec.ports.iter().flatten().next() else { continue };
        let name = meta.name.as_deref().unwrap_or_default().to_uppercase().replace('-', "_");
        all.insert(format!("{name}_SERVICE_HOST"), ip.to_owned());
        all.insert(format!("{name}_SERVICE_PORT"), port.port.to_string());
        for port in spec.ports.iter().flatten() {
            if let Some(label) = port.name.as_deref().filter(|label| !label.is_empty()) {
                let label = label.to_uppercase().replace('-', "_");
                all.insert(format!("{name}_SERVICE_PORT_{label}"), port.port.to_string());
            }
        }
    }
    all
}

/// Replaces `$(NAME)` by a variable's value, if it is known; `$$` stands for `$`.
pub(crate) fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) =
            after.strip_prefix('(').and_then(|inner| inner.split_once(')'))
        {
            match variables.get(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
