//! The terminal: headings, facts, bars; at most 80 columns, and no colours where nobody sees them.

use std::{
    env,
    io::{self, IsTerminal, Stdout, Write},
};

/// The longest bar; pods of a Deployment have long names.
const BAR: usize = 40;

/// Where the demo is shown.
#[derive(Debug)]
pub(super) struct Screen {
    out: Stdout,
    is_terminal: bool,
    has_colour: bool,
    n_steps: usize,
}

impl Screen {
    pub(super) fn new() -> Self {
        let out = io::stdout();
        let is_terminal = out.is_terminal();
        let has_colour = is_terminal
            && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && env::var_os("TERM").is_some_and(|term| term != "dumb");
        Self { out, is_terminal, has_colour, n_steps: 0 }
    }

    /// The first line.
    pub(super) fn title(&mut self, text: &str) -> io::Result<()> {
        let text = self.paint("1", text);
        writeln!(self.out, "\n{text}")
    }

    /// The heading of the next step.
    pub(super) fn step(&mut self, text: &str) -> io::Result<()> {
        self.n_steps += 1;
        let text = self.paint("1", &format!("{}  {text}", self.n_steps));
        writeln!(self.out, "\n{text}")
    }

    /// A line of a step.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        self.clear()?;
        writeln!(self.out, "{}", format!("   {text}").trim_end())
    }

    /// A name, a bar as long as `n` of `most`, and `n`.
    pub(super) fn bar(&mut self, name: &str, n: u64, most: u64) -> io::Result<()> {
        let share = n as f64 / most.max(1) as f64;
        let filled = "#".repeat(length(share));
        let rest = " ".repeat(BAR - filled.len());
        let filled = self.paint("36", &filled);
        writeln!(self.out, "   {name:<24}{filled}{rest}  {}", count(n))
    }

    /// What is going on just now; the next line takes its place. In a pipe, nothing.
    pub(super) fn progress(&mut self, text: &str) -> io::Result<()> {
        if self.is_terminal {
            self.clear()?;
            let text = self.paint("2", text);
            write!(self.out, "   {text}")?;
            self.out.flush()?;
        }
        Ok(())
    }

    /// The good end.
    pub(super) fn success(&mut self, text: &str) -> io::Result<()> {
        self.clear()?;
        let text = self.paint("1;32", text);
        writeln!(self.out, "\n{text}")
    }

    fn clear(&mut self) -> io::Result<()> {
        if self.is_terminal { write!(self.out, "\r\x1b[K") } else { Ok(()) }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.has_colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Thousands apart, as in 12,345.
pub(super) fn count(n: u64) -> String {
    match n {
        0..1000 => n.to_string(),
        _ => format!("{},{:03}", count(n / 1000), n % 1000),
    }
}

fn length(share: f64) -> usize {
    (0..BAR).filter(|i| (*i as f64 + 0.5) / (BAR as f64) < share).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        assert_eq!(count(0), "0");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(1_234_005), "1,234,005");
    }

    #[test]
    fn bars_are_as_long_as_their_share() {
        assert_eq!(length(0.0), 0);
        assert_eq!(length(0.5), BAR / 2);
        assert_eq!(length(1.0), BAR);
        assert_eq!(length(f64::NAN), 0);
    }
}
