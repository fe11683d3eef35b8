//! What takes a minute or more of pods that really run: `cargo nextest run -P kernel-long netns_pods`.

#[path = "long/apart.rs"]
mod apart;
#[path = "long/churn.rs"]
mod churn;
#[path = "long/debug.rs"]
mod debug;
#[path = "long/healing.rs"]
mod healing;
#[path = "long/host_ports.rs"]
mod host_ports;
#[path = "long/load_balancer.rs"]
mod load_balancer;
#[path = "long/trouble.rs"]
mod trouble;
#[path = "long/workloads.rs"]
mod workloads;
