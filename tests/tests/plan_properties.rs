//! What holds for every plan and every delta, over random histories of a cluster.

#[cfg(test)]
#[path = "plan_properties/history.rs"]
mod history;

#[cfg(test)]
#[path = "plan_properties/plans.rs"]
mod plans;

#[cfg(test)]
#[path = "plan_properties/deltas.rs"]
mod deltas;

#[cfg(test)]
#[path = "plan_properties/repairs.rs"]
mod repairs;

#[cfg(test)]
#[path = "plan_properties/hostile_objects.rs"]
mod hostile_objects;

/// What proptest finds becomes a test with a name, not a file of seeds.
#[cfg(test)]
fn config_of_tests() -> proptest::test_runner::Config {
    proptest::test_runner::Config { failure_persistence: None, ..Default::default() }
}
