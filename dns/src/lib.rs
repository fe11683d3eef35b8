//! Cluster DNS: the names of Services, answered from the same watch that routes them.
//!
//! ```text
//!  packet ──▶ message ──▶ query ──▶ answer ──▶ encode ──▶ packet          all of it [pure]
//!             one         what is   from the   into the
//!             question    asked     zone view  client's limits
//!                                      ▲
//!  model::Snapshot + Dirty ──▶ zone ───┘  immutable, shares structure, swapped whole
//! ```
//!
//! [`respond`] is that line as one function; [`server`] moves packets to it and back, and nothing
//! else here does I/O but the modules below `server`. Read the modules in this order.

pub mod answer;
pub mod config;
pub mod corefile;
pub mod explain;
pub mod message;
pub mod name;
pub mod query;
pub mod respond;
pub mod server;
pub mod zone;
