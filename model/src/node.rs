//! This node: the fields of its Node object that routing depends on.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// The Node this process serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `status.addresses` of type `InternalIP`, then `ExternalIP`.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// `metadata.deletionTimestamp` is set; matters to `/healthz` only (KEP-3836).
    pub deleting: bool,
    /// The taint `ToBeDeletedByClusterAutoscaler`; matters to `/healthz` only.
    pub to_be_deleted: bool,
}
