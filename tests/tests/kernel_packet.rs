//! The packet programs in the kernel, run by hand.

use load::test_run::Bench;
use tests::packet::play::{Arm, play};

#[test]
fn every_packet_becomes_in_the_kernel_what_its_case_says() {
    let bench = Bench::open().unwrap_or_else(|error| panic!("{error}"));
    let (n, failures) = play(&mut Arm::Kernel(Box::new(bench)));
    assert!(failures.is_empty(), "{} fail:\n{}", failures.len(), failures.join("\n"));
    assert!(n >= 150, "only {n} packets: some cases were not found");
}
