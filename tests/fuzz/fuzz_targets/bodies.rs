//! Any bytes as the body of a request: refused, or an object that can be stored and read back.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| api::probe::body(bytes));
