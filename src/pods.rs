//! The flags of the node agent, and its start.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ::node::{Overlay, RuntimeChoice};
use anyhow::Context;
use model::source::kube::{Connection, KubeConfig};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{SockaddrIn, SockaddrIn6};
use tokio_util::sync::CancellationToken;

use crate::node_args::SourceArgs;

/// What runs pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Runtime {
    /// Processes in namespaces; nothing needs to be installed.
    Process,
    /// containerd, through its CRI socket.
    Containerd,
}

/// What leads to other nodes' pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OverlayArg {
    /// Routes through nodes that are neighbours on one link.
    Routes,
    /// VXLAN (UDP port 4789), over whatever network is between the nodes.
    Vxlan,
}

/// The node agent's flags, named as the kubelet's where it has them.
#[derive(Debug, clap::Args)]
pub(crate) struct PodArgs {
    /// Run this node's pods as well: register the node, and be its agent.
    #[arg(long)]
    run_pods: bool,
    /// Join the cluster whose API server is here: what `fairlead control --join-out` wrote down. The
    /// node's own kubeconfig is kept in --root-dir; one that is there is taken as it is.
    #[arg(
        long,
        value_name = "HOST:PORT",
        requires_all = ["run_pods", "token", "ca_hash"],
        conflicts_with_all = ["kubeconfig", "master", "objects"]
    )]
    join: Option<String>,
    /// The token to join with.
    #[arg(long, value_name = "TOKEN", requires = "join")]
    token: Option<String>,
    /// The hash of the public key of the cluster's certificate authority.
    #[arg(long, value_name = "sha256:HEX", requires = "join")]
    ca_hash: Option<String>,
    /// What runs them.
    #[arg(long, value_enum, default_value_t = Runtime::Process, requires = "run_pods")]
    runtime: Runtime,
    /// Where containerd listens, for --runtime=containerd.
    #[arg(
        long,
        value_name = "SOCKET",
        default_value = "unix:///run/containerd/containerd.sock",
        requires = "run_pods"
    )]
    container_runtime_endpoint: String,
    /// Where pods, their volumes and logs are kept.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairlead/pods")]
    root_dir: PathBuf,
    /// The ranges of pods' addresses, one a family; by default, those of the Node object.
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    pod_cidr: Vec<String>,
    /// What leads to other nodes' pods; the same on every node.
    #[arg(long, value_enum, default_value_t = OverlayArg::Routes, requires = "run_pods")]
    overlay: OverlayArg,
    /// The node's own addresses, one a family; by default, the first that its links have.
    #[arg(long, value_name = "ADDR,…", value_delimiter = ',')]
    node_ip: Vec<IpAddr>,
    /// Where pods ask for names.
    #[arg(long, value_name = "ADDR,…", value_delimiter = ',')]
    cluster_dns: Vec<IpAddr>,
    /// Labels of the Node object.
    #[arg(long, value_name = "KEY=VALUE,…", value_delimiter = ',')]
    node_labels: Vec<String>,
    /// Where logs are read and commands run from; by default, port 10250 of the node's address.
    #[arg(long, value_name = "ADDR:PORT")]
    agent_listen: Option<SocketAddr>,
    /// Pods at once, at most.
    #[arg(long, value_name = "N", default_value_t = 110)]
    max_pods: u32,
    /// Processes at once in one pod, at most.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pod_max_pids: u64,
}

/// The node as its other flags have it.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) source: &'a SourceArgs,
    pub(crate) node_name: &'a str,
    /// The cgroup v2 directory above every pod.
    pub(crate) cgroup: &'a Path,
    /// The domain of the cluster's names.
    pub(crate) domain: &'a str,
    /// Where this node answers them for others.
    pub(crate) names: Vec<SocketAddr>,
}

impl PodArgs {
    /// Whether there is anything to run.
    pub(crate) const fn are_run(&self) -> bool {
        self.run_pods
    }

    /// Where pods ask for names; none is where Service kube-system/kube-dns is.
    pub(crate) fn cluster_dns(&self) -> &[IpAddr] {
        &self.cluster_dns
    }

    /// Joins the cluster, if one is named: where its objects come from then.
    ///
    /// # Errors
    /// The server is not the one that is meant, or does not take the token.
    pub(crate) async fn joined(&self, source: &SourceArgs) -> anyhow::Result<SourceArgs> {
        let mut source = source.clone();
        if let (Some(server), Some(token), Some(ca_hash)) = (&self.join, &self.token, &self.ca_hash)
        {
            let kubeconfig = self.root_dir.join("kubeconfig");
            let invitation = ::node::Invitation {
                server: server.clone(),
                token: token.clone(),
                ca_hash: ca_hash.clone(),
            };
            ::node::join(&invitation, &kubeconfig).await?;
            source.kubeconfig = Some(kubeconfig);
        }
        Ok(source)
    }

    /// Runs the agent, if it is asked for, until told to stop.
    ///
    /// # Errors
    /// The flags mean nothing, or something that every pod needs is not to be had.
    pub(crate) async fn run(
        &self,
        place: &Place<'_>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        if !self.run_pods {
            stop.cancelled().await;
            return Ok(());
        }
        let config = self.config(place)?;
        let source = place.source;
        let kube =
            KubeConfig { kubeconfig: source.kubeconfig.clone(), master: source.master.clone() };
        let connection = Connection::find(&kube).await?;
        Ok(Box::pin(::node::run(config, connection.client().clone(), stop)).await?)
    }

    /// The node's own addresses, one a family.
    ///
    /// # Errors
    /// They cannot be looked up.
    pub(crate) fn addresses(&self) -> anyhow::Result<Vec<IpAddr>> {
        if self.node_ip.is_empty() { own_addresses() } else { Ok(self.node_ip.clone()) }
    }

    fn runtime(&self) -> anyhow::Result<RuntimeChoice> {
        let endpoint = &self.container_runtime_endpoint;
        Ok(match self.runtime {
            Runtime::Process => RuntimeChoice::Process,
            Runtime::Containerd => {
                let socket = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
                anyhow::ensure!(
                    socket.starts_with('/'),
                    "--container-runtime-endpoint={endpoint}: write unix:///PATH"
                );
                RuntimeChoice::Containerd(socket.into())
            }
        })
    }

    fn config(&self, place: &Place<'_>) -> anyhow::Result<::node::Config> {
        let &Place { source, node_name, cgroup, domain, ref names } = place;
        anyhow::ensure!(
            source.objects.is_none(),
            "--run-pods needs an API server, and --objects names a folder: use --kubeconfig"
        );
        anyhow::ensure!(
            nix::unistd::geteuid().is_root(),
            "--run-pods makes namespaces and cgroups: run it as root"
        );
        let addresses = self.addresses()?;
        let first = *addresses
            .first()
            .context("no link has an address of its own: name one with --node-ip")?;
        let parse = |cidr: &String| {
            cidr.parse().with_context(|| format!("--pod-cidr={cidr}: write 10.244.0.0/24"))
        };
        let label = |label: &String| {
            let (key, value) = label
                .split_once('=')
                .with_context(|| format!("--node-labels={label}: write KEY=VALUE"))?;
            Ok((key.to_owned(), value.to_owned()))
        };
        Ok(::node::Config {
            node_name: node_name.to_owned(),
            listen: self.agent_listen.unwrap_or_else(|| (first, 10250).into()),
            addresses,
            overlay: match self.overlay {
                OverlayArg::Routes => Overlay::Routes,
                OverlayArg::Vxlan => Overlay::Vxlan,
            },
            runtime: self.runtime()?,
            pod_cidrs: self.pod_cidr.iter().map(parse).collect::<anyhow::Result<_>>()?,
            root: self.root_dir.clone(),
            cgroup: cgroup.to_owned(),
            cluster_dns: self.cluster_dns.clone(),
            names: names.clone(),
            cluster_domain: domain.to_owned(),
            labels: self.node_labels.iter().map(label).collect::<anyhow::Result<_>>()?,
            max_pods: self.max_pods,
            max_pids: self.pod_max_pids,
        })
    }
}

/// The first address of each family that others can reach, IPv4 first.
fn own_addresses() -> anyhow::Result<Vec<IpAddr>> {
    let (mut v4, mut v6) = (None, None);
    for one in getifaddrs().context("asking for the node's addresses; or give --node-ip")? {
        // The pods' bridge is not where others reach the node.
        if one.interface_name.starts_with("fairlead") {
            continue;
        }
        let Some(address) = one.address else { continue };
        if let Some(address) = address.as_sockaddr_in().map(SockaddrIn::ip)
            && !address.is_loopback()
            && !address.is_link_local()
        {
            v4.get_or_insert(IpAddr::V4(address));
        } else if let Some(address) = address.as_sockaddr_in6().map(SockaddrIn6::ip)
            && !address.is_loopback()
            && !address.is_unicast_link_local()
        {
            v6.get_or_insert(IpAddr::V6(address));
        }
    }
    Ok(v4.into_iter().chain(v6).collect())
}
