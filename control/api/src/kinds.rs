//! The table of kinds: everything the server knows about each, so that one more is a few lines.
//!
//! A row names the kind and points at tables of defaults, rules and columns; what no table can
//! say is a function beside the row, and what happens to its objects besides being stored is its
//! [`Life`]. The server's own code names no kind, but for the few subresources that belong to one.

pub(crate) mod batch;
pub(crate) mod columns;
pub(crate) mod config;
pub(crate) mod endpoints;
pub(crate) mod fields;
pub(crate) mod life;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod pod;
pub(crate) mod rbac;
pub(crate) mod service;
pub(crate) mod workload;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::names;
use crate::status::FieldError;
use columns::Column;
use fields::{Default, Rule};
use life::Life;

/// What the server knows of one kind.
pub(crate) struct Kind {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) short_names: &'static [&'static str],
    pub(crate) categories: &'static [&'static str],
    pub(crate) namespaced: bool,
    pub(crate) subresources: &'static [Subresource],
    /// Fields that field selectors may name, besides the name and namespace.
    pub(crate) selectable: &'static [&'static str],
    /// A label by whose value lists are so common that there is an index of it.
    pub(crate) indexed: Option<&'static str>,
    /// Why a name is not one for this kind.
    pub(crate) name_rule: fn(&str) -> Option<&'static str>,
    /// Reads the object as its type and writes it back: checks types, drops unknown fields.
    pub(crate) decode: fn(Value) -> serde_json::Result<Value>,
    pub(crate) defaults: &'static [Default],
    /// Defaults that depend on other fields, or on the old object.
    pub(crate) prepare: fn(&mut Value, Option<&Value>),
    pub(crate) rules: &'static [Rule],
    /// Checks that no rule can say.
    pub(crate) validate: fn(&Value, Option<&Value>, &mut Vec<FieldError>),
    pub(crate) columns: &'static [Column],
    /// Whether `metadata.generation` counts changes of what is desired.
    pub(crate) generation: bool,
    pub(crate) life: Life,
}

/// What a path may name below an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subresource {
    Status,
    Scale,
    Binding,
    Eviction,
    Token,
    Finalize,
    EphemeralContainers,
}

/// Every kind. Its place in this table is its number, in this process only.
pub(crate) static KINDS: &[Kind] = &[
    config::NAMESPACE,
    node::NODE,
    pod::POD,
    service::SERVICE,
    endpoints::ENDPOINTS,
    config::CONFIG_MAP,
    config::SECRET,
    config::SERVICE_ACCOUNT,
    config::EVENT,
    workload::REPLICATION_CONTROLLER,
    workload::REPLICA_SET,
    workload::DEPLOYMENT,
    workload::STATEFUL_SET,
    workload::DAEMON_SET,
    workload::CONTROLLER_REVISION,
    batch::JOB,
    batch::CRON_JOB,
    endpoints::ENDPOINT_SLICE,
    node::LEASE,
    pod::PRIORITY_CLASS,
    network::SERVICE_CIDR,
    network::IP_ADDRESS,
    rbac::ROLE,
    rbac::CLUSTER_ROLE,
    rbac::ROLE_BINDING,
    rbac::CLUSTER_ROLE_BINDING,
];

/// The number of a kind that the code itself names.
pub(crate) fn number(plural: &str) -> usize {
    KINDS.iter().position(|kind| kind.plural == plural).unwrap_or(usize::MAX)
}

/// Finds the kind that a path names.
pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<usize> {
    KINDS
        .iter()
        .position(|kind| kind.group == group && kind.version == version && kind.plural == plural)
}

impl Kind {
    /// `plural.group`, as messages name it.
    pub(crate) fn qualified(&self) -> String {
        qualify(self.plural, self.group)
    }

    /// `Kind.group`, as messages about invalid objects name it.
    pub(crate) fn qualified_kind(&self) -> String {
        qualify(self.kind, self.group)
    }

    /// `group/plural`, as the store names it.
    pub(crate) fn resource(&self) -> String {
        format!("{}/{}", self.group, self.plural)
    }

    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.into()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    pub(crate) fn has(&self, subresource: Subresource) -> bool {
        self.subresources.contains(&subresource)
    }

    /// Fills in what the client left out.
    pub(crate) fn default(&self, value: &mut Value, old: Option<&Value>) {
        fields::apply(self.defaults, "", value);
        (self.prepare)(value, old);
        for part in ["spec", "status"] {
            if let Some(part) = value.get_mut(part) {
                fields::canonicalise_quantities(part);
            }
        }
    }

    /// Everything wrong with a new version.
    pub(crate) fn check(&self, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        fields::check(self.rules, "", value, old, &mut errors);
        (self.validate)(value, old, &mut errors);
        errors
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind)
    }
}

impl Subresource {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        const ALL: [Subresource; 7] = [
            Subresource::Status,
            Subresource::Scale,
            Subresource::Binding,
            Subresource::Eviction,
            Subresource::Token,
            Subresource::Finalize,
            Subresource::EphemeralContainers,
        ];
        ALL.into_iter().find(|one| one.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::Token => "token",
            Self::Finalize => "finalize",
            Self::EphemeralContainers => "ephemeralcontainers",
        }
    }
}

/// A kind with nothing special about it; rows begin from this.
const fn row(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    decode: fn(Value) -> serde_json::Result<Value>,
) -> Kind {
    Kind {
        group,
        version: "v1",
        kind,
        plural,
        short_names: &[],
        categories: &[],
        namespaced: true,
        subresources: &[],
        selectable: &[],
        indexed: None,
        name_rule: names::dns_subdomain,
        decode,
        defaults: &[],
        prepare: |_, _| {},
        rules: &[],
        validate: |_, _, _| {},
        columns: columns::NAME_AND_AGE,
        generation: false,
        life: Life::PLAIN,
    }
}

fn decode<T: DeserializeOwned + Serialize>(value: Value) -> serde_json::Result<Value> {
    serde_json::to_value(serde_json::from_value::<T>(value)?)
}

fn qualify(name: &str, group: &str) -> String {
    if group.is_empty() { name.into() } else { format!("{name}.{group}") }
}

#[cfg(test)]
mod tests;
