//! The names of a cluster, as text: objects and questions, and the whole of each answer.
//!
//! Each file under `cases/dns` is a story: a Corefile, objects, and questions, each under the rule
//! that it proves. Questions go in and answers come out as packets, written and read by somebody
//! else's library. `UPDATE_EXPECT=1` rewrites the answers.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::string_slice,
    clippy::indexing_slicing,
    reason = "a harness fails loudly"
)]

#[path = "dns/case.rs"]
mod case;

use std::fs;
use std::path::{Path, PathBuf};

use case::Case;

fn files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/dns");
    let mut files: Vec<PathBuf> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_question_is_answered_as_written() {
    let mut differing = Vec::new();
    for file in files() {
        let before = fs::read_to_string(&file).unwrap();
        let after = Case::parse(&before).answered();
        if after == before {
            continue;
        }
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&file, after).unwrap();
        } else {
            differing.push(format!("{}:\n{}", file.display(), first_difference(&before, &after)));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

fn first_difference(before: &str, after: &str) -> String {
    let lines = before.lines().zip(after.lines()).enumerate();
    let context = |text: &str, at: usize| {
        text.lines().skip(at.saturating_sub(4)).take(10).collect::<Vec<_>>().join("\n")
    };
    let at = lines.into_iter().find(|(_, (a, b))| a != b).map_or(0, |(idx, _)| idx);
    format!(
        "line {}: expected\n{}\nanswered\n{}\n",
        at + 1,
        context(before, at),
        context(after, at)
    )
}

#[test]
fn the_cases_are_many_and_each_question_has_a_rule() {
    let mut n_questions = 0;
    for file in files() {
        let case = Case::parse(&fs::read_to_string(&file).unwrap());
        for question in &case.questions {
            assert!(!question.rule.is_empty(), "{}: {}", file.display(), question.text);
        }
        n_questions += case.questions.len();
    }
    assert!(n_questions >= 250, "only {n_questions}");
}
