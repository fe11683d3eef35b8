//! A file's bytes to documents, and a document to objects. One document is in memory at a time.

use std::io::{self, BufRead};

use serde::de::{DeserializeSeed, IgnoredAny};
use serde_json::Value;

use crate::parse::Names;
use crate::problem::Problem;
use crate::source::files::object::{Found, Header, OUT_OF_ORDER, ObjectSeed, read_slowly};
use crate::source::files::plain;

/// What one file gave.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) found: Found,
    /// A document that could not be read at all: which objects it held is not known.
    pub(super) has_unreadable: bool,
}

/// Reads every document of a file. A broken one becomes a problem; its neighbours stay.
///
/// # Errors
/// Reading failed: nothing is known of what follows.
pub(super) fn read(mut text: impl BufRead, names: &mut Names) -> io::Result<Contents> {
    let mut contents = Contents::default();
    let mut document = Document { idx: 1, first_line: 1, bytes: Vec::new() };
    let mut line_idx = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        let end = text.read_until(b'\n', &mut line)? == 0;
        line_idx += 1;
        let separator = is_separator(&line);
        if end || separator {
            document.read_into(&mut contents, names);
        }
        if end {
            return Ok(contents);
        }
        if separator {
            document.first_line = line_idx;
            document.bytes.clear();
        }
        document.bytes.extend_from_slice(&line);
    }
}

/// `---`, alone or before a comment or content. Such a line ends whatever was before it.
fn is_separator(line: &[u8]) -> bool {
    line.strip_prefix(b"---").is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_whitespace))
}

struct Document {
    /// Counted from 1, as a person does; documents of comments alone do not count.
    idx: usize,
    first_line: usize,
    bytes: Vec<u8>,
}

impl Document {
    fn read_into(&mut self, contents: &mut Contents, names: &mut Names) {
        if is_blank(&self.bytes) {
            return;
        }
        let title = format!("document {}", self.idx);
        self.idx += 1;
        let Ok(text) = str::from_utf8(&self.bytes) else {
            let reason = format!("line {}: not UTF-8; save it as UTF-8", self.first_line);
            contents.found.problems.push(Problem::new(title, "", reason));
            contents.has_unreadable = true;
            return;
        };
        let found = &mut contents.found;
        let before = found.mark();
        let body = text.strip_prefix("---").unwrap_or(text).trim_start();
        let is_json = body.starts_with('{');
        let read = if is_json {
            let head = text.len() - body.len();
            let first_line = self.first_line + n_lines(text, head);
            read_json(body, first_line, found, names).map_err(Some)
        } else {
            Err(None)
        };
        // What looks like JSON may be YAML in its flow style.
        let read = read.or_else(|json| {
            found.rewind(before);
            read_yaml(text, self.first_line, found, names).map_err(|yaml| json.unwrap_or(yaml))
        });
        let Err(reason) = read else { return };
        found.rewind(before);
        let stopped = Some(reason).filter(|reason| !reason.contains(OUT_OF_ORDER));
        let told = stopped.clone();
        let slowly = value(if is_json { body } else { text }, is_json, self.first_line)
            .and_then(|value| read_slowly(value, stopped, found, names).map_err(str::to_owned));
        if let Err(reason) = slowly {
            found.rewind(before);
            contents.has_unreadable = true;
            let reason = told.unwrap_or(reason);
            let reason = format!("{reason}; mend it, its neighbours are not affected");
            found.problems.push(Problem::new(title, "", reason));
            return;
        }
        for problem in found.problems.iter_mut().skip(before.1) {
            problem.object = format!("{}, {title}", problem.object).into();
        }
    }
}

impl Found {
    const fn mark(&self) -> (usize, usize, usize) {
        (self.objects.len(), self.problems.len(), self.n_others)
    }

    fn rewind(&mut self, (n_objects, n_problems, n_others): (usize, usize, usize)) {
        self.objects.truncate(n_objects);
        self.problems.truncate(n_problems);
        self.n_others = n_others;
    }
}

/// Nothing but blank lines, comments and the separator.
fn is_blank(document: &[u8]) -> bool {
    document.split(|&byte| byte == b'\n').all(|line| {
        let line = line.trim_ascii();
        let line = line.strip_prefix(b"---").map_or(line, <[u8]>::trim_ascii_start);
        line.is_empty() || line.starts_with(b"#") || line == b"..."
    })
}

/// One JSON object, or several behind one another.
fn read_json(
    text: &str,
    first_line: usize,
    found: &mut Found,
    names: &mut Names,
) -> Result<(), String> {
    let mut rest = text;
    while !rest.trim_start().is_empty() {
        let mut json = serde_json::Deserializer::from_str(rest);
        let seed = ObjectSeed { found, names, header: Header::default() };
        seed.deserialize(&mut json).map_err(|error| {
            let read = text.len() - rest.len();
            let lines_read = n_lines(text, read);
            let place = format!(" at line {} column {}", error.line(), error.column());
            let reason = error.to_string().replacen(&place, "", 1);
            let line = first_line + lines_read + error.line().saturating_sub(1);
            format!("line {line}, column {}: {reason}", error.column())
        })?;
        let end = json.into_iter::<IgnoredAny>().byte_offset();
        rest = rest.get(end.max(1)..).unwrap_or_default();
    }
    Ok(())
}

/// Line ends among so many bytes.
fn n_lines(text: &str, n_bytes: usize) -> usize {
    text.bytes().take(n_bytes).filter(|&byte| byte == b'\n').count()
}

fn read_yaml(
    text: &str,
    first_line: usize,
    found: &mut Found,
    names: &mut Names,
) -> Result<(), String> {
    let before = found.mark();
    if plain::read(text, ObjectSeed { found, names, header: Header::default() }).is_ok() {
        return Ok(());
    }
    found.rewind(before);
    serde_saphyr::with_deserializer_from_str_with_options(text, options(), |yaml| {
        ObjectSeed { found, names, header: Header::default() }.deserialize(yaml)
    })
    .map_err(|error| told(&error, first_line))
}

fn told(error: &serde_saphyr::Error, first_line: usize) -> String {
    let error = error.without_snippet();
    let text = error.to_string();
    let Some(location) = error.location() else { return text };
    // The parser counts from the document's first line, a person from the file's.
    let place = format!(" at line {}, column {}", location.line(), location.column());
    let line = usize::try_from(location.line()).unwrap_or(0) + first_line - 1;
    format!("line {line}, column {}: {}", location.column(), text.replacen(&place, "", 1))
}

fn value(text: &str, is_json: bool, first_line: usize) -> Result<Value, String> {
    let json = if is_json { serde_json::from_str(text).ok() } else { None };
    json.map_or_else(
        || {
            serde_saphyr::from_str_with_options(text, options())
                .map_err(|error| told(&error, first_line))
        },
        Ok,
    )
}

/// As much as a dump of a large cluster in one document needs; an alias bomb needs more.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        emit_comments: false,
        budget: serde_saphyr::budget! {
            max_events: 10_000_000,
            max_nodes: 8_000_000,
            max_depth: 64,
            max_aliases: 1_000,
            max_anchors: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
            max_replay_stack_depth: 8,
        },
    }
}
