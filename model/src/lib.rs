//! The cluster as this node sees it.
//!
//! ```text
//!  API server ─┐
//!  YAML folder ┼─ source ─ parse ─▶ Change ─▶ Cluster ─▶ Snapshot (immutable, shared) + Dirty
//!  script ─────┘             │                merges the      │         (what changed)
//!                            └▶ Problem       slices of a     └─ FeedReader ─▶ proxy
//!                               (left out)    Service                       └▶ dns
//! ```
//!
//! In flow: API objects, stripped on arrival to the fields that somebody reads; what cannot be
//! taken is left out, named as a [`problem::Problem`], and never stops its neighbours. Out flow:
//! snapshots that never change, sharing structure with the ones before them, and beside each the
//! set of Services that differ. Before every kind was listed once, nothing flows out.
//!
//! ```no_run
//! # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
//! let mut watch = model::watch::files("objects".as_ref(), "this-node")?;
//! let mut tasks = tokio::task::JoinSet::new();
//! tasks.spawn(watch.task);
//! while let Some(update) = watch.feed.next().await {
//!     println!("{} Services, {:?}", update.snapshot.services.len(), update.dirty);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! I/O lives under [`source`] only; [`watch`] ties one source to one cluster. Read the modules in
//! this order.

#![forbid(unsafe_code)]

pub mod applied;
pub mod cluster;
pub mod endpoint;
pub mod feed;
pub mod host_port;
pub mod name;
pub mod node;
pub mod notice;
pub mod parse;
pub mod pod;
pub mod problem;
pub mod service;
pub mod slices;
pub mod source;
pub mod watch;
