//! Which node a pod fits on: pure, from what is known of nodes and of the pods on them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::json::{at, int_at, list_at, name, namespace, selects, str_at};

/// Nodes, and what is on them.
#[derive(Debug)]
pub(super) struct Placement<'a> {
    nodes: BTreeMap<String, Place<'a>>,
}

#[derive(Debug)]
struct Place<'a> {
    node: &'a Value,
    pods: Vec<Value>,
    used: Resources,
}

/// Amounts by resource, in thousandths.
type Resources = BTreeMap<String, i128>;

/// Why nodes do not suit, and how many for each reason.
type Reasons = BTreeMap<String, usize>;

impl<'a> Placement<'a> {
    pub(super) fn new(nodes: impl Iterator<Item = &'a Value>, placed: Vec<Value>) -> Self {
        let place = |node| Place { node, pods: Vec::new(), used: Resources::new() };
        let nodes = nodes.map(|node| (name(node).to_owned(), place(node))).collect();
        let mut placement = Self { nodes };
        for pod in placed {
            let node = str_at(&pod, "spec.nodeName").to_owned();
            placement.put(pod, &node);
        }
        placement
    }

    pub(super) fn put(&mut self, pod: Value, node: &str) {
        if let Some(place) = self.nodes.get_mut(node) {
            for (resource, amount) in requests(&pod) {
                *place.used.entry(resource).or_default() += amount;
            }
            place.pods.push(pod);
        }
    }

    /// The node that suits a pod best: where its like are fewest, then where least is used.
    pub(super) fn choose(&self, pod: &Value) -> Result<String, Reasons> {
        let mut reasons = Reasons::new();
        let mut best: Option<((usize, usize), &str)> = None;
        for (node, place) in &self.nodes {
            if let Some(reason) = self.refusal(pod, place) {
                *reasons.entry(reason).or_default() += 1;
                continue;
            }
            let like = place.pods.iter().filter(|other| are_alike(pod, other)).count();
            let score = (like, place.pods.len());
            if best.is_none_or(|(least, _)| score < least) {
                best = Some((score, node));
            }
        }
        best.map(|(_, node)| node.to_owned()).ok_or(reasons)
    }

    /// Why a pod cannot be on a node.
    fn refusal(&self, pod: &Value, place: &Place<'_>) -> Option<String> {
        let node = place.node;
        if at(node, "spec.unschedulable") == true && !tolerates(pod, &unschedulable()) {
            return Some("node(s) were unschedulable".into());
        }
        if let Some(taint) = untolerated(pod, node) {
            let (key, value) = (str_at(taint, "key"), str_at(taint, "value"));
            return Some(format!("node(s) had untolerated taint {{{key}: {value}}}"));
        }
        if !is_selected(pod, node) {
            return Some("node(s) didn't match Pod's node affinity/selector".into());
        }
        if let Some(lacking) = lacking(pod, place) {
            return Some(lacking);
        }
        if host_port_taken(pod, place) {
            return Some("node(s) didn't have free ports for the requested pod ports".into());
        }
        if !self.affinity_holds(pod, node) {
            return Some("node(s) didn't match pod affinity rules".into());
        }
        if !self.anti_affinity_holds(pod, node) {
            return Some("node(s) didn't match pod anti-affinity rules".into());
        }
        (!self.spread_holds(pod, node))
            .then(|| "node(s) didn't match pod topology spread constraints".into())
    }

    /// The pods that share a topology value with a node.
    fn neighbours<'b>(&'b self, node: &'b Value, key: &'b str) -> impl Iterator<Item = &'b Value> {
        let value = node_label(node, key);
        let near =
            move |place: &&Place<'_>| value.is_some() && node_label(place.node, key) == value;
        self.nodes.values().filter(near).flat_map(|place| &place.pods)
    }

    fn affinity_holds(&self, pod: &Value, node: &Value) -> bool {
        terms(pod, "podAffinity").iter().all(|term| {
            let key = str_at(term, "topologyKey");
            // The first pod of a group that wants to be with itself may be anywhere.
            let any =
                self.nodes.values().flat_map(|place| &place.pods).any(|one| meant(term, pod, one));
            let alone = !any && meant(term, pod, pod);
            alone || self.neighbours(node, key).any(|one| meant(term, pod, one))
        })
    }

    fn anti_affinity_holds(&self, pod: &Value, node: &Value) -> bool {
        let own = terms(pod, "podAntiAffinity").iter().all(|term| {
            !self.neighbours(node, str_at(term, "topologyKey")).any(|one| meant(term, pod, one))
        });
        let others = || {
            self.nodes
                .values()
                .flat_map(|place| place.pods.iter().map(move |one| (place, one)))
                .all(|(place, other)| {
                    terms(other, "podAntiAffinity").iter().all(|term| {
                        let key = str_at(term, "topologyKey");
                        let near = node_label(node, key).is_some()
                            && node_label(place.node, key) == node_label(node, key);
                        !(near && meant(term, other, pod))
                    })
                })
        };
        own && others()
    }

    fn spread_holds(&self, pod: &Value, node: &Value) -> bool {
        let constraints = list_at(pod, "spec.topologySpreadConstraints").iter();
        let mut hard = constraints.filter(|one| one["whenUnsatisfiable"] == "DoNotSchedule");
        hard.all(|constraint| {
            let key = str_at(constraint, "topologyKey");
            let Some(here) = node_label(node, key) else { return false };
            let counted = |one: &&Value| {
                namespace(one) == namespace(pod)
                    && selects(&constraint["labelSelector"], at(one, "metadata.labels"))
            };
            let mut domains: BTreeMap<&str, i64> = BTreeMap::new();
            for place in self.nodes.values().filter(|place| is_selected(pod, place.node)) {
                if let Some(domain) = node_label(place.node, key) {
                    let n = place.pods.iter().filter(counted).count();
                    *domains.entry(domain).or_default() += i64::try_from(n).unwrap_or(i64::MAX);
                }
            }
            let least = domains.values().copied().min().unwrap_or(0);
            let skew = domains.get(here).copied().unwrap_or(0) + 1 - least;
            skew <= int_at(constraint, "maxSkew").max(1)
        })
    }
}

fn node_label<'a>(node: &'a Value, key: &str) -> Option<&'a str> {
    at(node, "metadata.labels").get(key).and_then(Value::as_str)
}

fn terms<'a>(pod: &'a Value, form: &str) -> &'a [Value] {
    list_at(at(at(pod, "spec.affinity"), form), "requiredDuringSchedulingIgnoredDuringExecution")
}

/// Whether an affinity term of `of` is about `other`.
fn meant(term: &Value, of: &Value, other: &Value) -> bool {
    let namespaces = list_at(term, "namespaces");
    let in_namespace = if namespaces.is_empty() {
        namespace(of) == namespace(other)
    } else {
        namespaces.iter().any(|one| one == namespace(other))
    };
    in_namespace && selects(&term["labelSelector"], at(other, "metadata.labels"))
}

fn are_alike(pod: &Value, other: &Value) -> bool {
    let owner = |pod: &Value| crate::json::controller_of(pod).map(|one| one["uid"].clone());
    owner(pod).is_some() && owner(pod) == owner(other)
}

fn unschedulable() -> Value {
    json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"})
}

fn untolerated<'a>(pod: &Value, node: &'a Value) -> Option<&'a Value> {
    let taints = list_at(node, "spec.taints").iter();
    let mut hard = taints.filter(|taint| taint["effect"] != "PreferNoSchedule");
    hard.find(|taint| !tolerates(pod, taint))
}

/// Whether a pod tolerates a taint.
pub(crate) fn tolerates(pod: &Value, taint: &Value) -> bool {
    toleration(pod, taint).is_some()
}

/// The toleration by which a pod tolerates a taint.
pub(crate) fn toleration<'a>(pod: &'a Value, taint: &Value) -> Option<&'a Value> {
    list_at(pod, "spec.tolerations").iter().find(|one| {
        let (key, effect) = (str_at(one, "key"), str_at(one, "effect"));
        let exists = str_at(one, "operator") == "Exists";
        (effect.is_empty() || effect == str_at(taint, "effect"))
            && ((key.is_empty() && exists) || key == str_at(taint, "key"))
            && (exists || str_at(one, "value") == str_at(taint, "value"))
    })
}

/// Node selector and required node affinity.
pub(crate) fn is_selected(pod: &Value, node: &Value) -> bool {
    let labels = at(node, "metadata.labels");
    let wanted = at(pod, "spec.nodeSelector").as_object();
    let by_labels =
        wanted.is_none_or(|map| map.iter().all(|(key, value)| labels.get(key) == Some(value)));
    let required =
        at(pod, "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution");
    let terms = list_at(required, "nodeSelectorTerms");
    by_labels && (required.is_null() || terms.iter().any(|term| term_matches(term, node)))
}

fn term_matches(term: &Value, node: &Value) -> bool {
    let (labels, fields) = (list_at(term, "matchExpressions"), list_at(term, "matchFields"));
    let fields_of = json!({"metadata.name": name(node)});
    !(labels.is_empty() && fields.is_empty())
        && selects(&json!({"matchExpressions": labels}), at(node, "metadata.labels"))
        && selects(&json!({"matchExpressions": fields}), &fields_of)
}

fn lacking(pod: &Value, place: &Place<'_>) -> Option<String> {
    let allocatable = at(place.node, "status.allocatable");
    requests(pod).into_iter().find_map(|(resource, wanted)| {
        let have = allocatable.get(&resource).map(amount);
        let used = place.used.get(&resource).copied().unwrap_or(0);
        // A node that does not say how much it has is not known to lack it.
        let fits = match have {
            Some(have) => used + wanted <= have,
            None => matches!(resource.as_str(), "pods" | "cpu" | "memory") || wanted == 0,
        };
        (!fits).then(|| match resource.as_str() {
            "pods" => "Too many pods".into(),
            other => format!("Insufficient {other}"),
        })
    })
}

/// What a pod asks for: its containers together, or its largest init container.
fn requests(pod: &Value) -> Resources {
    let mut all = Resources::from([("pods".to_owned(), 1000)]);
    let of = |container: &Value| -> Resources {
        let requests = at(container, "resources.requests").as_object().into_iter().flatten();
        requests.map(|(resource, quantity)| (resource.clone(), amount(quantity))).collect()
    };
    for container in list_at(pod, "spec.containers") {
        for (resource, amount) in of(container) {
            *all.entry(resource).or_default() += amount;
        }
    }
    for container in list_at(pod, "spec.initContainers") {
        for (resource, amount) in of(container) {
            let most = all.entry(resource).or_default();
            *most = (*most).max(amount);
        }
    }
    all
}

/// A quantity in thousandths.
fn amount(quantity: &Value) -> i128 {
    let text = match quantity {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+')));
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().unwrap_or(0);
    let scale = 10_i128.pow(u32::try_from(fraction.len().min(18)).unwrap_or(0));
    let factor: i128 = match suffix {
        "m" => 1,
        "u" | "n" => return i128::from(digits > 0),
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "Ki" => 1024 * 1000,
        "Mi" => (1 << 20) * 1000,
        "Gi" => (1 << 30) * 1000,
        "Ti" => (1 << 40) * 1000,
        "Pi" => (1 << 50) * 1000,
        _ => 1000,
    };
    digits.saturating_mul(factor) / scale
}

/// A port of a node, at all its addresses or at one.
#[derive(Debug)]
struct HostPort<'a> {
    number: i64,
    protocol: &'a str,
    address: Option<&'a str>,
}

impl<'a> HostPort<'a> {
    /// Those that a pod asks for, in containers that run on.
    fn of(pod: &'a Value) -> impl Iterator<Item = Self> {
        let inits = list_at(pod, "spec.initContainers").iter();
        let sidecars = inits.filter(|one| one["restartPolicy"] == "Always");
        let containers = list_at(pod, "spec.containers").iter().chain(sidecars);
        let ports = containers.flat_map(|container| list_at(container, "ports"));
        ports.filter(|port| int_at(port, "hostPort") > 0).map(|port| {
            let address = str_at(port, "hostIP");
            Self {
                number: int_at(port, "hostPort"),
                protocol: Some(str_at(port, "protocol"))
                    .filter(|it| !it.is_empty())
                    .unwrap_or("TCP"),
                address: (!matches!(address, "" | "0.0.0.0" | "::")).then_some(address),
            }
        })
    }

    fn meets(&self, other: &Self) -> bool {
        let apart = self.address.is_some() && other.address.is_some();
        (self.number, self.protocol) == (other.number, other.protocol)
            && (!apart || self.address == other.address)
    }
}

fn host_port_taken(pod: &Value, place: &Place<'_>) -> bool {
    let is_used = |wanted: HostPort<'_>| {
        place.pods.iter().flat_map(HostPort::of).any(|used| used.meets(&wanted))
    };
    HostPort::of(pod).any(is_used)
}

#[cfg(test)]
mod tests;
