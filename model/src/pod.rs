//! Pods of this node, and Namespaces, as far as routing asks for them.

use std::net::IpAddr;
use std::sync::Arc;

use crate::host_port::HostPorts;
use crate::name::NamespacedName;

/// The annotation of a Pod, or of its Namespace, that says whether its sockets are translated.
pub const SOCKET_LB: &str = "fairlead.dev/socket-lb";

/// A pod of this node that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.name`.
    pub name: NamespacedName,
    /// `metadata.uid`: another pod of the same name has another one.
    pub uid: Arc<str>,
    /// The node that runs it, once there is one.
    pub node_name: Option<Arc<str>>,
    /// `spec.hostNetwork`: its sockets are the node's.
    pub host_network: bool,
    /// `status.podIPs`; none as yet while it is started.
    pub addresses: Vec<IpAddr>,
    /// What it says itself of its sockets.
    pub socket_lb: Option<SocketLb>,
    /// The node's ports that lead to it; most have none.
    pub host_ports: Option<HostPorts>,
}

/// A Namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// What it says of its pods' sockets.
    pub socket_lb: Option<SocketLb>,
}

impl Namespace {
    /// One that says nothing.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), socket_lb: None }
    }
}

/// What [`SOCKET_LB`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketLb {
    /// `on`: as all others, whatever the Namespace says.
    On,
    /// `off`: left alone, so that whoever looks at the pod's sockets and packets finds the address that was named.
    Off,
}
