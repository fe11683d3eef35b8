//! Whether to wait awake for answers before sleeping. `[pure]`
//!
//! Who sleeps has to be woken by whoever answers, and that can cost an answering processor more
//! than the answer, on a virtual machine above all: then the waking is what is measured. But where
//! servers share the sender's processor, staying awake keeps them from answering. So it is tried,
//! and left alone for a while where nothing comes of it; the kernel's halt polling does the same.

/// Vigils in a row without an answer, after which they rest.
const N_IN_VAIN: u32 = 8;
/// Waits that are slept through then.
const N_ASLEEP: u32 = 1_000;

/// What came of staying awake so far.
#[derive(Debug, Default)]
pub(super) struct Vigil {
    n_in_vain: u32,
    n_asleep: u32,
}

impl Vigil {
    /// Whether to stay awake this time.
    pub(super) fn is_worth_it(&mut self) -> bool {
        let is_resting = self.n_asleep > 0;
        self.n_asleep = self.n_asleep.saturating_sub(1);
        !is_resting
    }

    /// Staying awake has ended, with an answer or without.
    pub(super) fn ended(&mut self, has_come: bool) {
        self.n_in_vain = if has_come { 0 } else { self.n_in_vain + 1 };
        if self.n_in_vain == N_IN_VAIN {
            *self = Self { n_in_vain: 0, n_asleep: N_ASLEEP };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vigils_in_vain_rest_for_a_while() {
        let mut vigil = Vigil::default();
        for has_come in [true, false, false, true] {
            assert!(vigil.is_worth_it());
            vigil.ended(has_come);
        }
        for _ in 0..N_IN_VAIN {
            assert!(vigil.is_worth_it());
            vigil.ended(false);
        }
        for _ in 0..N_ASLEEP {
            assert!(!vigil.is_worth_it());
        }
        assert!(vigil.is_worth_it());
    }
}
