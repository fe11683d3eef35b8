//! Nodes, pods and links on one machine, out of network namespaces and cgroups.
//!
//! ```text
//!            fabric (namespace, bridge br0)      172.18.0.0/16
//!              │ veth                │ veth
//!   node-a (namespace, cgroup)   node-b …        172.18.0.1, 172.18.0.2
//!      │ veth        │ veth                      routes to each other's pod CIDR
//!   web-1         client         …               10.244.1.2, 10.244.1.3
//!   (namespace, cgroup below its node's)
//! ```
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cluster = sandbox::Sandbox::create("demo")?;
//! let node = cluster.node("node-a")?;
//! let pod = node.pod("web-1")?;
//! let server = pod.command("fairlead").args(["hello", "--name", "web-1"]).spawn()?;
//! # drop(server); Ok(())
//! # }
//! ```
//!
//! In flows a description of a cluster; out come its namespaces, cgroups and processes, which end
//! with the [`Sandbox`]. Namespaces are held by descriptors alone, so a killed owner takes them
//! along; what else it leaves (processes, cgroups, a bpffs mount, a directory under
//! `/run/fairlead/sandbox`) the next [`Sandbox::create`] sweeps.
//!
//! Read in this order: [`cluster`], [`node`], [`pod`], [`guest`], [`process`], then what they are made of:
//! [`address`], [`netns`], [`link`], [`cgroup`], `record`. [`hello`] is what a pod serves,
//! [`traffic`] what a client sends, [`manifest`] what Kubernetes would say of it all, and
//! [`fairlead`] runs the binary's own programs in it.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod guest;
pub mod node;
pub mod pod;
pub mod process;

pub mod address;
pub mod cgroup;
pub mod error;
pub mod link;
pub mod netns;
mod record;
pub mod wait;

pub mod fairlead;
pub mod hello;
pub mod manifest;
pub mod traffic;

pub use address::Addresses;
pub use cluster::Sandbox;
pub use error::{BuildError, SpawnError};
pub use guest::Guest;
pub use link::LinkError;
pub use node::Node;
pub use pod::Pod;
pub use process::{Launch, Process};
