//! Plans: the same whatever the way to them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use model::cluster::{Change, Dirty};
use model::name::NamespacedName;
use proptest::prelude::*;
use proxy::plan::{HealthCheck, Plan, PlanChange, Planner, Undefined, plan};

use crate::history::{cluster, config, history};

proptest! {
    #![proptest_config(crate::config_of_tests())]

    /// Step by step, in jumps of several changes, or at once: the plan is the same, and each
    /// change tells all that differs.
    #[test]
    fn replanning_gives_what_planning_from_nothing_gives(
        history in history(),
        jump in 1..4_usize,
    ) {
        let mut cluster = cluster(&[]);
        let mut planner = Planner::new(config());
        planner.replan(&cluster.snapshot(), &Dirty::everything());
        for changes in history.chunks(jump) {
            let mut dirty = Dirty::default();
            for change in changes {
                dirty.merge(cluster.apply(change.clone()));
            }
            let before = planner.plan().clone();
            let change = planner.replan(&cluster.snapshot(), &dirty);
            let anew = plan(&cluster.snapshot(), &config());
            prop_assert_eq!(planner.plan(), &anew);
            prop_assert_eq!(changed(&before, &change), Told::of(&anew));
            let same_problems = before.problems().eq(anew.problems());
            prop_assert!(same_problems || change.problems, "problems differ, and nobody is told");
        }
    }

    /// A plan again, of the same cluster: nothing differs.
    #[test]
    fn planning_twice_is_planning_once(history in history()) {
        let snapshot = cluster(&history).snapshot();
        let mut planner = Planner::new(config());
        planner.replan(&snapshot, &Dirty::everything());
        let once = planner.plan().clone();
        let change = planner.replan(&snapshot, &Dirty::everything());
        prop_assert_eq!(planner.plan(), &once);
        prop_assert!(change.is_empty(), "{:?}", change);
    }

    /// The order in which objects arrive does not matter, only what each is in the end.
    #[test]
    fn the_order_of_events_does_not_matter(history in history(), seed in any::<u64>()) {
        let last = last_of_each(&history);
        let mut shuffled = last.clone();
        let n = shuffled.len();
        for idx in 0..n {
            let other = usize::try_from(seed.rotate_left(u32::try_from(idx).unwrap()) % n as u64);
            shuffled.swap(idx, other.unwrap());
        }
        let (in_order, out_of_order) = (cluster(&last).snapshot(), cluster(&shuffled).snapshot());
        prop_assert_eq!(plan(&in_order, &config()), plan(&out_of_order, &config()));
    }

    /// A text of it can be had, and equal plans have equal texts.
    #[test]
    fn equal_plans_print_equally(history in history()) {
        let snapshot = cluster(&history).snapshot();
        let (a, b) = (plan(&snapshot, &config()), plan(&snapshot, &config()));
        prop_assert_eq!(a.to_string(), b.to_string());
    }
}

/// What a change to a plan tells about.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    settings: Arc<proxy::plan::Settings>,
    frontends: BTreeMap<proxy::plan::FrontendKey, Arc<proxy::plan::Frontend>>,
    addresses: BTreeMap<IpAddr, Undefined>,
    health_checks: BTreeMap<NamespacedName, HealthCheck>,
}

impl Told {
    fn of(plan: &Plan) -> Self {
        Self {
            settings: Arc::clone(&plan.settings),
            frontends: plan.frontends.iter().map(|(key, it)| (*key, Arc::clone(it))).collect(),
            addresses: plan
                .addresses
                .keys()
                .map(|address| (*address, plan.undefined(address).unwrap()))
                .collect(),
            health_checks: plan
                .health_checks
                .iter()
                .map(|(name, it)| (name.clone(), *it))
                .collect(),
        }
    }
}

fn changed(before: &Plan, change: &PlanChange) -> Told {
    let mut told = Told::of(before);
    if let Some(settings) = &change.settings {
        told.settings = Arc::clone(settings);
    }
    put(&mut told.frontends, &change.frontends);
    put(&mut told.addresses, &change.addresses);
    put(&mut told.health_checks, &change.health_checks);
    told
}

fn put<K: Ord + Clone, V: Clone>(map: &mut BTreeMap<K, V>, changes: &BTreeMap<K, Option<V>>) {
    for (key, value) in changes {
        match value {
            Some(value) => map.insert(key.clone(), value.clone()),
            None => map.remove(key),
        };
    }
}

/// The last change to each object, as a list of what there is.
fn last_of_each(history: &[Change]) -> Vec<Change> {
    let mut last: BTreeMap<String, Change> = BTreeMap::new();
    for change in history {
        let object = match change {
            Change::Service(service) => format!("service {}", service.name),
            Change::ServiceGone(name) => format!("service {name}"),
            Change::Slice(slice) => format!("slice {}", slice.name),
            Change::SliceGone(name) => format!("slice {name}"),
            _ => "node".to_owned(),
        };
        last.insert(object, change.clone());
    }
    last.into_values().collect()
}
