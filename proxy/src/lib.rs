//! From a snapshot of the cluster to what the kernel does.
//!
//! ```text
//!  Snapshot ─▶ select ─▶ plan ─▶ delta ─▶ ops ─▶ backend ─▶ kernel
//!              who may   what    desired         ebpf, nftables,
//!              serve     the     minus           iptables, ipvs,
//!                        kernel  actual          fake
//!                        must do
//! ```
//!
//! `select`, `plan` and `delta` are pure: no clock, randomness, file, socket, task or log. Read
//! the modules in this order.

pub mod backend;
pub mod by_family;
pub mod config;
pub mod conntrack;
pub mod delta;
pub mod health;
pub mod left_alone;
pub mod links;
pub mod local;
pub mod metrics;
pub mod names;
mod namespaces;
mod netlink;
pub mod notices;
pub mod observer;
pub mod plan;
pub mod pods;
pub mod reserved;
pub mod select;
pub mod sockets;
pub mod status;
pub mod sync;
pub mod told;
