//! How long a container that keeps ending waits before it is started again. `[pure]`

use jiff::{SignedDuration, Timestamp};

/// The first wait; each further one is twice as long …
const FIRST: SignedDuration = SignedDuration::from_secs(10);
/// … up to this.
const LONGEST: SignedDuration = SignedDuration::from_mins(5);

/// One container's back-off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    wait: SignedDuration,
    since: Option<Timestamp>,
}

impl Backoff {
    /// Whether what ended then may start again now: the back-off from here on, or from when it may.
    ///
    /// As upstream, the first restart is at once, and ten minutes without one forget everything.
    pub(crate) fn after(self, ended: Timestamp, now: Timestamp) -> Result<Self, Timestamp> {
        let fresh = self.since.is_some_and(|since| now.duration_since(since) <= LONGEST * 2);
        if fresh && now.duration_since(ended) < self.wait {
            return Err(ended + self.wait);
        }
        let wait = if fresh { (self.wait * 2).min(LONGEST) } else { FIRST };
        Ok(Self { wait, since: Some(now) })
    }

    /// How long it waits, as messages say it.
    pub(crate) fn text(self) -> String {
        let seconds = self.wait.as_secs();
        match (seconds / 60, seconds % 60) {
            (0, seconds) => format!("{seconds}s"),
            (minutes, seconds) => format!("{minutes}m{seconds}s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_minutes_and_are_forgotten() {
        let mut now = Timestamp::UNIX_EPOCH;
        let mut backoff = Backoff::default().after(now, now).unwrap();
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            let until = backoff.after(now, now).unwrap_err();
            assert_eq!(until.duration_since(now).as_secs(), expected);
            now = until;
            backoff = backoff.after(now - SignedDuration::from_secs(expected), now).unwrap();
        }
        now += SignedDuration::from_mins(11);
        let again = backoff.after(now, now).unwrap();
        assert_eq!(again.wait, FIRST);
    }
}
