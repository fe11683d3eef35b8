//! What becomes of a packet: the decision code of the tc programs, which runs as well without a
//! kernel.
//!
//! ```text
//!  bytes ─▶ filter                        most packets, which are nobody's of ours
//!             ▼ the others
//!           parse ─▶ quick               most packets of established connections
//!                      ▼ the others
//!                    decide ─▶ flow     which connection is it, or is it a new one
//!                      │  ├──▶ icmp     errors, echo requests
//!                      │  └──▶ fragment parts of datagrams
//!                      ▼
//!                    rewrite ─▶ checksum        refuse: the packet becomes its refusal
//! ```
//!
//! Read in this order: `packet` and `tables` (what it works on), `filter`, `parse`, `quick`, `decide`, then the
//! rest.
//! In flow: a [`packet::Packet`], and [`tables::Tables`] to look things up in. Out flow: the packet
//! rewritten in place, and a [`decide::Verdict`]. Nothing here allocates, logs or panics, and each
//! loop has a small bound, since the kernel's verifier follows all of it.

#![no_std]
#![expect(unsafe_code, reason = "records of connections are map values, shared with other CPUs")]

#[cfg(test)]
extern crate std;

pub mod checksum;
pub mod decide;
pub mod filter;
pub mod flow;
pub mod fragment;
pub mod icmp;
pub mod live;
#[cfg(feature = "memory")]
pub mod memory;
pub mod packet;
pub mod parse;
pub mod quick;
pub mod refuse;
pub mod rewrite;
pub mod tables;
mod words;
