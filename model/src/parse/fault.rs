//! What is wrong with one object, collected while it is parsed.

use std::fmt;

use crate::problem::Problem;

/// What parsing an object gives: the object as far as it could be taken, and what could not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed<T> {
    /// `None` when it is not for us (no problem) or cannot exist (a problem).
    pub object: Option<T>,
    /// What was left out. Bounded: a slice with a thousand bad endpoints names the first few.
    pub problems: Vec<Problem>,
}

/// At most so many problems of one object are told one by one.
const TOLD: usize = 16;

/// The problems of one object so far.
#[derive(Debug)]
pub(super) struct Faults {
    object: String,
    problems: Vec<Problem>,
    untold: usize,
}

impl Faults {
    pub(super) const fn of(object: String) -> Self {
        Self { object, problems: Vec::new(), untold: 0 }
    }

    /// Notes a value that is left out: `"TPC" is no protocol; use TCP, UDP or SCTP`.
    pub(super) fn add(
        &mut self,
        field: impl fmt::Display,
        value: impl fmt::Display,
        wrong: &str,
        remedy: &str,
    ) {
        let value = value.to_string();
        self.say(field, format_args!("{:?} is {wrong}; {remedy}", shortened(&value)));
    }

    /// Notes a problem in its own words.
    pub(super) fn say(&mut self, field: impl fmt::Display, reason: fmt::Arguments<'_>) {
        if self.problems.len() < TOLD {
            self.problems.push(Problem::new(&self.object, field.to_string(), reason));
        } else {
            self.untold += 1;
        }
    }

    pub(super) fn with<T>(mut self, object: Option<T>) -> Parsed<T> {
        if self.untold > 0 {
            let more = format!("{} more parts are left out; mend the first ones", self.untold);
            self.problems.push(Problem::new(&self.object, "", more));
        }
        Parsed { object, problems: self.problems }
    }
}

/// A value as far as a person wants to read it.
pub(super) fn shortened(value: &str) -> String {
    const SHOWN: usize = 64;
    match value.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", value.get(..end).unwrap_or_default()),
        None => value.to_owned(),
    }
}
