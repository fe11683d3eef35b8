//! Which Service port a frontend belongs to, in a file beside the status: the kernel knows numbers only.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::plan::Plan;

/// By frontend, as the plan prints it, the Service port.
pub type Names = BTreeMap<String, String>;

/// The file, beside a status file.
pub fn file_of(status: &Path) -> PathBuf {
    status.with_extension("names")
}

/// Its content: a frontend a line, and its Service port. `[pure]`
pub fn print(plan: &Plan) -> String {
    let mut text = String::new();
    for (key, frontend) in &plan.frontends {
        // Writing to a string cannot fail.
        _ = writeln!(text, "{key} {}", frontend.service);
    }
    text
}

/// Reads the file; what is no line of it is left out.
///
/// # Errors
/// It is not there, or cannot be read.
pub fn read(file: &Path) -> io::Result<Names> {
    let text = fs::read_to_string(file)?;
    let entries = text.lines().filter_map(|line| line.split_once(' '));
    Ok(entries.map(|(key, name)| (key.to_owned(), name.to_owned())).collect())
}
