//! Ports of this node that lead to one of its pods (`hostPort`): a Service that no other node knows,
//! and that has no name.

use std::sync::Arc;

use crate::endpoint::EndpointSlice;
use crate::name::NamespacedName;
use crate::service::Service;

/// No object's name begins with this.
const PREFIX: &str = "pod/";

/// One pod's host ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts {
    /// Of type `HostPort`, with the node's numbers as its ports'.
    pub service: Arc<Service>,
    /// The pod's own addresses and numbers, a slice a family.
    pub slices: Vec<Arc<EndpointSlice>>,
}

/// What a pod's host ports go by among Services.
pub fn name(pod: &NamespacedName) -> NamespacedName {
    NamespacedName::new(Arc::clone(&pod.namespace), format!("{PREFIX}{}", pod.name))
}

/// How whoever is routed by a name is called in a problem: `Service shop/web`, `Pod shop/web-0`.
pub fn title(name: &NamespacedName) -> String {
    match name.name.strip_prefix(PREFIX) {
        Some(pod) => format!("Pod {}/{pod}", name.namespace),
        None => format!("Service {name}"),
    }
}
