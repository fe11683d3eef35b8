//! Prometheus's text format. `[pure]`

use std::fmt::{self, Display, Write};

/// A page of metrics that is being written.
#[derive(Debug, Default)]
pub struct Text(String);

/// A histogram as it is shown.
#[derive(Clone, Copy, Debug)]
pub struct Buckets<'b> {
    /// The upper bound of each bucket, and how many values are in it and in none before it.
    pub buckets: &'b [(u64, u64)],
    /// How a bound and the sum are written.
    pub unit: fn(u64) -> String,
    /// How many values there are, with those above the last bound.
    pub n: u64,
    /// Their sum.
    pub sum: u64,
}

impl Text {
    /// What was written. Half a page would be worse than none.
    pub fn finish(self, written: fmt::Result) -> String {
        written.map_or_else(|_failed| String::new(), |()| self.0)
    }

    /// Begins a metric: `counter`, `gauge` or `histogram`.
    ///
    /// # Errors
    /// None: writing to a string does not fail.
    pub fn head(&mut self, name: &str, kind: &str, help: &str) -> fmt::Result {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}")
    }

    /// One value; labels as `name="value",…`, which may be none.
    ///
    /// # Errors
    /// None, as [`Text::head`].
    pub fn sample(&mut self, name: &str, labels: &str, value: impl Display) -> fmt::Result {
        match labels {
            "" => writeln!(self.0, "{name} {value}"),
            _ => writeln!(self.0, "{name}{{{labels}}} {value}"),
        }
    }

    /// All values of a histogram.
    ///
    /// # Errors
    /// None, as [`Text::head`].
    pub fn histogram(&mut self, name: &str, labels: &str, of: Buckets<'_>) -> fmt::Result {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut below = 0;
        for (bound, n) in of.buckets {
            below += n;
            let bound = (of.unit)(*bound);
            writeln!(self.0, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}")?;
        }
        writeln!(self.0, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {}", of.n)?;
        self.sample(&format!("{name}_sum"), labels, (of.unit)(of.sum))?;
        self.sample(&format!("{name}_count"), labels, of.n)
    }
}

/// Microseconds as seconds, exactly.
pub fn seconds(micros: u64) -> String {
    let (whole, rest) = (micros / 1_000_000, micros % 1_000_000);
    let fraction = format!("{rest:06}");
    match fraction.trim_end_matches('0') {
        "" => whole.to_string(),
        digits => format!("{whole}.{digits}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_as_prometheus_reads_it() {
        let mut text = Text::default();
        let buckets =
            Buckets { buckets: &[(1_000, 2), (250_000, 1)], unit: seconds, n: 4, sum: 3_000_001 };
        let written = text
            .head("took_seconds", "histogram", "How long.")
            .and_then(|()| text.histogram("took_seconds", "family=\"IPv4\"", buckets))
            .and_then(|()| text.sample("up", "", 1));
        let expected = "\
# HELP took_seconds How long.
# TYPE took_seconds histogram
took_seconds_bucket{family=\"IPv4\",le=\"0.001\"} 2
took_seconds_bucket{family=\"IPv4\",le=\"0.25\"} 3
took_seconds_bucket{family=\"IPv4\",le=\"+Inf\"} 4
took_seconds_sum{family=\"IPv4\"} 3.000001
took_seconds_count{family=\"IPv4\"} 4
up 1
";
        assert_eq!(text.finish(written), expected);
    }
}
