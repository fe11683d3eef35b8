//! Random packets through the decision code and through the programs in the kernel: the same comes
//! of them. `cargo xtask fuzz packets` is the long run.

use tests::packet::fuzz::Fuzz;
use tests::packet::kernel::alone;

#[test]
fn random_packets_become_in_the_kernel_what_the_decision_code_says() {
    let (done, differences) = alone(|| {
        let mut fuzz = Fuzz::open().unwrap_or_else(|error| panic!("{error}"));
        fuzz.run(1, 40_000, 1, |_| {}).unwrap_or_else(|error| panic!("{error}"))
    });
    if let Some(difference) = differences.first() {
        panic!("{difference}");
    }
    assert!(done.packets >= 40_000, "only {} packets", done.packets);
    for verdict in ["pass", "answer", "reroute", "drop_martian", "drop_stray"] {
        assert!(done.verdicts.contains_key(verdict), "no {verdict} among {:?}", done.verdicts);
    }
}
