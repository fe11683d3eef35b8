//! Packets that real clients send by the packet path alone (`--socket-lb=off`): fragments, errors,
//! rules on the way, and attacks. Needs root.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails loudly"
)]

#[path = "netns_packets/attacks.rs"]
mod attacks;
#[path = "netns_packets/counts.rs"]
mod counts;
#[path = "netns_packets/errors.rs"]
mod errors;
#[path = "netns_packets/fragments.rs"]
mod fragments;
#[path = "netns_packets/policy.rs"]
mod policy;
#[path = "netns_packets/scene.rs"]
mod scene;
#[path = "netns_packets/wire.rs"]
mod wire;
