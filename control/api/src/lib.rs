//! The Kubernetes API on one machine: object → store → watch → server.
//!
//! Read in this order: `object` (what is stored), `kinds` (the table of what there is),
//! `store` (revisions, history, durability), `server` (requests), `patch`, `allocate`, `auth`.

#![expect(
    clippy::indexing_slicing,
    reason = "JSON: a key that is not there reads as null; what is written was decoded before"
)]

mod admission;
mod allocate;
mod auth;
mod events;
mod kinds;
mod kubeconfig;
mod listen;
mod names;

mod object;
mod patch;
mod quantity;
mod seed;
mod selector;
mod server;
mod status;
mod store;
mod tls;
mod wire;

pub use allocate::Ranges;
pub use listen::{Config, Security, Server, StartError};
#[doc(hidden)]
pub use server::probe;
pub use store::{OpenStoreError, Retention};
