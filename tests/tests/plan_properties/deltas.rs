//! Deltas: they lead to the plan, past any failure, and show no packet anything in between.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use model::cluster::{Dirty, Snapshot};
use model::name::{NamespacedName, Protocol};
use proptest::collection::btree_map;
use proptest::prelude::*;
use proxy::backend::fake::{Fake, Fault, Tables};
use proxy::backend::{ApplyErrorClass, Backend, Effect};
use proxy::delta::{Actual, Op, delta, delta_of};
use proxy::plan::trace::{Packet, Verdict, View, trace};
use proxy::plan::{AddressClaim, Plan, Planner, plan};

use crate::history::{ADDRESSES, cluster, config, history, ip};

proptest! {
    #![proptest_config(crate::config_of_tests())]

    /// From whatever is held to whatever is desired, in one go; and then there is nothing to do.
    #[test]
    fn the_delta_leads_to_the_plan(from in history(), to in history()) {
        let again = to.clone();
        let (from, to) = (planned(&from).0, planned(&to).0);
        let mut fake = Fake::default();
        let mut actual = fake.prepare().unwrap();
        for plan in [&from, &to] {
            let ops = delta(&actual, plan);
            apply(&mut fake, &mut actual, &ops);
            prop_assert_eq!(fake.tables(), &tables(plan));
        }
        // Also for a plan of the same that shares nothing with it.
        prop_assert_eq!(delta(&actual, &planned(&again).0), vec![]);
    }

    /// What changed is enough to go by.
    #[test]
    fn the_delta_of_a_change_is_the_whole_delta(history in history()) {
        let mut cluster = cluster(&[]);
        let mut planner = Planner::new(config());
        let mut fake = Fake::default();
        let mut actual = fake.prepare().unwrap();
        let change = planner.replan(&cluster.snapshot(), &Dirty::everything());
        let ops = delta_of(&actual, &change);
        // Settings that are no different from none are told by the full delta only.
        let first = delta(&actual, planner.plan());
        apply(&mut fake, &mut actual, &first);
        prop_assert!(ops.iter().all(|op| first.contains(op)));
        for change in &history {
            let dirty = cluster.apply(change.clone());
            let change = planner.replan(&cluster.snapshot(), &dirty);
            let ops = delta_of(&actual, &change);
            let full: BTreeSet<String> = shown(&delta(&actual, planner.plan()));
            prop_assert_eq!(shown(&ops), full);
            // What is not held is not removed.
            let of_nothing = delta_of(&Actual::default(), &change);
            let removes = |op: &Op| matches!(op, Op::Remove { .. } | Op::Disown { .. });
            prop_assert!(!of_nothing.iter().any(removes), "{:?}", of_nothing);
            apply(&mut fake, &mut actual, &ops);
            prop_assert_eq!(fake.tables(), &tables(planner.plan()));
        }
    }

    /// A new process finds what the former one left, and writes nothing if that is right.
    #[test]
    fn a_restart_writes_nothing(history in history()) {
        let plan = planned(&history).0;
        let mut fake = Fake::with_tables(tables(&plan));
        let mut actual = fake.prepare().unwrap();
        let ops = delta(&actual, &plan);
        let applied = fake.apply(&ops);
        prop_assert!(applied.results.iter().all(|it| matches!(it, Ok(Effect::Unchanged))));
        prop_assert_eq!(fake.n_written(), 0);
        ops.iter().for_each(|op| actual.done(op));
        prop_assert_eq!(delta(&actual, &plan), vec![]);
    }

    /// Whatever fails, and whether or not it was done all the same: the next rounds get there, and
    /// nothing is left that is not desired.
    #[test]
    fn failures_are_made_good(
        from in history(),
        to in history(),
        faults in btree_map(0..40_usize, any::<bool>(), 0..8),
    ) {
        let (from, to) = (planned(&from).0, planned(&to).0);
        let mut fake = Fake::default();
        for (op_idx, carried_out) in &faults {
            let class = ApplyErrorClass::Retry { after: Duration::ZERO };
            fake.fail(*op_idx, Fault { class, carried_out: *carried_out });
        }
        let mut actual = fake.prepare().unwrap();
        let ops = delta(&actual, &from);
        apply(&mut fake, &mut actual, &ops);
        // Each round gets past one failure at least.
        for _ in 0..=faults.len() {
            let ops = delta(&actual, &to);
            apply(&mut fake, &mut actual, &ops);
        }
        prop_assert_eq!(delta(&actual, &to), vec![]);
        prop_assert_eq!(fake.tables(), &tables(&to));
    }

    /// After each operation, a packet meets what it met before all of them or will meet after all
    /// of them.
    #[test]
    fn no_packet_sees_anything_in_between(from in history(), to in history()) {
        let ((from, snapshot), (to, _)) = (planned(&from), planned(&to));
        // Settings are one operation, and may change what all others mean.
        let to = Plan { settings: Arc::clone(&from.settings), ..to };
        let mut fake = Fake::default();
        let mut actual = fake.prepare().unwrap();
        let ops = delta(&actual, &from);
        apply(&mut fake, &mut actual, &ops);
        let packets = packets();
        let before = verdicts(fake.tables(), &snapshot, &packets);
        let after = verdicts(&tables(&to), &snapshot, &packets);
        for op in delta(&actual, &to) {
            apply(&mut fake, &mut actual, std::slice::from_ref(&op));
            let now = verdicts(fake.tables(), &snapshot, &packets);
            for (idx, verdict) in now.iter().enumerate() {
                prop_assert!(
                    *verdict == before[idx] || *verdict == after[idx],
                    "{:?} meets {:?} after {:?}, not {:?} or {:?}",
                    packets[idx], verdict, op, before[idx], after[idx]
                );
            }
        }
        prop_assert_eq!(verdicts(fake.tables(), &snapshot, &packets), after);
    }
}

fn planned(history: &[model::cluster::Change]) -> (Plan, Snapshot) {
    let snapshot = cluster(history).snapshot();
    (plan(&snapshot, &config()), snapshot)
}

/// What the kernel holds when it holds a plan.
fn tables(plan: &Plan) -> Tables {
    Tables {
        settings: Some(Arc::clone(&plan.settings)),
        frontends: plan.frontends.iter().map(|(key, it)| (*key, Arc::clone(it))).collect(),
        addresses: plan
            .addresses
            .keys()
            .map(|address| (*address, plan.undefined(address).unwrap()))
            .collect(),
        active: false,
    }
}

fn apply(fake: &mut Fake, actual: &mut Actual, ops: &[Op]) {
    let applied = fake.apply(ops);
    assert_eq!(applied.results.len(), ops.len());
    for (op, result) in ops.iter().zip(applied.results) {
        match result {
            Ok(_) => actual.done(op),
            Err(_) => actual.failed(op),
        }
    }
}

fn shown(ops: &[Op]) -> BTreeSet<String> {
    ops.iter().map(|op| format!("{op:?}")).collect()
}

fn packets() -> Vec<Packet> {
    let mut packets = Vec::new();
    for to in ADDRESSES {
        for port in [80, 81, 53, 30_000, 30_001] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let v4 = ["10.244.1.9", "172.18.0.1", "203.0.113.1"];
                let v6 = ["fd00:10:244::9", "2001:db8::1", "fd00::1"];
                for from in if to.contains(':') { v6 } else { v4 } {
                    packets.push(Packet {
                        source: ip(from),
                        interface: None,
                        destination: SocketAddr::new(ip(to), port),
                        protocol,
                    });
                }
            }
        }
    }
    packets
}

fn verdicts(tables: &Tables, snapshot: &Snapshot, packets: &[Packet]) -> Vec<Verdict> {
    let claim = |undefined| AddressClaim { undefined, service: NamespacedName::new("any", "any") };
    let plan = Plan {
        settings: tables.settings.clone().unwrap_or_default(),
        frontends: tables.frontends.iter().map(|(key, it)| (*key, Arc::clone(it))).collect(),
        addresses: tables
            .addresses
            .iter()
            .map(|(address, undefined)| (*address, Arc::from([claim(*undefined)])))
            .collect(),
        ..Plan::default()
    };
    let host = BTreeSet::from([ip("172.18.0.1")]);
    let config = config();
    let view = View { plan: &plan, snapshot, config: &config, host: &host };
    packets.iter().map(|packet| trace(&view, packet).verdict).collect()
}
