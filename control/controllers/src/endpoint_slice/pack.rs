//! Endpoints into slices of a hundred, disturbing as few slices as possible.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::json::{list_at, str_at};

/// Endpoints in one slice, at most.
const FULL: usize = 100;

/// What the endpoints of one slice have in common: the family and the ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Group {
    family: String,
    ports: String,
}

/// What to do about the slices.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) create: Vec<Value>,
    pub(crate) update: Vec<Value>,
    pub(crate) delete: Vec<Value>,
}

impl Group {
    pub(crate) fn new(family: &str, ports: &Value) -> Self {
        Self { family: family.into(), ports: ports.to_string() }
    }

    fn of(slice: &Value) -> Self {
        let ports = Value::Array(list_at(slice, "ports").to_vec());
        Self::new(str_at(slice, "addressType"), &ports)
    }

    fn slice(&self, endpoints: &[Value]) -> Value {
        let ports: Value = serde_json::from_str(&self.ports).unwrap_or_default();
        json!({"addressType": self.family, "ports": ports, "endpoints": endpoints})
    }
}

/// Which slices to write so that they hold these endpoints. An endpoint stays in its slice; new
/// ones fill slices that are written anyway, then others with room, then new ones.
pub(crate) fn pack(desired: BTreeMap<Group, Vec<Value>>, existing: Vec<Value>) -> Plan {
    let mut plan = Plan::default();
    let mut of_group: BTreeMap<Group, Vec<Value>> = BTreeMap::new();
    for slice in existing {
        let group = Group::of(&slice);
        if desired.contains_key(&group) {
            of_group.entry(group).or_default().push(slice);
        } else {
            plan.delete.push(slice);
        }
    }
    for (group, endpoints) in desired {
        let slices = of_group.remove(&group).unwrap_or_default();
        pack_group(&group, endpoints, slices, &mut plan);
    }
    plan
}

fn pack_group(group: &Group, endpoints: Vec<Value>, slices: Vec<Value>, plan: &mut Plan) {
    let mut new: BTreeMap<String, Value> =
        endpoints.into_iter().map(|endpoint| (identity(&endpoint), endpoint)).collect();
    let mut kept: Vec<(Value, Vec<Value>)> = slices
        .into_iter()
        .map(|slice| {
            let olds = list_at(&slice, "endpoints").iter();
            let still = olds.filter_map(|old| new.remove(&identity(old))).collect();
            (slice, still)
        })
        .collect();
    let mut rest = new.into_values();
    // Those that change anyway first.
    kept.sort_by_key(|(slice, still)| list_at(slice, "endpoints") == still.as_slice());
    for (_, still) in &mut kept {
        let room = FULL.saturating_sub(still.len());
        still.extend(rest.by_ref().take(room));
    }
    let rest: Vec<Value> = rest.collect();
    let mut alone = kept.len();
    for (mut slice, endpoints) in kept {
        // One empty slice says that the Service is known; more say nothing.
        if endpoints.is_empty() && (alone > 1 || !rest.is_empty()) {
            alone -= 1;
            plan.delete.push(slice);
        } else if list_at(&slice, "endpoints") != endpoints.as_slice() {
            slice["endpoints"] = Value::Array(endpoints);
            plan.update.push(slice);
        }
    }
    let chunks = rest.chunks(FULL).map(|chunk| group.slice(chunk));
    let before = plan.create.len();
    plan.create.extend(chunks);
    if alone == 0 && plan.create.len() == before {
        plan.create.push(group.slice(&[]));
    }
}

/// What makes it the same endpoint: its pod, or its address where there is none.
fn identity(endpoint: &Value) -> String {
    match str_at(endpoint, "targetRef.uid") {
        "" => endpoint["addresses"].to_string(),
        uid => uid.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(range: std::ops::Range<usize>) -> Vec<Value> {
        range
            .map(|i| {
                json!({"addresses": [format!("10.0.{}.{}", i / 256, i % 256)],
                "targetRef": {"uid": format!("{i:05}")}})
            })
            .collect()
    }

    fn group() -> Group {
        Group::new("IPv4", &json!([{"name": "", "port": 80, "protocol": "TCP"}]))
    }

    fn sizes(slices: &[Value]) -> Vec<usize> {
        slices.iter().map(|slice| list_at(slice, "endpoints").len()).collect()
    }

    fn plan(n: usize, existing: Vec<Value>) -> Plan {
        pack([(group(), endpoints(0..n))].into(), existing)
    }

    #[test]
    fn a_hundred_fit_and_one_more_begins_another() {
        for (n, expected) in [
            (0, vec![0]),
            (1, vec![1]),
            (100, vec![100]),
            (101, vec![100, 1]),
            (250, vec![100, 100, 50]),
        ] {
            assert_eq!(sizes(&plan(n, Vec::new()).create), expected, "{n}");
        }
    }

    #[test]
    fn what_is_as_it_should_be_is_left_alone() {
        let slices = plan(250, Vec::new()).create;
        assert_eq!(plan(250, slices), Plan::default());
    }

    #[test]
    fn one_that_goes_changes_one_slice() {
        let slices = plan(250, Vec::new()).create;
        let without: Vec<Value> = endpoints(0..250).into_iter().skip(1).collect();
        let plan = pack([(group(), without)].into(), slices);
        assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (0, 1, 0));
        assert_eq!(sizes(&plan.update), [99]);
    }

    #[test]
    fn one_that_comes_goes_where_there_is_room() {
        let slices = plan(250, Vec::new()).create;
        let plan = plan(251, slices);
        assert_eq!((plan.create.len(), sizes(&plan.update)), (0, vec![51]));
    }

    #[test]
    fn other_ports_are_other_slices() {
        let slices = plan(10, Vec::new()).create;
        let other = Group::new("IPv4", &json!([{"name": "", "port": 81, "protocol": "TCP"}]));
        let plan = pack([(other, endpoints(0..10))].into(), slices);
        assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (1, 0, 1));
    }
}
