//! The packet programs in the kernel, run by hand.

use load::test_run::Bench;
use tests::packet::kernel::alone;
use tests::packet::play::{Arm, play};

#[test]
fn every_packet_becomes_in_the_kernel_what_its_case_says() {
    alone(|| play_all(false));
}

#[test]
fn a_device_that_has_summed_a_packet_is_not_made_a_liar() {
    alone(|| play_all(true));
}

#[expect(clippy::unwrap_used, reason = "a test fails loudly")]
fn play_all(summed: bool) {
    let bench = Bench::open().unwrap();
    let (n, failures) = play(&mut Arm::Kernel(Box::new(bench), summed));
    assert!(failures.is_empty(), "{} fail:\n{}", failures.len(), failures.join("\n"));
    assert!(n >= 150, "only {n} packets: some cases were not found");
}
