//! The cluster as this node sees it.
//!
//! ```text
//!  source  ──Change──▶  Cluster  ──▶  Snapshot (immutable, shared)  +  Dirty (what changed)
//!  kube,                merges the             │
//!  files,               slices of a            ├──▶ proxy
//!  script               Service                └──▶ dns
//! ```
//!
//! In flow: API objects, stripped on arrival to the fields that somebody reads. Out flow: snapshots
//! that never change, sharing structure with the ones before them, and beside each the set of
//! Services that differ. I/O lives under [`source`] only. Read the modules in this order.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod endpoint;
pub mod feed;
pub mod name;
pub mod node;
pub mod parse;
pub mod problem;
pub mod service;
pub mod slices;
pub mod source;
pub mod watch;
