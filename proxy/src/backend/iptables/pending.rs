//! What the next transaction changes. `[pure]`

use std::collections::BTreeMap;
use std::ops::Range;

use super::rules::Key;
use super::tables::Digest;

/// Chains and rules that change. The texts of chains stand in one piece of memory, which is given back as such:
/// each by itself, between what stays, they would leave holes as large as all that is known of a Service.
#[derive(Debug, Default)]
pub(super) struct Pending {
    changes: BTreeMap<Key, Option<Content>>,
    texts: String,
}

/// What a chain will have.
#[derive(Clone, Debug)]
struct Content {
    text: Range<usize>,
    digest: Digest,
}

impl Pending {
    /// Takes in what a chain or rule becomes; `None` removes it.
    pub(super) fn set(&mut self, key: Key, value: Option<(&str, Digest)>) {
        let content = value.map(|(text, digest)| {
            let begin = self.texts.len();
            self.texts.push_str(text);
            Content { text: begin..self.texts.len(), digest }
        });
        self.changes.insert(key, content);
    }

    /// A chain or rule stays as it is.
    pub(super) fn unset(&mut self, key: &Key) {
        self.changes.remove(key);
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether nothing changes.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether a chain or rule changes.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.changes.contains_key(key)
    }

    /// Whether a chain or rule goes.
    pub(super) fn removes(&self, key: &Key) -> bool {
        matches!(self.changes.get(key), Some(None))
    }

    /// Every change, ordered.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, Option<&str>)> {
        self.changes.iter().map(|(key, content)| {
            let text = |content: &Content| self.texts.get(content.text.clone()).unwrap_or_default();
            (key, content.as_ref().map(text))
        })
    }

    /// What each will be, as far as it matters whether others are the same.
    pub(super) fn into_digests(self) -> impl Iterator<Item = (Key, Option<Digest>)> {
        let changes = self.changes.into_iter();
        changes.map(|(key, content)| (key, content.map(|content| content.digest)))
    }
}
