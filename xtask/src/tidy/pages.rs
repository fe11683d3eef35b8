//! Rules for the pages: promises name their tests, and design pages are found from the front.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Finding, Page, is_rust};

const SPECIFICATION: &str = "SPECIFICATION.md";
const ARCHITECTURE: &str = "ARCHITECTURE.md";
const UNTESTED: &str = "no test yet";

pub(super) fn check(pages: &[Page]) -> Vec<Finding> {
    let page = |path: &str| pages.iter().find(|page| page.path == path);
    let text = |path: &str| page(path).map_or("", |page| page.text.as_str());
    let known = Known::gather(pages);
    let mut findings = promises(text(SPECIFICATION), &known);
    findings.extend(unlinked(&known.paths, text(ARCHITECTURE)));
    findings
}

/// What a promise may name.
struct Known<'p> {
    tests: BTreeSet<&'p str>,
    modules: BTreeSet<&'p str>,
    paths: BTreeSet<&'p str>,
}

impl<'p> Known<'p> {
    fn gather(pages: &'p [Page]) -> Self {
        let rust = || pages.iter().filter(|page| is_rust(page));
        let stems = rust().filter_map(|page| Path::new(&page.path).file_stem()?.to_str());
        let inline = rust().filter(|page| page.text.contains("\nmod tests {"));
        Self {
            tests: rust().flat_map(|page| tests(&page.text)).collect(),
            modules: stems.chain(inline.map(|_| "tests")).collect(),
            paths: pages.iter().map(|page| page.path.as_str()).collect(),
        }
    }

    /// A test by its name or path, a module of tests, a command of ours, files.
    fn knows(&self, name: &str) -> bool {
        if name.starts_with("cargo xtask ") {
            return true;
        }
        if name.contains('/') || name.ends_with(".txt") {
            return self.paths.iter().any(|path| is_file(path, name));
        }
        let path = name.split(' ').next_back().unwrap_or_default();
        let module = path.strip_suffix("::*").map(last).is_some_and(|it| self.modules.contains(it));
        module || self.tests.contains(last(path)) || self.modules.contains(last(path))
    }
}

/// The last name of a path.
fn last(path: &str) -> &str {
    path.rsplit("::").next().unwrap_or_default()
}

/// Whether the name is the file's path or a folder's above it, or ends it; `*` is any text.
fn is_file(path: &str, name: &str) -> bool {
    if path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
        return true;
    }
    let (begin, end) = name.split_once('*').unwrap_or((name, ""));
    let starts = path.starts_with(begin) || path.contains(&format!("/{begin}"));
    starts && path.ends_with(end)
}

/// The names of the functions below a test attribute.
fn tests(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut below_attribute = false;
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            below_attribute = true;
        } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| below_attribute) {
            names.push(rest.split('(').next().unwrap_or_default());
            below_attribute = false;
        }
    }
    names
}

/// Each row of a table whose last column is headed "Test" names one that exists, or admits it.
fn promises(text: &str, known: &Known<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut in_table = false;
    for (index, line) in text.lines().enumerate() {
        let Some(row) = line.trim().strip_prefix('|').and_then(|row| row.strip_suffix('|')) else {
            in_table = false;
            continue;
        };
        let last = row.rsplit('|').next().unwrap_or_default().trim();
        if !in_table {
            in_table = last.eq_ignore_ascii_case("test");
            continue;
        }
        let ruler = !last.is_empty() && last.chars().all(|c| "-: ".contains(c));
        if ruler || last == UNTESTED {
            continue;
        }
        let place = format!("{SPECIFICATION}:{}", index + 1);
        let names: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            findings.push(Finding::new(&place, format!("names its test, or says \"{UNTESTED}\"")));
        }
        let unknown = names.into_iter().filter(|name| !known.knows(name));
        findings.extend(unknown.map(|it| Finding::new(&place, format!("no test is called {it}"))));
    }
    findings
}

fn unlinked<'p>(
    paths: &'p BTreeSet<&str>,
    architecture: &'p str,
) -> impl Iterator<Item = Finding> + 'p {
    let design = paths.iter().filter(|path| path.starts_with("docs/design/"));
    let lost = design.filter(move |path| !architecture.contains(**path));
    lost.map(|path| Finding::new(*path, format!("is mentioned in {ARCHITECTURE}")))
}

#[cfg(test)]
mod tests {
    use super::{Page, check};

    const TEST: &str = "//! Works.\n#[test]\nfn it_works() {}\nfn not_a_test() {}\n";

    fn findings(specification: &str, architecture: &str) -> Vec<String> {
        let page = |path: &str, text: &str| Page { path: path.to_owned(), text: text.to_owned() };
        let pages = [
            page("SPECIFICATION.md", specification),
            page("ARCHITECTURE.md", architecture),
            page("docs/design/maps.md", "# Maps"),
            page("src/plan.rs", TEST),
            page("tests/cases/service/2.1-hairpin.txt", ""),
        ];
        check(&pages).iter().map(ToString::to_string).collect()
    }

    fn promise(test: &str) -> Vec<String> {
        let table = format!("| Promise | Test |\n|---|---|\n| It works | {test} |\n");
        findings(&table, "docs/design/maps.md")
    }

    #[test]
    fn promises_name_tests_that_exist() {
        assert!(promise("`it_works`").is_empty());
        assert!(promise("`proxy::plan::it_works`, `cargo xtask bench connect`").is_empty());
        assert!(promise("no test yet").is_empty());
        assert!(promise("`tests/cases/service/*.txt`, `2.1-*.txt`, `tests/cases`").is_empty());
        assert!(promise("`proxy::plan`, `tests::properties plan::*`").is_empty());
        assert_eq!(promise("`2.9-*.txt`").len(), 1);
        assert_eq!(promise("`tests/fuzz`, `gone::*`").len(), 2);
        assert_eq!(promise("`gone`"), ["SPECIFICATION.md:3: no test is called gone"]);
        assert_eq!(promise("`not_a_test`").len(), 1);
        assert_eq!(promise("surely").len(), 1);
        assert_eq!(promise("").len(), 1);
    }

    #[test]
    fn other_tables_are_left_alone() {
        assert!(findings("| A | B |\n|---|---|\n| 1 | 2 |\n", "docs/design/maps.md").is_empty());
    }

    #[test]
    fn design_pages_are_found_from_the_front() {
        let found = findings("", "Nothing.");
        assert_eq!(found, ["docs/design/maps.md: is mentioned in ARCHITECTURE.md"]);
    }
}
