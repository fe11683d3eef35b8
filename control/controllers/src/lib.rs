//! Controllers and the scheduler: ordinary clients of the Kubernetes API.
//!
//! A controller is one file: what it looks at, and how it brings one object to what it should be.
//! The machinery below is shared: `cluster` (the API), `cache` (what has been heard), `queue`
//! (what is to be done), `run` (who does it). A reconciliation reads anew what it is about to
//! act on, so that an old cache can delay a step but never repeat one.

#![expect(
    clippy::indexing_slicing,
    reason = "JSON: a key that is not there reads as null; what is written is an object"
)]

mod cache;
mod cluster;
mod json;
mod kinds;
mod queue;
mod run;

mod cron_job;
mod daemon_set;
mod deployment;
mod endpoint_slice;
mod garbage;
mod job;
mod namespace;
mod node;
mod node_ipam;
mod pods;
mod replicas;
mod revisions;
mod scheduler;
mod service_account;
mod stateful_set;

pub use node_ipam::{CidrError, ClusterCidr};
pub use run::{ConnectError, run};
