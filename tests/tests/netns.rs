//! Real traffic between simulated nodes and pods. Needs root.
#![expect(clippy::unwrap_used, reason = "a test fails loudly")]

#[path = "netns/cluster_ip.rs"]
mod cluster_ip;
#[path = "netns/restart.rs"]
mod restart;
#[path = "netns/sandbox.rs"]
mod sandbox_itself;
#[path = "netns/udp.rs"]
mod udp;
