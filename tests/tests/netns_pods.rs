//! Pods that really run: the companion and a node agent, asked by kubectl. Needs root.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails loudly")]

#[path = "netns_pods/first_day.rs"]
mod first_day;
#[path = "netns_pods/long.rs"]
mod long;
#[path = "netns_pods/names.rs"]
mod names;
#[path = "netns_pods/restarts.rs"]
mod restarts;
#[path = "netns_pods/trouble.rs"]
mod trouble;
