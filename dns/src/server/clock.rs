//! Clocks: what time it is, and how long answers take.

use std::time::Instant;

use super::metrics::Counters;

/// Seconds since the epoch.
pub fn now() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME);
    time.map_or(0, |time| u64::try_from(time.tv_sec()).unwrap_or(0))
}

/// Seconds since the epoch as an SOA's serial counts them (RFC 1982).
pub fn serial() -> u32 {
    u32::try_from(now() & u64::from(u32::MAX)).unwrap_or(0)
}

/// Reading the clock twice costs a good part of what is done between, so that one batch of so many
/// is timed. Its time stands for those since the one before.
const TIMED: u32 = 16;

/// Times one batch of [`TIMED`].
#[derive(Debug, Default)]
pub(super) struct Stopwatch {
    n_batches: u32,
    n_untimed: u64,
}

impl Stopwatch {
    pub(super) fn start(&mut self) -> Option<Instant> {
        self.n_batches = self.n_batches.wrapping_add(1);
        (self.n_batches % TIMED == 1).then(Instant::now)
    }

    pub(super) fn stop(&mut self, started: Option<Instant>, n: u64, counters: &Counters) {
        self.n_untimed += n;
        if let Some(started) = started {
            counters.took(started.elapsed(), std::mem::take(&mut self.n_untimed));
        }
    }
}
