//! A pod: a network namespace behind its node, and a cgroup below its node's.

use std::{
    ffi::OsStr,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use crate::{
    address::{self, Addresses, GATEWAY_V6},
    cgroup,
    error::BuildError,
    link::{self, Hop, LinkError, Links, Peer},
    netns::{Netns, Packets},
    node::{Node, create_netns, packets},
    process::Launch,
    record::{self, at},
};

/// The pod's end of the link to its node.
const LINK: &str = "eth0";

/// Addresses need no probing, and a busy client may use a port again after a second.
const SYSCTLS: [(&str, &str); 3] = [
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv4/tcp_tw_reuse", "1"),
];

/// A pod of a [`Node`].
#[derive(Debug)]
pub struct Pod {
    name: String,
    addresses: Addresses,
    netns: Netns,
    cgroup: PathBuf,
    node: Node,
    node_link: String,
}

impl Pod {
    pub(crate) fn create(name: &str, pod_idx: usize, node: &Node) -> Result<Self, BuildError> {
        let full = || BuildError::Full { kind: "pod", name: name.to_owned() };
        let addresses = address::pod(node.node_idx(), pod_idx).ok_or_else(full)?;
        let gateway_v4 = address::gateway_v4(node.node_idx()).ok_or_else(full)?;
        let netns = create_netns(name, &SYSCTLS)?;
        let cgroup = node.cgroup().join(name);
        record::add_place(node.sandbox_dir(), name, &netns, &cgroup)?;
        fs::create_dir(&cgroup).map_err(at("making cgroup", &cgroup))?;
        let node_link = format!("veth{pod_idx}");
        node.configure(async |links| {
            links.veth(&node_link, Peer { name: LINK, netns: &netns }, None).await?;
            links.address(&node_link, gateway_v4, 32).await?;
            links.address(&node_link, GATEWAY_V6, 64).await?;
            links.route(addresses.v4, 32, Hop::OnLink(&node_link)).await?;
            links.route(addresses.v6, 128, Hop::OnLink(&node_link)).await
        })?;
        let configured = link::configure(&netns, async |links| {
            links.set_up("lo", true).await?;
            links.set_up(LINK, true).await?;
            links.address(LINK, addresses.v4, 32).await?;
            links.address(LINK, addresses.v6, 128).await?;
            add_routes(links, gateway_v4).await
        });
        configured.map_err(|source| BuildError::Network { name: name.to_owned(), source })?;
        Ok(Self { name: name.to_owned(), addresses, netns, cgroup, node: node.clone(), node_link })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The node it is on.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// A program to start in the pod.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Launch {
        Launch::new(program.as_ref(), &self.name, &self.netns, &self.cgroup)
    }

    /// A program to start in the pod's network, but beside its node's cgroup: what is attached to
    /// that cgroup does not see its sockets.
    pub fn command_outside_cgroup(&self, program: impl AsRef<OsStr>) -> Launch {
        let above = self.node.cgroup().parent().unwrap_or_else(|| self.node.cgroup());
        Launch::new(program.as_ref(), &self.name, &self.netns, &record::outside(above))
    }

    /// What the link between the pod and its node carried from and to the pod.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn packets(&self) -> Result<Packets, BuildError> {
        packets(&self.netns, LINK, &self.name)
    }

    /// Ends the pod: its processes are killed, its address is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(self) -> Result<(), BuildError> {
        cgroup::kill(&self.cgroup).map_err(at("killing what runs in", &self.cgroup))?;
        cgroup::remove(&self.cgroup).map_err(at("removing", &self.cgroup))?;
        self.node.configure(async |links| links.remove(&self.node_link).await)?;
        record::remove_place(self.node.sandbox_dir(), &self.name)
    }
}

/// Everything goes through the node: a pod has no neighbours on its link.
async fn add_routes(links: &Links, gateway_v4: Ipv4Addr) -> Result<(), LinkError> {
    links.route(gateway_v4, 32, Hop::OnLink(LINK)).await?;
    links.route(Ipv4Addr::UNSPECIFIED, 0, Hop::Via(gateway_v4.into(), LINK)).await?;
    links.route(Ipv6Addr::UNSPECIFIED, 0, Hop::Via(GATEWAY_V6.into(), LINK)).await
}
