//! Rules for one Rust file: its first sentence, size, name, purity and `unsafe`.

use std::path::Path;

use super::{Finding, Page};

/// Longer files are tables, and say so.
const MAX_LINES: usize = 600;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] =
    &["common", "consts", "helper", "helpers", "misc", "mod", "traits", "types", "util", "utils"];

/// Files and folders without clock, randomness, file, socket, task or log (invariant 1), beside
/// those that say so in their `//!`.
const PURE: &[&str] =
    &["model/src/", "proxy/src/select", "proxy/src/plan", "proxy/src/delta", "dns/src/"];

/// Where `model` and `dns` meet the world: the sources, the watch over them, the feed that wakes
/// readers; the server.
const NOT_PURE: &[&str] = &[
    "model/src/source",
    "model/src/watch",
    "model/src/feed",
    "model/src/applied",
    "dns/src/server",
];

/// What a pure module does not know.
const IMPURE_WORDS: &[&str] = &[
    "tokio",
    "tracing",
    "rand",
    "std::fs",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "Instant",
    "SystemTime",
];

pub(super) fn check(page: &Page) -> Vec<Finding> {
    [first_sentence(page), size(page), name(page), justified_unsafe(page)]
        .into_iter()
        .flatten()
        .chain(purity(page))
        .collect()
}

fn first_sentence(page: &Page) -> Option<Finding> {
    let says = page.text.lines().next().and_then(|line| line.strip_prefix("//! "));
    let empty = says.is_none_or(|text| text.trim().len() < 2);
    empty.then(|| Finding::new(&page.path, "begins with a `//!` sentence on what it is for"))
}

fn size(page: &Page) -> Option<Finding> {
    let n_lines = page.text.lines().count();
    let mut header = page.text.lines().take_while(|line| line.starts_with("//!"));
    let table = header.any(|line| line.contains("a table") || line.contains("one table"));
    (n_lines > MAX_LINES && !table).then(|| {
        let rule =
            format!("{n_lines} lines; {MAX_LINES} at most, unless its `//!` says it is a table");
        Finding::new(&page.path, rule)
    })
}

fn name(page: &Page) -> Option<Finding> {
    let stem = Path::new(&page.path).file_stem()?.to_string_lossy();
    EMPTY_NAMES
        .contains(&stem.as_ref())
        .then(|| Finding::new(&page.path, "is named for the noun it defines, not for a drawer"))
}

/// `unsafe` is for `ebpf/`, and for system calls that are wrapped and expected elsewhere.
fn justified_unsafe(page: &Page) -> Option<Finding> {
    let lines = code(&page.text);
    let (line, _) = lines.iter().find(|(_, line)| has_word(line, "unsafe"))?;
    let justified = page.path.starts_with("ebpf/") || page.text.contains("expect(unsafe_code");
    (!justified).then(|| {
        let rule = "`unsafe` outside ebpf/ expects `unsafe_code` with a reason";
        Finding::new(format!("{}:{line}", page.path), rule)
    })
}

fn purity(page: &Page) -> Vec<Finding> {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|it| page.path.starts_with(it));
    let mut header = page.text.lines().take_while(|line| line.starts_with("//!"));
    let says_so = header.any(|line| line.contains("`[pure]`"));
    let pure = says_so || begins(PURE) && !begins(NOT_PURE);
    if !pure || page.path.ends_with("/tests.rs") {
        return Vec::new();
    }
    let ours = page.text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut findings = Vec::new();
    for (n, line) in code(ours) {
        for word in IMPURE_WORDS.iter().filter(|word| has_word(&line, word)) {
            let rule = format!("a pure module knows no {word}");
            findings.push(Finding::new(format!("{}:{n}", page.path), rule));
        }
    }
    findings
}

/// The lines, counted from 1, without what comments and strings say.
fn code(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let mut string = None;
    for (index, line) in text.lines().enumerate() {
        let mut kept = String::new();
        let mut rest = line;
        while let Some(c) = rest.chars().next() {
            if let Some(end) = string.as_deref() {
                let skip = string_ends(rest, end);
                if rest.starts_with(end) {
                    string = None;
                }
                rest = rest.get(skip..).unwrap_or_default();
            } else if rest.starts_with("//") {
                break;
            } else if let Some((begin, end)) = string_begins(rest) {
                string = Some(end);
                rest = rest.get(begin..).unwrap_or_default();
            } else {
                kept.push(c);
                rest = rest.get(c.len_utf8()..).unwrap_or_default();
            }
        }
        lines.push((index + 1, kept));
    }
    lines
}

/// The length of what opens a string here, and what will close it.
fn string_begins(text: &str) -> Option<(usize, String)> {
    if text.starts_with("'\"'") {
        return Some((2, "'".to_owned()));
    }
    if text.starts_with('"') {
        return Some((1, "\"".to_owned()));
    }
    let hashes: String = text.strip_prefix('r')?.chars().take_while(|c| *c == '#').collect();
    let begin = 2 + hashes.len();
    (text.get(begin - 1..begin) == Some("\"")).then(|| (begin, format!("\"{hashes}")))
}

/// How much of a string to pass over: its end, an escape, or one character.
fn string_ends(text: &str, end: &str) -> usize {
    let raw = end.len() > 1;
    if text.starts_with(end) {
        return end.len();
    }
    let first = text.chars().next().map_or(0, char::len_utf8);
    let second = text.get(first..).and_then(|it| it.chars().next()).map_or(0, char::len_utf8);
    if text.starts_with('\\') && !raw { first + second } else { first }
}

/// Whether the word stands in the line on its own.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(start, found)| {
        let before = line.get(..start).and_then(|it| it.chars().next_back());
        let after = line.get(start + found.len()..).and_then(|it| it.chars().next());
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

#[cfg(test)]
mod tests {
    use super::{MAX_LINES, Page, check, code, has_word};

    fn findings(path: &str, text: &str) -> Vec<String> {
        let page = Page { path: path.to_owned(), text: text.to_owned() };
        check(&page).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn good_file_is_quiet() {
        assert!(findings("proxy/src/plan.rs", "//! Plans.\n\nfn plan() {}\n").is_empty());
    }

    #[test]
    fn file_without_its_sentence_is_found() {
        for text in ["use std::fs;\n", "//!\nfn a() {}\n", "//! .\n", ""] {
            assert_eq!(findings("src/a.rs", text).len(), 1, "{text:?}");
        }
    }

    #[test]
    fn long_file_is_found_unless_it_is_a_table() {
        let body = "\n".repeat(MAX_LINES);
        assert!(findings("src/a.rs", &format!("//! Long.\n{body}"))[0].contains("601 lines"));
        assert!(findings("src/a.rs", &format!("//! All flags, as one table.\n{body}")).is_empty());
    }

    #[test]
    fn drawer_names_are_found() {
        assert_eq!(findings("src/utils.rs", "//! Things.\n").len(), 1);
        assert_eq!(findings("src/plan/mod.rs", "//! Things.\n").len(), 1);
    }

    #[test]
    fn impure_words_in_pure_modules_are_found() {
        let text = "//! Plans.\nuse tokio::time::Instant;\n";
        let found = findings("proxy/src/plan/build.rs", text);
        assert_eq!(found[0], "proxy/src/plan/build.rs:2: a pure module knows no tokio");
        assert_eq!(found.len(), 2);
        assert!(findings("proxy/src/sync.rs", text).is_empty());
        assert!(findings("model/src/source/kube.rs", text).is_empty());
        let says_so = text.replace("Plans.", "Addresses. `[pure]`");
        assert_eq!(findings("sandbox/src/address.rs", &says_so).len(), 2);
    }

    #[test]
    fn comments_strings_and_tests_may_say_impure_words() {
        let text =
            "//! No tokio.\n// tokio\nconst A: &str = \"tokio\";\n#[cfg(test)]\nuse tokio;\n";
        assert!(findings("proxy/src/delta.rs", text).is_empty());
    }

    #[test]
    fn unsafe_outside_ebpf_needs_its_reason() {
        let text = "//! Calls.\nfn a() { unsafe { b() } }\n";
        assert_eq!(findings("sandbox/src/a.rs", text).len(), 1);
        assert!(findings("ebpf/load/src/a.rs", text).is_empty());
        let justified = text.replace("fn a", "#[expect(unsafe_code, reason = \"x\")]\nfn a");
        assert!(findings("sandbox/src/a.rs", &justified).is_empty());
    }

    #[test]
    fn strings_end_where_rust_ends_them() {
        let kept = |text: &str| code(text).into_iter().map(|(_, line)| line).collect::<String>();
        assert_eq!(kept(r#"a("x\"y") b"#), "a() b");
        assert_eq!(kept("a(\"x \\\n  unsafe\") b // c"), "a() b ");
        assert_eq!(kept("r#\"un\"safe\"# b"), " b");
        assert_eq!(kept("match c { '\"' => unsafe {} }"), "match c {  => unsafe {} }");
        assert_eq!(kept("fn a<'a>(b: &'a str)"), "fn a<'a>(b: &'a str)");
    }

    #[test]
    fn words_stand_alone() {
        assert!(has_word("use rand::Rng;", "rand"));
        assert!(!has_word("let operand = 1;", "rand"));
        assert!(!has_word("forbid(unsafe_code)", "unsafe"));
    }
}
