//! Everything above a unit test: what the tiers and the benches share.
//!
//! Tests play text cases: [`case`] reads them, [`objects`] makes snapshots of them, [`stage`] is
//! where their packets come from, and [`actor`] what sends and receives real ones; [`hostile`] takes objects that nobody should have let in. Benches
//! compare: `loadtest::ratio` says how, [`cycles`] is what is timed, [`cpu`] what it took, [`memory`] what it holds, [`population`] makes many Services and
//! [`synthetic`] the model of them, [`binary`] finds what was built.
//! [`pods`] are a companion with its nodes, [`containerd`] what their pods may run in; [`namespaces`] are many, with sockets in each; [`relay`] is a way that can be cut, [`pace`] how fast
//! things happen.

pub mod actor;
pub mod binary;
pub mod case;
pub mod cluster;
pub mod containerd;
pub mod cpu;
pub mod crowd;
pub mod cycles;
pub mod daemonset;
pub mod hostile;
pub mod memory;
pub mod namespaces;
pub mod objects;
pub mod pace;
pub mod packet;
pub mod pods;
pub mod population;
pub mod relay;
pub mod stage;
pub mod synthetic;
