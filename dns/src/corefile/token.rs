//! The words and braces of a Corefile, line by line.

use super::ParseCorefileError;

/// A word or a brace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'t> {
    Word(&'t str),
    Open,
    Close,
}

/// The tokens of one line that has any.
#[derive(Clone, Debug)]
pub(super) struct Line<'t> {
    pub(super) number: usize,
    pub(super) tokens: Vec<Token<'t>>,
}

/// Splits a text at white space; `"` keeps words together, `#` starts a comment.
pub(super) fn tokens(text: &str) -> Result<impl Iterator<Item = Line<'_>>, ParseCorefileError> {
    let mut lines = Vec::new();
    for (idx, line) in text.lines().enumerate() {
        let number = idx + 1;
        let mut tokens = Vec::new();
        let mut rest = line.trim_start();
        while !rest.is_empty() && !rest.starts_with('#') {
            let (word, after) = match rest.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"').ok_or_else(|| {
                    let remedy = "close it on the same line";
                    ParseCorefileError::new(number, "a quote that is never closed", remedy)
                })?,
                None => rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len())),
            };
            if word.starts_with("{$") || word.starts_with("{%") {
                let what = format!("{word:?} is not replaced");
                return Err(ParseCorefileError::new(number, what, "write the value itself"));
            }
            tokens.push(match word {
                "{" => Token::Open,
                "}" => Token::Close,
                word => Token::Word(word),
            });
            rest = after.trim_start();
        }
        if !tokens.is_empty() {
            lines.push(Line { number, tokens });
        }
    }
    Ok(lines.into_iter())
}
