//! Real traffic between simulated nodes and pods. Needs root.
#![expect(clippy::unwrap_used, reason = "a test fails loudly")]

#[path = "netns/audit.rs"]
mod audit;
#[path = "netns/bad_objects.rs"]
mod bad_objects;
#[path = "netns/choice.rs"]
mod choice;
#[path = "netns/clsact.rs"]
mod clsact;
#[path = "netns/cluster_ip.rs"]
mod cluster_ip;
#[path = "netns/ebpf_log.rs"]
mod ebpf_log;
#[path = "netns/end_connections.rs"]
mod end_connections;
#[path = "netns/explain.rs"]
mod explain;
#[path = "netns/faults.rs"]
mod faults;
#[path = "netns/hairpin.rs"]
mod hairpin;
#[path = "netns/iptables.rs"]
mod iptables;
#[path = "netns/ipvs.rs"]
mod ipvs;
#[path = "netns/left_alone.rs"]
mod left_alone;
#[path = "netns/leftovers.rs"]
mod leftovers;
#[path = "netns/loadtest.rs"]
mod loadtest_itself;
#[path = "netns/macvlan.rs"]
mod macvlan;
#[path = "netns/names.rs"]
mod names;
#[path = "netns/nftables.rs"]
mod nftables;
#[path = "netns/node_sockets.rs"]
mod node_sockets;
#[path = "netns/pages.rs"]
mod pages;
#[path = "netns/refusal.rs"]
mod refusal;
#[path = "netns/restart.rs"]
mod restart;
#[path = "netns/sandbox.rs"]
mod sandbox_itself;
#[path = "netns/takeover.rs"]
mod takeover;
#[path = "netns/tour.rs"]
mod tour;
#[path = "netns/udp.rs"]
mod udp;
#[path = "netns/udp_destroy.rs"]
mod udp_destroy;
#[path = "netns/zero_loss.rs"]
mod zero_loss;
