//! The case files with real packets: each file of `cases/service` in each mode is a test.
//!
//! ```text
//! cargo nextest run -P kernel -E 'binary(netns_cases)'               all of them
//! cargo nextest run -P kernel -E 'binary(netns_cases)' nftables::2.8 one file in one mode
//! cargo nextest run -P kernel-long                           all files in both variants of iptables
//! CASE_MODE='mine=--proxy-mode=ebpf --socket-lb=off' cargo nextest run … mine::
//!                                                                    a mode that is not in the list
//! ```
//!
//! A file is played on a stage of its own (`stage`): nodes, pods and clients as the cases' README
//! has them, a real `fairlead proxy` on node-a, and in every namespace an actor that begins
//! connections and tells of each one that arrives. What must arrive is waited for; what must not
//! is shown by others that arrive after it (`play`, `judge`). What a mode cannot be shown to do
//! with packets is named in `mode`, counted and printed. The core of the files is played with pods
//! that are connected otherwise, too (`layout`).
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails loudly, and says what it did"
)]

use std::path::{Path, PathBuf};

use libtest_mimic::{Arguments, Trial};
use tests::case::{Case, Step};

#[path = "netns_cases/crew.rs"]
mod crew;
#[path = "netns_cases/judge.rs"]
mod judge;
#[path = "netns_cases/layout.rs"]
mod layout;
#[path = "netns_cases/mode.rs"]
mod mode;
#[path = "netns_cases/play.rs"]
mod play;
#[path = "netns_cases/stage.rs"]
mod stage;

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for mode in mode::modes() {
        for path in case_files() {
            let mode = mode.clone();
            let case = Case::read(&path).unwrap_or_else(|error| panic!("{error}"));
            if !mode.plays(&case.name)
                || !case.steps.iter().any(|step| matches!(step, Step::Packets(_)))
            {
                continue;
            }
            let long = if mode.is_long(&case.name) { "long::" } else { "" };
            let name = format!("{long}{}::{}", mode.name, case.name.trim_end_matches(".txt"));
            trials.push(Trial::test(name, move || play::play(&case, &mode)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn case_files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/service");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    files
}
