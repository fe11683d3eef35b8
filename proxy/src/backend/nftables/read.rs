//! Reads a table back from the kernel.

use std::collections::HashMap;

use model::name::Family;
use serde_json::Value as Json;

use super::TABLE;
use super::element::{Key, Value};
use super::program::{self, NftError};
use super::rules::{SCHEMA, family_name};

/// A table as the kernel has it.
#[derive(Debug)]
pub(super) struct Listed {
    /// It is of this schema.
    pub(super) is_ours: bool,
    /// Packets come through it.
    pub(super) is_active: bool,
    /// How many rules it has.
    pub(super) n_rules: usize,
    /// What stands in its maps and sets.
    pub(super) elements: HashMap<Key, Value>,
}

/// Reads the table of a family; `None` if there is none.
pub(super) fn table(family: Family) -> Result<Option<Listed>, NftError> {
    let Some(text) = program::list(family_name(family), TABLE)? else { return Ok(None) };
    let json: Json = serde_json::from_slice(&text).map_err(|error| NftError::Died {
        program: "nft",
        how: format!("a list that is no JSON: {error}"),
    })?;
    Ok(Some(parse(&json)))
}

fn parse(json: &Json) -> Listed {
    let objects = json.get("nftables").and_then(Json::as_array);
    let objects = objects.map(Vec::as_slice).unwrap_or_default();
    let chains: Vec<&str> =
        objects.iter().filter_map(|object| object.get("chain")?.get("name")?.as_str()).collect();
    let mut elements = HashMap::new();
    for object in objects {
        let Some(holder) = object.get("map").or_else(|| object.get("set")) else { continue };
        let name = holder.get("name").and_then(Json::as_str).unwrap_or_default();
        let found = holder.get("elem").and_then(Json::as_array);
        elements.extend(found.into_iter().flatten().filter_map(|one| Key::parse(name, one)));
    }
    Listed {
        is_ours: chains.contains(&SCHEMA),
        is_active: chains.contains(&"prerouting"),
        n_rules: objects.iter().filter(|object| object.get("rule").is_some()).count(),
        elements,
    }
}
