//! Real traffic between simulated nodes and pods. Needs root.

#[path = "netns/sandbox.rs"]
mod sandbox_itself;
