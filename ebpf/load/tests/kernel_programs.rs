//! The programs are no larger than the table `programs.txt` beside this says, so that growth is seen.
//!
//! The kernel decides how long verifying takes, so the table has a row for each that is tested. What
//! has grown by more than a tenth fails; what is meant to is entered in the table.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use load::sizes::{Size, sizes};

/// Of a hundred: what a program may have grown by.
const SLACK: u32 = 10;

/// By program and kernel, what was recorded.
type Recorded = BTreeMap<(String, String), (u32, u32)>;

#[test]
fn no_program_has_grown_unseen() {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs.txt");
    let recorded = read(&fs::read_to_string(&table).expect("the table is there"));
    let kernel = kernel();
    let mut grown = Vec::new();
    let is_new = |on: &str| on != kernel && !recorded.keys().any(|(_, on)| *on == kernel);
    for Size { name, instructions, verified } in sizes().expect("the kernel takes the programs") {
        println!("{name:<14} {kernel:<7} {instructions:>6} {verified:>8}");
        let here = recorded.get(&(name.clone(), kernel.clone()));
        // A kernel that nobody has recorded verifies as it likes; but every program is known.
        let is_known = recorded.keys().any(|(known, on)| *known == name && is_new(on));
        match here {
            Some((was, was_verified))
                if instructions <= most(*was) && verified <= most(*was_verified) => {}
            Some((was, was_verified)) => grown.push(format!(
                "{name} on {kernel}: {instructions} and {verified}, not {was} and {was_verified}"
            )),
            None if is_known => {}
            None => grown.push(format!("{name} on {kernel} is not there")),
        }
    }
    assert!(grown.is_empty(), "{} says otherwise:\n{}", table.display(), grown.join("\n"));
}

const fn most(was: u32) -> u32 {
    was + was * SLACK / 100
}

/// Major and minor of the kernel's release.
fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("there is procfs");
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    let (major, minor) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    format!("{major}.{minor}")
}

/// Reads lines of program, kernel, instructions, verified instructions.
fn read(text: &str) -> Recorded {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, kernel, instructions, verified] = words.try_into().ok()?;
        let numbers = (instructions.parse().ok()?, verified.parse().ok()?);
        Some(((name.to_owned(), kernel.to_owned()), numbers))
    };
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines.map(|line| row(line).expect("every line is a row")).collect()
}
