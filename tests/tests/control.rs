//! The companion as its clients see it: the real program, real kubectls, kube-rs.

#![expect(
    clippy::disallowed_methods,
    reason = "tests run programs, wait on conditions, and own their tasks"
)]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "what tests share panics as tests do"
)]

#[path = "control/churn.rs"]
mod churn;
#[path = "control/companion.rs"]
mod companion;
#[path = "control/conflicts.rs"]
mod conflicts;
#[path = "control/converge.rs"]
mod converge;
#[path = "control/durability.rs"]
mod durability;
#[path = "control/jobs.rs"]
mod jobs;
#[path = "control/kubectl.rs"]
mod kubectl;
#[path = "control/nodes.rs"]
mod nodes;
#[path = "control/protocol.rs"]
mod protocol;
#[path = "control/refusals.rs"]
mod refusals;
#[path = "control/rollouts.rs"]
mod rollouts;
#[path = "control/security.rs"]
mod security;
#[path = "control/services.rs"]
mod services;
#[path = "control/watching.rs"]
mod watching;
#[path = "control/workloads.rs"]
mod workloads;
