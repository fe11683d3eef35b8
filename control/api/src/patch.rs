//! The four ways of changing an object in part.

pub(crate) mod apply;
pub(crate) mod lists;
pub(crate) mod managed;
mod strategic;

use serde_json::Value;

use crate::status::{Result, Status};

/// A patch, by the content type it came with.
#[derive(Clone, Debug)]
pub(crate) enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
    /// Server-side apply: handled with the fields' owners, in [`apply`].
    Apply(Value),
}

/// The content types that PATCH takes.
pub(crate) const TYPES: &str = "application/json-patch+json, application/merge-patch+json, \
    application/strategic-merge-patch+json, application/apply-patch+yaml";

/// The operations one JSON patch may have; upstream's limit.
const MAX_OPERATIONS: usize = 10_000;

impl Patch {
    pub(crate) fn parse(content_type: &str, body: &[u8]) -> Result<Self> {
        let bad = |error: serde_json::Error| {
            Status::bad_request(format!("error decoding patch: {error}"))
        };
        let object = || -> Result<Value> {
            let value: Value = serde_json::from_slice(body).map_err(bad)?;
            if value.is_object() {
                Ok(value)
            } else {
                Err(Status::bad_request("error decoding patch: expected an object"))
            }
        };
        match content_type {
            "application/json-patch+json" => {
                let patch: json_patch::Patch = serde_json::from_slice(body).map_err(bad)?;
                if patch.0.len() > MAX_OPERATIONS {
                    let message = format!(
                        "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                        patch.0.len()
                    );
                    return Err(Status::new(413, "RequestEntityTooLarge", message));
                }
                Ok(Self::Json(patch))
            }
            "application/merge-patch+json" => object().map(Self::Merge),
            "application/strategic-merge-patch+json" => object().map(Self::Strategic),
            "application/apply-patch+yaml" => {
                crate::server::body::parse_yaml(body).map(Self::Apply)
            }
            _ => Err(Status::unsupported_media_type(TYPES)),
        }
    }

    /// The object as patched. Not for [`Patch::Apply`], which leaves it as it is.
    pub(crate) fn apply_to(&self, value: &mut Value) -> Result<()> {
        match self {
            Self::Json(patch) => json_patch::patch(value, patch).map_err(|error| {
                Status::new(
                    422,
                    "Invalid",
                    format!(
                        "the server rejected our request due to an error in our request: {error}"
                    ),
                )
            }),
            Self::Merge(patch) => {
                json_patch::merge(value, patch);
                Ok(())
            }
            Self::Strategic(patch) => strategic::merge(value, patch),
            Self::Apply(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
