//! The node agent: pods that really run.
//!
//! ```text
//!  API ──watch pods of this node──▶ agent ──one each──▶ worker ──decide──▶ life  [pure]
//!   ▲                                                    │  ▲                │
//!   └── status, events, lease ◀──────────────────────────┘  │ ends, probes   │ actions
//!                                                           │                ▼
//!                                                        runtime: sandbox, containers, exec
//! ```
//!
//! Read in this order: `life` (what becomes of a pod), `worker` (who sees to it), [`agent`],
//! `runtime` (what a runtime does), `process` (the one that needs nothing installed), `containerd`.
//! The rest prepares containers: `environment`, `volumes`, `names`, `network`, `prepare`; asks after them:
//! `probe`; and answers for them: `server`, `registration`, `routes` (by `overlay`, if need be), `announce`, `cluster_dns`.

#![forbid(unsafe_code)]

pub mod agent;
mod announce;
mod api;
mod built_in;
mod cgroups;
mod cluster_dns;
mod containerd;
mod environment;
mod identity;
mod image_name;
mod join;
mod life;
mod log;
mod names;
mod network;
mod overlay;
mod prepare;
mod probe;
mod process;
mod quantity;
mod registration;
mod routes;
mod runtime;
mod server;
mod volumes;
mod worker;

pub use agent::{Config, RunError, RuntimeChoice, run};
pub use cgroups::limit_cgroups;
pub use containerd::cni::answer as answer_cni;
pub use join::{Invitation, JoinError, join};
pub use overlay::Overlay;
pub use process::entry::{Role, enter};
