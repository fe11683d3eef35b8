//! Rules for the pages: promises name their tests, and design pages are found from the front.

use std::collections::BTreeSet;

use super::{Finding, Page, is_rust};

const SPECIFICATION: &str = "SPECIFICATION.md";
const ARCHITECTURE: &str = "ARCHITECTURE.md";
const UNTESTED: &str = "no test yet";

pub(super) fn check(pages: &[Page]) -> Vec<Finding> {
    let page = |path: &str| pages.iter().find(|page| page.path == path);
    let text = |path: &str| page(path).map_or("", |page| page.text.as_str());
    let tests = pages.iter().filter(|page| is_rust(page)).flat_map(|page| tests(&page.text));
    let paths: BTreeSet<&str> = pages.iter().map(|page| page.path.as_str()).collect();
    let mut findings = promises(text(SPECIFICATION), &tests.collect(), &paths);
    findings.extend(unlinked(&paths, text(ARCHITECTURE)));
    findings
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
fn promises(text: &str, tests: &BTreeSet<&str>, paths: &BTreeSet<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut in_table = false;
    for (index, line) in text.lines().enumerate() {
        let Some(row) = line.trim().strip_prefix('|').and_then(|row| row.strip_suffix('|')) else {
            in_table = false;
            continue;
        };
        let last = row.rsplit('|').next().unwrap_or_default().trim();
        if !in_table {
            in_table = last == "Test";
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
        let unknown = names.into_iter().filter(|name| !exists(name, tests, paths));
        findings.extend(unknown.map(|it| Finding::new(&place, format!("no test is called {it}"))));
    }
    findings
}

/// A test by its name or path, a command of ours, or a file.
fn exists(name: &str, tests: &BTreeSet<&str>, paths: &BTreeSet<&str>) -> bool {
    let last = name.rsplit("::").next().unwrap_or_default();
    tests.contains(last) || name.starts_with("cargo xtask ") || paths.contains(name)
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
            page("src/a.rs", TEST),
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
