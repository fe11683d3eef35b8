//! The two clocks, in nanoseconds: one that only goes forward, and one on the wall.

use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// A second.
pub const SECOND: u64 = 1_000_000_000;
/// A millisecond.
pub const MILLISECOND: u64 = 1_000_000;

/// The monotonic clock, which every process of the machine shares and nobody sets.
#[must_use]
pub fn now() -> u64 {
    read(ClockId::CLOCK_MONOTONIC).unwrap_or_default()
}

/// The wall's clock, which may jump.
#[must_use]
pub fn wall() -> u64 {
    read(ClockId::CLOCK_REALTIME).unwrap_or_default()
}

/// What this process has spent on a processor, all its threads together.
#[must_use]
pub fn own_cpu() -> u64 {
    read(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap_or_default()
}

/// What the calling thread has spent on a processor.
#[must_use]
pub(crate) fn thread_cpu() -> u64 {
    read(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap_or_default()
}

/// What another process has spent on a processor; nothing when it is gone.
#[must_use]
pub fn cpu_of(pid: u32) -> Option<u64> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?);
    read(clock_getcpuclockid(pid).ok()?)
}

fn read(clock: ClockId) -> Option<u64> {
    let time = clock_gettime(clock).ok()?;
    let (seconds, rest) = (u64::try_from(time.tv_sec()).ok()?, u64::try_from(time.tv_nsec()).ok()?);
    Some(seconds * SECOND + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_where_it_is_done() {
        let before = (now(), own_cpu());
        let me = std::process::id();
        while cpu_of(me).unwrap() < before.1 + MILLISECOND {}
        assert!(own_cpu() > before.1);
        assert!(now() > before.0);
    }
}
