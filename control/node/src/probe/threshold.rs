//! How many answers of a kind in a row make a verdict. `[pure]`

/// Counts a probe's answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Threshold {
    success: u32,
    failure: u32,
    last: Option<bool>,
    run: u32,
    verdict: Option<bool>,
}

impl Threshold {
    /// One that holds the container healthy until it knows better, unless `doubts`.
    pub(super) fn new(doubts: bool, success: u32, failure: u32) -> Self {
        let verdict = (!doubts).then_some(true);
        Self { success, failure, last: None, run: 0, verdict }
    }

    /// Counts an answer; gives the verdict if this answer changed it.
    pub(super) fn count(&mut self, healthy: bool) -> Option<bool> {
        self.run = if self.last == Some(healthy) { self.run + 1 } else { 1 };
        self.last = Some(healthy);
        let enough = if healthy { self.success } else { self.failure };
        if self.run < enough || self.verdict == Some(healthy) {
            return None;
        }
        self.verdict = Some(healthy);
        Some(healthy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(mut threshold: Threshold, answers: &str) -> String {
        let say = |answer| match threshold.count(answer == '+') {
            None => '.',
            Some(true) => '+',
            Some(false) => '-',
        };
        answers.chars().map(say).collect()
    }

    #[test]
    fn a_verdict_takes_as_many_answers_in_a_row_as_it_says() {
        assert_eq!(verdicts(Threshold::new(true, 1, 3), "+-+--+---"), "+.......-");
        assert_eq!(verdicts(Threshold::new(true, 2, 1), "+-++-"), ".-.+-");
        assert_eq!(verdicts(Threshold::new(true, 1, 2), "--"), ".-");
    }

    #[test]
    fn the_living_are_held_alive_until_proved_otherwise() {
        assert_eq!(verdicts(Threshold::new(false, 1, 3), "++---+"), "....-+");
    }
}
