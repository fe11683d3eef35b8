//! Changes from memory, for tests and benches.
