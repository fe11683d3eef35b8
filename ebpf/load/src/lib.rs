//! Open, pin, attach and read the eBPF dataplane.
//!
//! ```text
//!  probe ─▶ open ──▶ maps ──────▶ activate ──▶ drain ──▶ retire
//!  may we?  programs  filled by    links made   no new    pins and
//!           loaded,   the caller   or swapped,  flows     links gone
//!           old maps               all pinned
//!           adopted
//! ```
//!
//! In flow: an object file (embedded), a directory on bpffs, a cgroup. Out flow: typed maps, and
//! programs attached to the cgroup. The process may die between any two instructions: what is
//! pinned goes on working, and the next process adopts it. aya is known to this crate only.

#![expect(unsafe_code, reason = "bpf(2) and memory-mapped maps")]

pub mod activate;
mod batch;
mod clsact;
pub mod counts;
pub mod devices;
pub mod dns;
pub mod drops;
pub mod endpoints;
pub mod filter;
pub mod flows;
mod kept;
pub mod left_alone;
mod mapped;
mod mountinfo;
pub mod object;
pub mod open;
pub mod pinned;
pub mod pins;
pub mod probe;
pub mod sizes;
pub mod slots;
mod standing;
mod sys;
pub mod test_run;

pub use aya::maps::MapError;
pub use aya::maps::lpm_trie::Key as TrieKey;
pub use mountinfo::cgroup2_mount;
pub use open::{Addresses, Capacity, Config, Dataplane, Log, OpenError};
pub use sys::{netns_cookie, socket_cookie};
