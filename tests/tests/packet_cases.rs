//! Plays `cases/packet` without a kernel; `kernel_packet` plays them in it.

use packet::memory::Memory;
use tests::packet::given::Given;
use tests::packet::play::{Arm, play};

#[test]
fn every_packet_becomes_what_its_case_says() {
    let (n, failures) = play(&mut Arm::Host(Box::new(Memory::new(Given::default()))));
    assert!(failures.is_empty(), "{} fail:\n{}", failures.len(), failures.join("\n"));
    assert!(n >= 150, "only {n} packets: some cases were not found");
}
