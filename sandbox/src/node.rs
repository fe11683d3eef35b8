//! A node: a network namespace on the fabric, and a cgroup above those of its pods.

use std::{
    ffi::OsStr,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use nix::mount::{MsFlags, mount};

use crate::{
    address::{self, Addresses, FABRIC_LEN_V4, FABRIC_LEN_V6, POD_CIDR_LEN_V4, POD_CIDR_LEN_V6},
    cluster::{Sandbox, check_name},
    error::BuildError,
    link::{self, Hop, Peer},
    netns::{Netns, Packets},
    pod::Pod,
    process::Launch,
    record::{self, at},
};

/// The node's end of the link to the fabric.
const UPLINK: &str = "eth0";

/// Routers between pods and the fabric, whose addresses need no probing: nobody else is there.
const SYSCTLS: [(&str, &str); 4] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
];

/// A node of a [`Sandbox`]. Clones are the same node.
#[derive(Debug, Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    node_idx: usize,
    addresses: Addresses,
    pod_cidr: Addresses,
    netns: Netns,
    fabric: Netns,
    cgroup: PathBuf,
    sandbox_dir: PathBuf,
    bpffs: Arc<Bpffs>,
    /// Ever: no address is given twice.
    n_pods: AtomicUsize,
}

impl Node {
    pub(crate) fn create(
        name: &str,
        node_idx: usize,
        sandbox: &Sandbox,
    ) -> Result<Self, BuildError> {
        let full = || BuildError::Full { kind: "node", name: name.to_owned() };
        let addresses = address::node(node_idx).ok_or_else(full)?;
        let pod_cidr = address::pod_cidr(node_idx).ok_or_else(full)?;
        let netns = create_netns(name, &SYSCTLS)?;
        let cgroup = sandbox.cgroup().join(name);
        record::add_place(sandbox.dir(), name, &netns, &init(&cgroup))?;
        fs::create_dir_all(init(&cgroup)).map_err(at("making cgroup", &cgroup))?;
        let network = |source| BuildError::Network { name: name.to_owned(), source };
        link::configure(sandbox.fabric(), async |links| {
            let peer = Peer { name: UPLINK, netns: &netns };
            links.veth(&port(node_idx), peer, Some(sandbox.bridge())).await
        })
        .map_err(network)?;
        link::configure(&netns, async |links| {
            links.set_up("lo", true).await?;
            links.set_up(UPLINK, true).await?;
            links.address(UPLINK, addresses.v4, FABRIC_LEN_V4).await?;
            links.address(UPLINK, addresses.v6, FABRIC_LEN_V6).await
        })
        .map_err(network)?;
        let inner = Inner {
            name: name.to_owned(),
            node_idx,
            addresses,
            pod_cidr,
            netns,
            fabric: sandbox.fabric().clone(),
            cgroup,
            sandbox_dir: sandbox.dir().to_owned(),
            bpffs: sandbox.bpffs(),
            n_pods: AtomicUsize::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Adds a pod.
    ///
    /// # Errors
    /// When the name is taken or no name, or the kernel refuses.
    pub fn pod(&self, name: &str) -> Result<Pod, BuildError> {
        check_name("pod", name)?;
        Pod::create(name, self.inner.n_pods.fetch_add(1, Ordering::Relaxed), self)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its addresses on the link between the nodes.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.inner.addresses
    }

    /// The networks that its pods' addresses come from, as Kubernetes writes them.
    #[must_use]
    pub fn pod_cidrs(&self) -> [String; 2] {
        let Addresses { v4, v6 } = self.inner.pod_cidr;
        [format!("{v4}/{POD_CIDR_LEN_V4}"), format!("{v6}/{POD_CIDR_LEN_V6}")]
    }

    /// Its cgroup: a program attached here acts on this node alone. It has no processes of its own, so
    /// that an agent can give the pods in it limits.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.inner.cgroup
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.inner.netns
    }

    /// Its directory on a bpffs of the sandbox's own, mounted when first asked for.
    ///
    /// # Errors
    /// When the kernel cannot mount one.
    pub fn bpffs(&self) -> Result<PathBuf, BuildError> {
        let dir = self.inner.bpffs.mounted()?.join(&self.inner.name);
        fs::create_dir_all(&dir).map_err(at("making", &dir))?;
        Ok(dir)
    }

    /// A program to start on the node itself, as a pod with `hostNetwork` would.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Launch {
        let Inner { name, netns, cgroup, .. } = &*self.inner;
        Launch::new(program.as_ref(), name, netns, &init(cgroup))
    }

    /// The other end of its link to the other nodes: a namespace and a device there. What is sent by
    /// that device arrives at the node.
    #[must_use]
    pub fn wire(&self) -> (&Netns, String) {
        (&self.inner.fabric, port(self.inner.node_idx))
    }

    /// Cuts the node off from the others, or connects it again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_connected(&self, connected: bool) -> Result<(), BuildError> {
        // The bridge's end, because a link that goes down takes its own routes along.
        let port = port(self.inner.node_idx);
        link::configure(&self.inner.fabric, async |links| links.set_up(&port, connected).await)
            .map_err(|source| BuildError::Network { name: self.name().to_owned(), source })
    }

    /// What the link between the nodes carried from and to this one.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn packets(&self) -> Result<Packets, BuildError> {
        packets(&self.inner.netns, UPLINK, self.name())
    }

    pub(crate) fn configure(
        &self,
        f: impl AsyncFnOnce(&link::Links) -> Result<(), link::LinkError> + Send,
    ) -> Result<(), BuildError> {
        link::configure(&self.inner.netns, f)
            .map_err(|source| BuildError::Network { name: self.name().to_owned(), source })
    }

    pub(crate) fn add_route_to(&self, other: &Self) -> Result<(), BuildError> {
        let Inner { addresses, pod_cidr, .. } = &*other.inner;
        self.configure(async |links| {
            let via = Hop::Via(IpAddr::V4(addresses.v4), UPLINK);
            links.route(pod_cidr.v4, POD_CIDR_LEN_V4, via).await?;
            let via = Hop::Via(IpAddr::V6(addresses.v6), UPLINK);
            links.route(pod_cidr.v6, POD_CIDR_LEN_V6, via).await
        })
    }

    pub(crate) fn node_idx(&self) -> usize {
        self.inner.node_idx
    }

    pub(crate) fn sandbox_dir(&self) -> &Path {
        &self.inner.sandbox_dir
    }
}

/// A bpffs of the sandbox's own.
#[derive(Debug)]
pub(crate) struct Bpffs {
    path: PathBuf,
    is_mounted: Mutex<bool>,
}

impl Bpffs {
    pub(crate) fn below(sandbox_dir: &Path) -> Self {
        Self { path: sandbox_dir.join("bpf"), is_mounted: Mutex::new(false) }
    }

    fn mounted(&self) -> Result<&Path, BuildError> {
        let mut is_mounted = self.is_mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_mounted {
            fs::create_dir_all(&self.path).map_err(at("making", &self.path))?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("bpf"), &self.path, Some("bpf"), flags, Some("mode=700"))
                .map_err(|errno| at("mounting a bpffs on", &self.path)(errno.into()))?;
            *is_mounted = true;
        }
        Ok(&self.path)
    }
}

/// The bridge's end of a node's link.
fn port(node_idx: usize) -> String {
    format!("node{node_idx}")
}

/// Where a node's own processes are: on version 2 a cgroup has processes, or cgroups with limits.
fn init(cgroup: &Path) -> PathBuf {
    cgroup.join("init")
}

/// A namespace with its settings.
pub(crate) fn create_netns(name: &str, sysctls: &[(&str, &str)]) -> Result<Netns, BuildError> {
    let namespace =
        |doing| move |source| BuildError::Namespace { doing, name: name.to_owned(), source };
    let netns = Netns::create().map_err(namespace("making"))?;
    netns.set_sysctls(sysctls).map_err(namespace("configuring"))?;
    Ok(netns)
}

pub(crate) fn packets(netns: &Netns, link: &str, name: &str) -> Result<Packets, BuildError> {
    let missing = || io::Error::other(format!("no link {link}"));
    netns.packets(link).and_then(|packets| packets.ok_or_else(missing)).map_err(|source| {
        BuildError::Namespace { doing: "counting packets in", name: name.to_owned(), source }
    })
}
