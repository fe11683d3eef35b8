//! From the API's objects to ours: pure, total, and strict about nothing but the part at fault.
//!
//! ```text
//!  k8s-openapi object  ──▶  Parsed { object, problems }
//! ```
//!
//! What is absent gets the default that the API server would set, because objects read from files
//! have met no API server. What is invalid is left out and becomes a [`Problem`](crate::problem::Problem) that names field,
//! value and remedy; the rest of the object stays.

mod address;
mod endpoints;
mod fault;
mod names;
mod node;
mod pod;
mod service;
mod slice;

pub use address::{parse_ip, parse_net};
pub use endpoints::endpoints;
pub use fault::Parsed;
pub use names::Names;
pub use node::{namespace, node};
pub use pod::pod;
pub use service::service;
pub use slice::slice;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::name::NamespacedName;
use crate::parse::fault::Faults;

/// The namespace of an object that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// The name of a namespaced object, or a fault if no such object can exist.
fn object_name(
    metadata: &ObjectMeta,
    names: &mut Names,
    faults: &mut Faults,
) -> Option<NamespacedName> {
    let namespace = metadata
        .namespace
        .as_deref()
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or(DEFAULT_NAMESPACE);
    let name = metadata.name.as_deref().unwrap_or_default();
    if !names::is_label(namespace) {
        faults.add("metadata.namespace", namespace, "no namespace's name", names::LABEL);
        return None;
    }
    if !names::is_subdomain(name) {
        faults.add("metadata.name", name, "no object's name", names::SUBDOMAIN);
        return None;
    }
    Some(NamespacedName { namespace: names.share(namespace), name: names.share(name) })
}

/// How an object is called in a problem: `Service shop/web`.
pub fn object_title(kind: &str, metadata: &ObjectMeta) -> String {
    let namespace = metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let name = metadata.name.as_deref().unwrap_or_default();
    format!("{kind} {}/{}", fault::shortened(namespace), fault::shortened(name))
}
