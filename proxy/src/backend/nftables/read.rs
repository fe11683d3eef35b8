//! Reads a table back from the kernel, element by element: as a tree of JSON it would take a hundred times what is
//! kept of it.

use std::fmt;
use std::io::{BufReader, Read};

use model::name::Family;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;

use super::TABLE;
use super::element::Key;
use super::held::Held;
use super::program::{self, NftError};
use super::rules::{SCHEMA, family_name};

/// A table as the kernel has it.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// It is of this schema.
    pub(super) is_ours: bool,
    /// Packets come through it.
    pub(super) is_active: bool,
    /// How many rules it has.
    pub(super) n_rules: usize,
    /// What stands in its maps and sets.
    pub(super) elements: Held,
}

/// Reads the table of a family; `None` if there is none.
pub(super) fn table(family: Family) -> Result<Option<Listed>, NftError> {
    let listed = program::list(family_name(family), TABLE, parse)?;
    listed.transpose().map_err(|error| NftError::Died {
        program: "nft",
        how: format!("a list that is no JSON: {error}"),
    })
}

fn parse(text: impl Read) -> Result<Listed, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(text));
    let mut listed = Listed::default();
    Whole(&mut listed).deserialize(&mut json)?;
    json.end()?;
    Ok(listed)
}

/// `{"nftables": [ ... ]}`
struct Whole<'a>(&'a mut Listed);

/// `[{"chain": { ... }}, {"map": { ... }}, ...]`
struct Objects<'a>(&'a mut Listed);

/// `{"chain": { ... }}`
struct Object<'a>(&'a mut Listed);

/// `{"name": ..., "elem": [ ... ]}`
struct Holder<'a>(&'a mut Listed);

/// `[ ... ]`, of the map or set of that name.
struct Elements<'a>(&'a mut Listed, &'a str);

macro_rules! seed {
    ($name:ident, $read:ident, $what:literal, $visit:item) => {
        impl<'de> DeserializeSeed<'de> for $name<'_> {
            type Value = ();

            fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
                json.$read(self)
            }
        }

        impl<'de> Visitor<'de> for $name<'_> {
            type Value = ();

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($what)
            }

            $visit
        }
    };
}

seed!(
    Whole,
    deserialize_map,
    "a list of nft",
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "nftables" => map.next_value_seed(Objects(&mut *self.0))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
);

seed!(
    Objects,
    deserialize_seq,
    "objects",
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Object(&mut *self.0))?.is_some() {}
        Ok(())
    }
);

seed!(
    Object,
    deserialize_map,
    "an object",
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(kind) = map.next_key::<String>()? {
            match kind.as_str() {
                "map" | "set" => map.next_value_seed(Holder(&mut *self.0))?,
                "chain" => {
                    let chain: Json = map.next_value()?;
                    let name = chain.get("name").and_then(Json::as_str);
                    self.0.is_ours |= name == Some(SCHEMA);
                    self.0.is_active |= name == Some("prerouting");
                }
                "rule" => {
                    map.next_value::<IgnoredAny>()?;
                    self.0.n_rules += 1;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
);

seed!(
    Holder,
    deserialize_map,
    "a map or set",
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut name = String::new();
        // nft tells the name before the elements; whoever does not is heard as well.
        let mut early: Vec<Json> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "name" => name = map.next_value()?,
                "elem" if name.is_empty() => early = map.next_value()?,
                "elem" => map.next_value_seed(Elements(&mut *self.0, &name))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        early.iter().for_each(|element| self.0.take(&name, element));
        Ok(())
    }
);

seed!(
    Elements,
    deserialize_seq,
    "elements",
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(element) = seq.next_element::<Json>()? {
            self.0.take(self.1, &element);
        }
        Ok(())
    }
);

impl Listed {
    /// An element of a map or set, if it is any that we write.
    fn take(&mut self, holder: &str, element: &Json) {
        if let Some((key, value)) = Key::parse(holder, element) {
            self.elements.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::element::Value;
    use super::*;

    #[test]
    fn a_list_is_read_whatever_the_order_of_its_keys() {
        let chain = |name| format!(r#"{{"chain": {{"family": "ip", "name": "{name}"}}}}"#);
        for holder in [
            r#""name": "targets", "type": "classid", "elem": [["0:7", {"concat": ["10.0.0.1", 80]}]]"#,
            r#""elem": [["0:7", {"concat": ["10.0.0.1", 80]}], "what"], "name": "targets""#,
        ] {
            let objects = [
                r#"{"metainfo": {"version": "1.0.6"}}"#.to_owned(),
                chain(SCHEMA),
                format!(r#"{{"map": {{{holder}}}}}"#),
                r#"{"set": {"name": "hairpin"}}"#.to_owned(),
                r#"{"rule": {"expr": [{"drop": null}]}}"#.to_owned(),
            ];
            let text = format!(r#"{{"nftables": [{}]}}"#, objects.join(", "));
            let listed = parse(text.as_bytes()).unwrap();
            assert!(listed.is_ours && !listed.is_active);
            assert_eq!(listed.n_rules, 1);
            let target = Value::Socket("10.0.0.1:80".parse().unwrap());
            assert_eq!(listed.elements, Held::from_iter([(Key::Target(7), target)]));
        }
        let active = format!(r#"{{"nftables": [{}]}}"#, chain("prerouting"));
        assert!(parse(active.as_bytes()).unwrap().is_active);
        parse(&b"{\"nftables\": ["[..]).unwrap_err();
    }
}
