//! Any bytes as Services, slices and nodes, in YAML or JSON: planned, printed, programmed, traced.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| tests::hostile::play(bytes));
