//! Names that many objects share, kept once, and which names can exist at all.

use std::collections::HashSet;
use std::sync::Arc;

/// What a DNS label is, as a remedy.
pub(super) const LABEL: &str =
    "use at most 63 lower-case letters, digits and '-', beginning and ending with no '-'";
/// What a DNS subdomain is, as a remedy.
pub(super) const SUBDOMAIN: &str =
    "use at most 253 lower-case letters, digits, '-' and '.', each part no '-' at its ends";

/// Strings seen before, so that a node's name that ten thousand endpoints repeat is kept once.
#[derive(Debug, Default)]
pub struct Names {
    seen: HashSet<Arc<str>>,
    /// How many there may be before those that nobody else holds are dropped.
    bound: usize,
}

impl Names {
    /// The shared copy of a string.
    pub fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.seen.get(text) {
            return Arc::clone(known);
        }
        if self.seen.len() >= self.bound {
            self.seen.retain(|name| Arc::strong_count(name) > 1);
            self.bound = (self.seen.len() * 2).max(1024);
        }
        let new: Arc<str> = text.into();
        self.seen.insert(Arc::clone(&new));
        new
    }

    /// [`Names::share`] of what is there and not empty.
    pub(super) fn share_some(&mut self, text: Option<&str>) -> Option<Arc<str>> {
        text.filter(|text| !text.is_empty()).map(|text| self.share(text))
    }
}

/// A DNS label (RFC 1123).
pub(super) fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().copied().is_some_and(plain)
        && bytes.last().copied().is_some_and(plain)
        && bytes.iter().all(|&byte| plain(byte) || byte == b'-')
}

/// A DNS subdomain (RFC 1123), as the API uses the word: parts may be longer than DNS labels.
pub(super) fn is_subdomain(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= 253
        && text.split('.').all(|part| {
            let bytes = part.as_bytes();
            bytes.first().copied().is_some_and(plain)
                && bytes.last().copied().is_some_and(plain)
                && bytes.iter().all(|&byte| plain(byte) || byte == b'-')
        })
}
