//! Fields that a body names twice: JSON allows it, and the last one silently wins.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The paths of the fields that are named more than once, as upstream writes them.
pub(super) fn duplicates(body: &[u8]) -> Vec<String> {
    let found = RefCell::new(Vec::new());
    let mut json = serde_json::Deserializer::from_slice(body);
    let look = Look { path: &Path::Root, found: &found };
    if look.deserialize(&mut json).is_err() {
        // It has been parsed before; whatever this is, another check tells of it.
        return Vec::new();
    }
    found.into_inner()
}

/// Where in the body one is.
enum Path<'p> {
    Root,
    Field(&'p Self, &'p str),
    Index(&'p Self, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Self::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

#[derive(Clone, Copy)]
struct Look<'p> {
    path: &'p Path<'p>,
    found: &'p RefCell<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for Look<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Look<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen: HashSet<String> = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = Path::Field(self.path, &key);
            if seen.contains(&key) {
                self.found.borrow_mut().push(path.to_string());
                map.next_value::<IgnoredAny>()?;
            } else {
                map.next_value_seed(Look { path: &path, found: self.found })?;
                seen.insert(key);
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        for index in 0.. {
            let path = Path::Index(self.path, index);
            if list.next_element_seed(Look { path: &path, found: self.found })?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::duplicates;

    #[test]
    fn a_field_named_twice_is_told_by_its_path() {
        let body = br#"{"a": 1, "b": [{"c": null}, {"c": 1.5, "c": {"c": 2}}], "a": "x", "d": -1}"#;
        assert_eq!(duplicates(body), ["b[1].c", "a"]);
        assert!(duplicates(br#"{"a": {"b": true}, "b": {"a": []}}"#).is_empty());
    }
}
