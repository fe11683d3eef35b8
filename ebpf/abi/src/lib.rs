//! Keys and values that the eBPF programs and user space share.
//!
//! ```text
//!  FRONTENDS  hash   FrontendKey ─▶ FrontendValue ──slot──┐
//!  SLOTS      array  slot ─▶ Slot {heads: pod, node, outside, serving; rules}
//!  ENDPOINTS  array  base .. base + length of a head ─▶ Endpoint {address, port, generation, id}
//!
//!  RANGES     trie   slot and source ─▶ may use it         ADDRESSES  hash  address ─▶ flags
//!  AFFINITY   LRU    client and Service port ─▶ endpoint   PREFIXES   trie  range ─▶ flags
//!  NODE       array  what holds for the node               SOCKETS, UDP_PEERS, TCP_SOCKETS  what sockets got
//!  LEFT_ALONE hash   cookie of a network namespace ─▶ its calls are left alone; N_LEFT_ALONE  how many are
//!  DNS        array  family ─▶ this node's own DNS server  DNS_ALIVE  a socket of it, while it lives
//!  FILTER     array  hashes of all addresses that packets of ours have
//!  COUNTERS, ENDPOINT_COUNTS, SERVICE_COUNTS, DROPS        what happened
//! ```
//!
//! A set of endpoints is a range of `ENDPOINTS`, written whole before the store of a head that makes
//! it visible. Each endpoint carries its set's generation, so a program that read the head before a
//! change and the endpoint after it notices, and reads the head again. Everything here is plain data
//! without implicit padding; addresses and ports are in network byte order.

#![no_std]

pub mod addr;
pub mod address;
pub mod affinity;
pub mod count;
pub mod counter;
pub mod device;
pub mod dns;
pub mod drop;
pub mod endpoint;
pub mod filter;
pub mod flow;
pub mod frontend;
pub mod node;
#[cfg(feature = "user")]
mod pod;
pub mod slot;
pub mod socket;

/// The version of every layout in this crate together with the meaning of the maps. Two processes
/// of one version may write the same maps; a different version makes new ones.
pub const SCHEMA: u32 = 3;
