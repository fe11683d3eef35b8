//! What could not be taken as it stands: left out, counted, and told to a person.

use std::fmt;
use std::sync::Arc;

/// One object, or a part of one, that is left out, and why. Its neighbours are not affected.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// The object: `Service shop/web`, or a file and document where the object has no name.
    pub object: Arc<str>,
    /// The field, as the API spells its path (`spec.ports[0].port`); empty for the whole object.
    pub field: Arc<str>,
    /// What is wrong, with the value, and what to do.
    pub reason: Arc<str>,
}

impl Problem {
    /// A problem with a field of an object.
    pub fn new(
        object: impl fmt::Display,
        field: impl Into<Arc<str>>,
        reason: impl fmt::Display,
    ) -> Self {
        Self {
            object: object.to_string().into(),
            field: field.into(),
            reason: reason.to_string().into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "{}: {}", self.object, self.reason)
        } else {
            write!(f, "{}: {}: {}", self.object, self.field, self.reason)
        }
    }
}
