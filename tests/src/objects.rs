//! Kubernetes objects, as YAML text, to changes of the cluster.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use model::cluster::{Change, Kind};
use model::parse::{self, Names, Parsed};
use model::problem::Problem;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What a text of YAML documents says.
#[derive(Debug, Default)]
pub struct Objects {
    changes: Vec<(Kind, Change)>,
    /// What could not be taken.
    pub problems: Vec<Problem>,
}

/// Reads YAML documents.
///
/// # Errors
/// A document that is no object of a kind that is routed by; it says which.
pub fn read(text: &str) -> Result<Objects, String> {
    let mut objects = Objects::default();
    let mut names = Names::default();
    for (idx, document) in documents(text).iter().enumerate() {
        let value: Value = serde_saphyr::from_str(document)
            .map_err(|error| format!("document {}: {error}", idx + 1))?;
        objects
            .take(value, &mut names)
            .map_err(|error| format!("document {}: {error}", idx + 1))?;
    }
    Ok(objects)
}

impl Objects {
    /// Takes one object.
    ///
    /// # Errors
    /// It is no object of a kind that is routed by.
    pub fn take(&mut self, value: Value, names: &mut Names) -> Result<(), String> {
        match value.get("kind").and_then(Value::as_str).unwrap_or_default() {
            "Service" => {
                let parsed = parse::service(&object::<core::Service>(value)?, names);
                self.parsed(Kind::Service, parsed, |service| Change::Service(Arc::new(service)));
            }
            "EndpointSlice" => {
                let parsed = parse::slice(&object::<discovery::EndpointSlice>(value)?, names);
                self.parsed(Kind::EndpointSlice, parsed, |slice| Change::Slice(Arc::new(slice)));
            }
            "Node" => {
                let parsed = parse::node(&object::<core::Node>(value)?, names);
                self.parsed(Kind::Node, parsed, |node| Change::Node(Arc::new(node)));
            }
            other => return Err(format!("{other:?} is no kind that is routed by")),
        }
        Ok(())
    }

    fn parsed<T>(&mut self, kind: Kind, parsed: Parsed<T>, change: impl FnOnce(T) -> Change) {
        self.problems.extend(parsed.problems);
        self.changes.extend(parsed.object.map(|object| (kind, change(object))));
    }

    /// Whether there is an object of that kind.
    pub fn has(&self, kind: Kind) -> bool {
        self.changes.iter().any(|(other, _)| *other == kind)
    }

    /// The objects as they come in a watch.
    pub fn into_changes(self) -> Vec<Change> {
        self.changes.into_iter().map(|(_, change)| change).collect()
    }

    /// The objects as a full list: what is not among them is gone.
    pub fn into_list(self) -> Vec<Change> {
        let mut list = Vec::new();
        for kind in Kind::ALL {
            list.push(Change::ListBegins(kind));
            let of_kind = self.changes.iter().filter(|(other, _)| *other == kind);
            list.extend(of_kind.map(|(_, change)| change.clone()));
            list.push(Change::ListDone(kind));
        }
        list
    }
}

fn object<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" {
            documents.push(String::new());
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    let is_content = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    documents.retain(|document| document.lines().any(is_content));
    documents
}
