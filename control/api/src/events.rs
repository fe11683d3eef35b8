//! Events have two faces, core/v1 and events.k8s.io/v1, over one stored object: the core one.

use k8s_openapi::api::events::v1::Event;
use serde_json::{Value, json};

use crate::object::{object, set, unset};

/// Events as `events.k8s.io/v1` serves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View;

/// Core's name of a field, and the view's.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

impl View {
    pub(crate) fn of_group(group: &str, plural: &str) -> Option<Self> {
        (group == "events.k8s.io" && plural == "events").then_some(Self)
    }

    pub(crate) fn group(self) -> &'static str {
        "events.k8s.io"
    }

    pub(crate) fn api_version(self) -> &'static str {
        "events.k8s.io/v1"
    }

    pub(crate) fn decode(self, value: Value) -> serde_json::Result<Value> {
        serde_json::to_value(serde_json::from_value::<Event>(value)?)
    }

    pub(crate) fn to_core(self, mut event: Value) -> Value {
        for (core, view) in RENAMED {
            if let Some(value) = unset(&mut event, view) {
                set(&mut event, core, value);
            }
        }
        set(&mut event, "apiVersion", json!("v1"));
        object(&mut event).entry("involvedObject").or_insert_with(|| json!({}));
        event
    }

    pub(crate) fn of_core(self, mut event: Value) -> Value {
        for (core, view) in RENAMED {
            if let Some(value) = unset(&mut event, core) {
                set(&mut event, view, value);
            }
        }
        set(&mut event, "apiVersion", json!(self.api_version()));
        event
    }
}

/// A field selector on the view's names, in core's.
pub(crate) fn core_fields(selector: &str) -> String {
    selector
        .replace("regarding.", "involvedObject.")
        .replace("reportingController", "reportingComponent")
}
