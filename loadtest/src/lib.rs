//! Load on a Service, beside the same load on its endpoints, and what came of both.
//!
//! ```text
//!  kind ─▶ wire (bytes) ─┐
//!  schedule (when due) ──┼▶ reactor: one thread, one epoll ─▶ tally ─▶ ratio, fairness
//!                        │        (generator: all threads; remote: in a pod;       │
//!                        │         experiment: arms in turn)                      report
//!  server (answers with its name, as late as it is told) ◀──────┘
//! ```
//!
//! Pure: what is sent, when it is due, what came back and what that means. Input and output are in
//! `reactor`, `generator`, `remote` and `server`. Read in this order: [`kind`], [`wire`],
//! [`schedule`], [`reactor`], [`generator`], [`remote`], [`tally`], [`experiment`],
//! [`histogram`], [`ratio`], [`fairness`], [`change`], [`report`]; [`server`] is the other side.

pub mod kind;
pub mod wire;

pub mod schedule;

pub mod generator;
pub mod reactor;
pub mod remote;

pub mod tally;

pub mod experiment;

pub mod change;
pub mod fairness;
pub mod histogram;
pub mod ratio;

pub mod report;

pub mod server;

pub mod clock;
pub mod kernel;
