//! What the kernel tells of its own work: time in softirq, and which kernel this is.

use std::fs;

/// Nanoseconds in a tick of `/proc/stat`, whose unit is `USER_HZ`: a hundredth of a second.
const TICK: u64 = 10_000_000;

/// Nanoseconds that all processors together have spent in softirq. It grows in ticks: only sums over
/// many slices mean anything.
#[must_use]
pub fn softirq() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    softirq_ticks(&text).unwrap_or_default() * TICK
}

/// The kernel's release.
#[must_use]
pub fn release() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// From `cpu  user nice system idle iowait irq softirq …`.
fn softirq_ticks(stat: &str) -> Option<u64> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?;
    fields.split_whitespace().nth(6)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softirq_is_the_seventh_number() {
        assert_eq!(softirq_ticks("cpu  1 2 3 4 5 6 7 8 9 0\ncpu0 1 1 1 1 1 1 1\n"), Some(7));
        assert_eq!(softirq_ticks("intr 1\n"), None);
    }
}
