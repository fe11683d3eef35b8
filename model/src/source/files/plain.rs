//! A quick reader of plain YAML: what kubectl prints and most people write. Block mappings and
//! sequences, scalars on one line. At anything else it declines, and the complete reader takes the
//! document from the start; so it never has to be right about YAML's corners, only to know them.
//! A property test holds it to what the complete reader says.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

/// Deeper documents are not plain.
const MAX_DEPTH: u8 = 32;
/// Mappings with more keys are not plain.
const MAX_KEYS: usize = 64;

/// Reads one document.
///
/// # Errors
/// It is not plain, or not what the seed wants: both mean that the complete reader must look.
pub(super) fn read<'de, S: DeserializeSeed<'de>>(
    document: &'de str,
    seed: S,
) -> Result<S::Value, Declined> {
    // Tabs, returns and everything beyond ASCII have rules of their own.
    if !document.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n')) {
        return Err(Declined);
    }
    let document = document.strip_prefix("---\n").unwrap_or(document);
    let mut lines = Lines { rest: document, line: None };
    let whole = At { lines: &mut lines, place: Place::Below { least: 0, dash: None }, depth: 0 };
    let value = seed.deserialize(whole)?;
    if lines.peek().is_some() { Err(Declined) } else { Ok(value) }
}

/// The document is left to the complete reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Declined;

impl fmt::Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no plain YAML")
    }
}

impl std::error::Error for Declined {}

impl de::Error for Declined {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

/// What is left of a document.
struct Lines<'de> {
    rest: &'de str,
    /// What is left of the line that was begun.
    line: Option<Line<'de>>,
}

#[derive(Clone, Copy, Debug)]
struct Line<'de> {
    /// The column where its content begins.
    column: usize,
    content: &'de str,
}

impl<'de> Lines<'de> {
    /// The line to read next, without comments and blank ones.
    fn peek(&mut self) -> Option<Line<'de>> {
        while self.line.is_none() && !self.rest.is_empty() {
            let (line, rest) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
            self.rest = rest;
            let content = line.trim_start_matches(' ');
            let column = line.len() - content.len();
            let content = content.trim_end_matches(' ');
            if !content.is_empty() && !content.starts_with('#') {
                self.line = Some(Line { column, content });
            }
        }
        self.line
    }

    fn end_line(&mut self) {
        self.line = None;
    }
}

/// Where a value stands.
#[derive(Clone, Copy, Debug)]
enum Place<'de> {
    /// Behind its key, on the key's line.
    Behind(&'de str),
    /// On the next lines, at this column or further right; or a sequence whose dashes stand right
    /// under the key.
    Below { least: usize, dash: Option<usize> },
}

/// A value that is about to be read.
struct At<'a, 'de> {
    lines: &'a mut Lines<'de>,
    place: Place<'de>,
    depth: u8,
}

/// What a value turns out to be.
enum Shape<'de> {
    Null,
    Plain(&'de str),
    Quoted(&'de str),
    Mapping { column: usize },
    Sequence { column: usize },
    EmptyMapping,
    EmptySequence,
}

impl<'de> At<'_, 'de> {
    fn shape(&mut self) -> Result<Shape<'de>, Declined> {
        let (least, dash) = match self.place {
            Place::Behind(text) => return scalar(text),
            Place::Below { least, dash } => (least, dash),
        };
        let Some(Line { column, content }) = self.lines.peek() else { return Ok(Shape::Null) };
        if is_dash(content) && (column >= least || dash == Some(column)) {
            return Ok(Shape::Sequence { column });
        }
        if column < least {
            return Ok(Shape::Null);
        }
        if split_key(content)?.is_some() {
            return Ok(Shape::Mapping { column });
        }
        self.lines.end_line();
        scalar(content)
    }

    fn mapping(self, column: usize) -> Result<Mapping<'de, Self>, Declined> {
        if self.depth >= MAX_DEPTH {
            return Err(Declined);
        }
        Ok(Mapping { at: self, column, seen: Vec::new(), value: None })
    }
}

fn is_dash(content: &str) -> bool {
    content == "-" || content.starts_with("- ")
}

/// A line's key and what stands behind it; none when the line is no `key: value`.
fn split_key(content: &str) -> Result<Option<(&str, &str)>, Declined> {
    let first = content.bytes().next().unwrap_or_default();
    if let b'"' | b'\'' = first {
        let (key, rest) = quoted(content)?;
        return match rest.strip_prefix(':') {
            Some(rest) if rest.is_empty() || rest.starts_with(' ') => Ok(Some((key, rest.trim()))),
            _ if rest.is_empty() || rest.starts_with(" #") => Ok(None),
            _ => Err(Declined),
        };
    }
    let (key, rest) = match content.split_once(": ") {
        Some((key, rest)) => (key, rest.trim()),
        None => match content.strip_suffix(':') {
            Some(key) => (key, ""),
            None => return Ok(None),
        },
    };
    let simple = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:".contains(&byte);
    let begins = first.is_ascii_alphabetic() || first == b'.';
    if begins && key.bytes().all(simple) && !is_null(key) && !key.ends_with(':') {
        return Ok(Some((key, rest)));
    }
    Err(Declined)
}

/// A text in quotes without escapes, and what follows it.
fn quoted(content: &str) -> Result<(&str, &str), Declined> {
    let is_double = content.starts_with('"');
    let mut parts = content.splitn(3, if is_double { '"' } else { '\'' });
    let (Some(""), Some(text), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(Declined);
    };
    let has_escapes = if is_double { text.contains('\\') } else { rest.starts_with('\'') };
    if has_escapes { Err(Declined) } else { Ok((text, rest)) }
}

/// A scalar, or an empty collection, that ends with its line.
fn scalar(text: &str) -> Result<Shape<'_>, Declined> {
    let first = text.bytes().next().unwrap_or(b'#');
    if let b'"' | b'\'' = first {
        let (text, rest) = quoted(text)?;
        let is_end = rest.is_empty() || is_comment(rest);
        return if is_end { Ok(Shape::Quoted(text)) } else { Err(Declined) };
    }
    if first == b'#' {
        // A comment behind the key: the value stands below, which is not worth the trouble.
        return Err(Declined);
    }
    let text = text.split_once(" #").map_or(text, |(text, _)| text).trim_end_matches(' ');
    match text {
        "{}" => return Ok(Shape::EmptyMapping),
        "[]" => return Ok(Shape::EmptySequence),
        _ => {}
    }
    let is_indicator = b"?:,[]{}&*!|>%@`".contains(&first) || is_dash(text);
    let is_mapping = text.contains(": ") || text.ends_with(':');
    if is_indicator || is_mapping || text == "..." || text.starts_with("--") {
        return Err(Declined);
    }
    Ok(if is_null(text) { Shape::Null } else { Shape::Plain(text) })
}

fn is_comment(rest: &str) -> bool {
    rest.starts_with(' ') && rest.trim_start_matches(' ').starts_with('#')
}

fn is_null(text: &str) -> bool {
    text == "~" || text.eq_ignore_ascii_case("null")
}

/// A plain scalar as the type that it looks like.
fn infer<'de, V: Visitor<'de>>(text: &'de str, visitor: V) -> Result<V::Value, Declined> {
    match text {
        "true" => return visitor.visit_bool(true),
        "false" => return visitor.visit_bool(false),
        _ => {}
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let is_decimal = digits.len() <= 18 && (digits == "0" || !digits.starts_with('0'));
        return match text.parse() {
            Ok(number) if is_decimal && text != "-0" => visitor.visit_i64(number),
            _ => Err(Declined),
        };
    }
    // Numbers and booleans in their other spellings.
    let first = text.bytes().next().unwrap_or_default();
    let is_word = ["true", "false", "yes", "no", "on", "off", "y", "n"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word));
    let is_address = text.matches('.').count() > 1 && first.is_ascii_digit();
    if is_word || !(first.is_ascii_alphabetic() || first == b'/' || is_address) {
        return Err(Declined);
    }
    visitor.visit_borrowed_str(text)
}

impl<'de> Deserializer<'de> for At<'_, 'de> {
    type Error = Declined;

    fn deserialize_any<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Declined> {
        match self.shape()? {
            Shape::Null => visitor.visit_unit(),
            Shape::Plain(text) => infer(text, visitor),
            Shape::Quoted(text) => visitor.visit_borrowed_str(text),
            Shape::Mapping { column } => visitor.visit_map(self.mapping(column)?),
            Shape::Sequence { column } => visitor.visit_seq(self.mapping(column)?),
            Shape::EmptyMapping => visitor.visit_map(Nothing),
            Shape::EmptySequence => visitor.visit_seq(Nothing),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Declined> {
        match self.shape()? {
            Shape::Plain(text) | Shape::Quoted(text) => visitor.visit_borrowed_str(text),
            _ => Err(Declined),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Declined> {
        self.deserialize_string(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Declined> {
        self.deserialize_string(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Declined> {
        let is_null = match self.place {
            Place::Behind(text) => matches!(scalar(text)?, Shape::Null),
            Place::Below { least, dash } => match self.lines.peek() {
                None => true,
                Some(Line { column, content }) => {
                    let is_sequence = is_dash(content) && (column >= least || dash == Some(column));
                    !is_sequence && column < least
                }
            },
        };
        if is_null { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(
        mut self,
        visitor: V,
    ) -> Result<V::Value, Declined> {
        match self.shape()? {
            Shape::Mapping { column } => visitor.visit_map(self.mapping(column)?),
            Shape::Sequence { column } => visitor.visit_seq(self.mapping(column)?),
            _ => visitor.visit_unit(),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum
    }
}

/// A mapping or a sequence in block style: entries that begin in one column.
struct Mapping<'de, A> {
    at: A,
    column: usize,
    /// Keys so far: a second one of a name is an error that the complete reader tells.
    seen: Vec<&'de str>,
    /// Where the value of the last key stands.
    value: Option<Place<'de>>,
}

impl<'de> Mapping<'de, At<'_, 'de>> {
    /// The next line, if it belongs to this collection.
    fn entry(&mut self) -> Result<Option<&'de str>, Declined> {
        match self.at.lines.peek() {
            Some(line) if line.column == self.column => Ok(Some(line.content)),
            // Further right stands only what continues a scalar.
            Some(line) if line.column > self.column => Err(Declined),
            Some(_) | None => Ok(None),
        }
    }

    const fn value_at(&mut self, place: Place<'de>) -> At<'_, 'de> {
        At { lines: &mut *self.at.lines, place, depth: self.at.depth + 1 }
    }
}

impl<'de> MapAccess<'de> for Mapping<'de, At<'_, 'de>> {
    type Error = Declined;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Declined> {
        let Some(content) = self.entry()?.filter(|content| !is_dash(content)) else {
            return Ok(None);
        };
        let (key, rest) = split_key(content)?.ok_or(Declined)?;
        if self.seen.contains(&key) || self.seen.len() >= MAX_KEYS {
            return Err(Declined);
        }
        self.seen.push(key);
        self.at.lines.end_line();
        self.value = Some(if rest.is_empty() {
            Place::Below { least: self.column + 1, dash: Some(self.column) }
        } else {
            Place::Behind(rest)
        });
        seed.deserialize(de::value::BorrowedStrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Declined> {
        let place = self.value.take().ok_or(Declined)?;
        seed.deserialize(self.value_at(place))
    }
}

impl<'de> SeqAccess<'de> for Mapping<'de, At<'_, 'de>> {
    type Error = Declined;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Declined> {
        let Some(content) = self.entry()?.filter(|content| is_dash(content)) else {
            return Ok(None);
        };
        // What follows the dash is a line of its own, further right.
        let rest = content.strip_prefix('-').unwrap_or(content);
        let item = rest.trim_start_matches(' ');
        self.at.lines.line = if item.is_empty() || item.starts_with('#') {
            None
        } else {
            let column = self.column + 1 + rest.len() - item.len();
            Some(Line { column, content: item })
        };
        let place = Place::Below { least: self.column + 1, dash: None };
        seed.deserialize(self.value_at(place)).map(Some)
    }
}

/// `{}` and `[]`.
struct Nothing;

impl<'de> MapAccess<'de> for Nothing {
    type Error = Declined;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        _: K,
    ) -> Result<Option<K::Value>, Declined> {
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, _: V) -> Result<V::Value, Declined> {
        Err(Declined)
    }
}

impl<'de> SeqAccess<'de> for Nothing {
    type Error = Declined;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        _: T,
    ) -> Result<Option<T::Value>, Declined> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
