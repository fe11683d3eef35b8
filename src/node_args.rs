//! The flags that say where the objects come from and what this node is, shared by subcommands.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Args;
use model::source::kube::{ConnectError, Connection, KubeConfig, Selection, Watched};
use model::watch::Watch;
use proxy::config::{NodeConfig, NodeFlags};

/// Where the objects come from.
#[derive(Clone, Debug, Args)]
pub(crate) struct SourceArgs {
    /// A folder of Kubernetes YAML, watched, in the place of an API server.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "master"])]
    pub(crate) objects: Option<PathBuf>,
    /// How to reach the API server; in a pod, its service account by default.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The API server's URL, in the place of the kubeconfig's.
    #[arg(long, value_name = "URL")]
    pub(crate) master: Option<String>,
}

/// kube-proxy's flags on which a plan depends.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// The name of this node's Node object; the host name when absent.
    #[arg(long, value_name = "NODE", default_value = "")]
    pub(crate) hostname_override: String,
    /// What programs the kernel.
    #[arg(long, value_name = "MODE", default_value = "", hide_default_value = true)]
    pub(crate) proxy_mode: String,
    /// The node's own address and primary family, when it is not the Node object's first.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub(crate) bind_address: String,
    /// How this node's pods are known: ClusterCIDR, NodeCIDR, BridgeInterface or
    /// InterfaceNamePrefix.
    #[arg(long, value_name = "MODE", default_value = "", hide_default_value = true)]
    pub(crate) detect_local_mode: String,
    /// The pods' address ranges, at most one a family, comma-separated.
    #[arg(long, value_name = "CIDRS", default_value = "", hide_default_value = true)]
    pub(crate) cluster_cidr: String,
    /// The pods' bridge, for BridgeInterface.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(crate) pod_bridge_interface: String,
    /// How the pods' interfaces begin, for InterfaceNamePrefix.
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub(crate) pod_interface_name_prefix: String,
    /// Masquerade everything that is sent to a cluster IP.
    #[arg(long)]
    pub(crate) masquerade_all: bool,
    /// Which of the node's addresses serve node ports: CIDRs, primary, localhost, all.
    #[arg(long, value_name = "LIST", default_value = "", hide_default_value = true)]
    pub(crate) nodeport_addresses: String,
    /// Serve node ports on 127.0.0.1, in the modes that can.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) iptables_localhost_nodeports: bool,
    /// Feature gates, as name=true or name=false, comma-separated.
    #[arg(long, value_name = "LIST", default_value = "", hide_default_value = true)]
    pub(crate) feature_gates: String,
    /// The ranges in which external IPs are honoured, comma-separated.
    #[arg(long, value_name = "CIDRS", default_value = "", hide_default_value = true)]
    pub(crate) external_ip_cidrs: String,
    /// The ranges that cluster IPs come from, comma-separated.
    #[arg(long, value_name = "CIDRS", default_value = "", hide_default_value = true)]
    pub(crate) service_cidrs: String,
}

impl NodeArgs {
    /// What the flags mean.
    ///
    /// # Errors
    /// A value that means nothing.
    pub(crate) fn meant(&self) -> anyhow::Result<NodeConfig> {
        Ok(self.as_typed()?.meant()?)
    }

    /// The flags as the proxy's configuration takes them.
    ///
    /// # Errors
    /// No name was given, and the host has none.
    pub(crate) fn as_typed(&self) -> anyhow::Result<NodeFlags> {
        let hostname_override = if self.hostname_override.is_empty() {
            host_name()?
        } else {
            self.hostname_override.clone()
        };
        Ok(NodeFlags {
            hostname_override,
            proxy_mode: self.proxy_mode.clone(),
            bind_address: self.bind_address.clone(),
            detect_local_mode: self.detect_local_mode.clone(),
            cluster_cidr: self.cluster_cidr.clone(),
            pod_bridge_interface: self.pod_bridge_interface.clone(),
            pod_interface_name_prefix: self.pod_interface_name_prefix.clone(),
            masquerade_all: self.masquerade_all,
            nodeport_addresses: self.nodeport_addresses.clone(),
            no_localhost_nodeports: !self.iptables_localhost_nodeports,
            feature_gates: self.feature_gates.clone(),
            external_ip_cidrs: self.external_ip_cidrs.clone(),
            service_cidrs: self.service_cidrs.clone(),
        })
    }
}

impl SourceArgs {
    /// Begins to watch the folder, or else what routing needs of the API server.
    ///
    /// # Errors
    /// It cannot be watched.
    pub(crate) async fn watch(&self, node_name: &str) -> anyhow::Result<Watch> {
        self.watch_selected(node_name, Selection::for_proxy()).await
    }

    /// The same, and what says whose sockets are left alone, where that may be asked for.
    ///
    /// # Errors
    /// It cannot be watched.
    pub(crate) async fn watch_with_socket_lb(&self, node_name: &str) -> anyhow::Result<Watch> {
        self.watch_selected(node_name, Selection::for_proxy().with_socket_lb()).await
    }

    /// Begins to watch what names are made of: Services and slices of every kind, and namespaces.
    ///
    /// # Errors
    /// It cannot be watched.
    pub(crate) async fn watch_everything(&self, node_name: &str) -> anyhow::Result<Watch> {
        self.watch_selected(node_name, Selection::everything()).await
    }

    /// The same, and this node's pods: where `runs_pods`, its ports lead to them.
    ///
    /// # Errors
    /// It cannot be watched.
    pub(crate) async fn watch_node(
        &self,
        node_name: &str,
        runs_pods: bool,
    ) -> anyhow::Result<Watch> {
        let pods = if runs_pods { Watched::Yes } else { Watched::IfAllowed };
        self.watch_selected(node_name, Selection { pods, ..Selection::everything() }).await
    }

    async fn watch_selected(&self, node_name: &str, selection: Selection) -> anyhow::Result<Watch> {
        if let Some(dir) = &self.objects {
            return Ok(model::watch::files(dir, node_name)?);
        }
        let config =
            KubeConfig { kubeconfig: self.kubeconfig.clone(), master: self.master.clone() };
        let connection = Connection::find(&config).await.map_err(|error| match error {
            // What the pod lacks says nothing to whoever runs this in a shell.
            ConnectError::InCluster(_) => anyhow!(
                "no API server and no objects: give --kubeconfig FILE, or --objects DIR with a \
                 folder of Kubernetes YAML, or run as a pod"
            ),
            other => other.into(),
        })?;
        Ok(model::watch::kube(connection, node_name, selection))
    }
}

pub(crate) fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname()
        .context("cannot ask for the host's name; give the Node's with --hostname-override")?;
    Ok(name.to_string_lossy().into_owned())
}
