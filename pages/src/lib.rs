//! What a process tells about itself over HTTP: pages of health, and metrics as Prometheus reads them.
//!
//! ```text
//!  counters ─▶ text (names, labels, values) ─▶ Page ─▶ serve (HTTP/1.1, bounded)
//! ```

#![forbid(unsafe_code)]

pub mod serve;
pub mod text;

pub use serve::{Page, serve};
pub use text::Text;
