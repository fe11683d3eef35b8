//! Packets as text: what the packet programs are given, and what becomes of it, without a kernel
//! ([`host`]) and in it ([`kernel`]). The format is told in `tests/cases/packet/README.md`.

pub mod frame;
pub mod fuzz;
pub mod given;
pub mod host;
pub mod kernel;
pub mod play;
pub mod random;
pub mod show;
