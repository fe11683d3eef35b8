//! Keys and values that the eBPF programs and user space share.
//!
//! ```text
//!  FRONTENDS  hash   FrontendKey ─▶ FrontendValue ──slot──┐
//!  HEADS      array  slot ─▶ Head {base, length, generation}   one aligned u64: its store publishes
//!  ENDPOINTS  array  base .. base + length ─▶ Endpoint {address, port, generation}
//! ```
//!
//! A set of endpoints is a range of `ENDPOINTS`, written whole before the store into `HEADS` that
//! makes it visible. Each endpoint carries its set's generation, so a program that read the head
//! before a change and the endpoint after it notices, and reads the head again. Everything here is
//! plain data without implicit padding; addresses and ports are in network byte order.

#![no_std]

pub mod addr;
pub mod counter;
pub mod endpoint;
pub mod frontend;
#[cfg(feature = "user")]
mod pod;
pub mod socket;

/// The version of every layout in this crate together with the meaning of the maps. Two processes
/// of one version may write the same maps; a different version makes new ones.
pub const SCHEMA: u32 = 1;
