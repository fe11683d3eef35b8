//! The agent: a worker for each pod of this node, and the node's word that it lives.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::announce;
use crate::api::Cluster;
use crate::cluster_dns;
use crate::containerd::{Containerd, Where};
use crate::names::ClusterDns;
use crate::network::{Network, NetworkError};
use crate::overlay::Overlay;
use crate::process::Processes;
use crate::registration::{RegisterError, Registration};
use crate::runtime::{FoundPod, Runtime, RuntimeError};
use crate::server::{self, ListenError};
use crate::worker::{Asked, Node, Worker};

/// What runs pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeChoice {
    /// Processes in namespaces.
    Process,
    /// containerd, by the socket it listens on.
    Containerd(PathBuf),
}

/// What an agent is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Node object's name.
    pub node_name: String,
    /// The node's own addresses; the first family first.
    pub addresses: Vec<IpAddr>,
    /// Where pods' addresses come from; if empty, the Node object says.
    pub pod_cidrs: Vec<IpNet>,
    /// What leads to other nodes' pods.
    pub overlay: Overlay,
    /// What runs pods.
    pub runtime: RuntimeChoice,
    /// Where everything is kept.
    pub root: PathBuf,
    /// The cgroup v2 directory above every pod.
    pub cgroup: PathBuf,
    /// The DNS servers of pods; if empty, Service kube-system/kube-dns.
    pub cluster_dns: Vec<IpAddr>,
    /// Where this node answers names for others, an address a family.
    pub names: Vec<SocketAddr>,
    /// The domain of the cluster's names.
    pub cluster_domain: String,
    /// Where logs are read and commands run from.
    pub listen: SocketAddr,
    /// Labels of the Node object.
    pub labels: Vec<(String, String)>,
    /// Pods at once, at most.
    pub max_pods: u32,
    /// Processes at once in one pod, at most.
    pub max_pids: u64,
}

/// Why an agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The runtime cannot begin.
    #[error("the runtime cannot begin: {0}")]
    Runtime(String),
    /// The pods' network cannot be made.
    #[error("the pods' network cannot be made: {0}")]
    Network(String),
    /// The node cannot be registered.
    #[error("register node {name}: {why}")]
    Register {
        /// The node.
        name: String,
        /// What the server said.
        why: String,
    },
    /// The port for logs and commands cannot be had.
    #[error("listen on {address} for logs and commands: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

impl From<RuntimeError> for RunError {
    fn from(error: RuntimeError) -> Self {
        Self::Runtime(error.to_string())
    }
}

impl From<NetworkError> for RunError {
    fn from(error: NetworkError) -> Self {
        Self::Network(error.to_string())
    }
}

impl From<RegisterError> for RunError {
    fn from(error: RegisterError) -> Self {
        Self::Register { name: error.node, why: error.why }
    }
}

impl From<ListenError> for RunError {
    fn from(error: ListenError) -> Self {
        Self::Listen { address: error.address, source: error.source }
    }
}

/// Runs a node's pods until told to stop; they live on, and the next agent takes them over.
///
/// # Errors
/// Something that every pod needs is not to be had.
pub async fn run(config: Config, client: Client, stop: CancellationToken) -> Result<(), RunError> {
    let (cluster, events) = Cluster::new(client, &config.node_name);
    let mut registration = Registration::new(&config, &cluster);
    let ended = tokio::select! {
        ended = serve(&config, &cluster, &mut registration) => ended,
        () = cluster.write_events(events) => Ok(()),
        () = stop.cancelled() => Ok(()),
    };
    cluster_dns::withdraw(&cluster, &config.names).await;
    tracing::info!("pods go on without the agent");
    ended
}

async fn serve(
    config: &Config,
    cluster: &Cluster,
    registration: &mut Registration,
) -> Result<(), RunError> {
    let listener = server::listen(config.listen).await?;
    registration.port = listener.local_addr().map(|address| address.port()).unwrap_or_default();
    let ranges = registration.register().await?;
    let asked = config.clone();
    let opened = tokio::task::spawn_blocking(move || -> Result<_, RunError> {
        let mut network = Network::open(ranges)?;
        if asked.overlay == Overlay::Vxlan {
            network.tunnel(&asked.addresses)?;
        }
        let network = Arc::new(network);
        let runtime = open(&asked, Arc::clone(&network))?;
        let found = runtime.list()?;
        Ok((network, runtime, found))
    });
    let died = |error: tokio::task::JoinError| RunError::Runtime(error.to_string());
    let (network, runtime, found) = opened.await.map_err(died)??;
    let node = Arc::new(Node {
        cluster: cluster.clone(),
        runtime,
        root: config.root.clone(),
        addresses: config.addresses.clone(),
        dns: ClusterDns {
            servers: config.cluster_dns.clone(),
            domain: config.cluster_domain.clone(),
        },
        max_pids: config.max_pids,
        cpu_milli: registration.cpu_milli(),
        memory: registration.memory(),
    });
    tracing::info!(node = config.node_name, n_found = found.len(), "running pods");
    let (pods, known) = watch::channel(HashMap::new());
    registration.runtime = node.runtime.version();
    registration.key = server::token();
    let key = registration.key.clone();
    tokio::select! {
        () = follow(&node, found, &pods) => Ok(()),
        () = registration.keep() => Ok(()),
        () = crate::routes::keep(cluster, &config.node_name, &network) => Ok(()),
        () = announce::keep(cluster, &config.addresses) => Ok(()),
        () = cluster_dns::keep(cluster, &config.names), if !config.names.is_empty() => Ok(()),
        () = server::serve(listener, Arc::clone(&node), known, key) => Ok(()),
    }
}

fn open(config: &Config, network: Arc<Network>) -> Result<Arc<dyn Runtime>, RuntimeError> {
    let (root, above, node) = (&config.root, &config.cgroup, config.node_name.as_str());
    Ok(match &config.runtime {
        RuntimeChoice::Process => Arc::new(Processes::open(root, above, node, network)?),
        RuntimeChoice::Containerd(socket) => {
            Arc::new(Containerd::open(Where { socket, root, above, node }, network)?)
        }
    })
}

/// The pods of this node, by namespace and name.
pub(crate) type Pods = HashMap<(String, String), Arc<Pod>>;

/// When a removal that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Every pod has a worker, from its first sight to its end.
struct Workers<'a> {
    node: &'a Arc<Node>,
    found: HashMap<String, FoundPod>,
    asked: HashMap<String, watch::Sender<Asked>>,
    running: JoinSet<String>,
    listed: Option<Vec<String>>,
    pods: &'a watch::Sender<Pods>,
}

async fn follow(node: &Arc<Node>, found: Vec<FoundPod>, pods: &watch::Sender<Pods>) {
    let api: Api<Pod> = Api::all(node.cluster.client());
    let mine = format!("spec.nodeName={}", node.cluster.node());
    let mut events = pin!(watcher(api, watcher::Config::default().fields(&mine)));
    let mut workers = Workers {
        node,
        found: found.into_iter().map(|one| (one.uid.clone(), one)).collect(),
        asked: HashMap::new(),
        running: JoinSet::new(),
        listed: None,
        pods,
    };
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => workers.hear(event),
                Some(Err(error)) => {
                    tracing::debug!(%error, "the pods will be listed again");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                None => return,
            },
            Some(ended) = workers.running.join_next() => {
                if let Ok(uid) = ended {
                    workers.asked.remove(&uid);
                }
            }
        }
    }
}

impl Workers<'_> {
    fn hear(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed = Some(Vec::new()),
            Event::InitApply(pod) | Event::Apply(pod) => self.ask(pod, false),
            Event::Delete(pod) => self.ask(pod, true),
            Event::InitDone => self.sweep(),
        }
    }

    fn ask(&mut self, pod: Pod, gone: bool) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if let Some(listed) = &mut self.listed {
            listed.push(uid.clone());
        }
        let pod = Arc::new(pod);
        let key = (
            pod.metadata.namespace.clone().unwrap_or_default(),
            pod.metadata.name.clone().unwrap_or_default(),
        );
        self.pods.send_modify(|pods| {
            if !gone {
                pods.insert(key, Arc::clone(&pod));
            } else if pods.get(&key).is_some_and(|one| one.metadata.uid == pod.metadata.uid) {
                pods.remove(&key);
            }
        });
        let asked = Asked { pod, gone };
        if let Some(worker) = self.asked.get(&uid) {
            worker.send_replace(asked);
            return;
        }
        // What is gone and has no worker left nothing, or is swept.
        if gone {
            return;
        }
        let (sender, receiver) = watch::channel(asked);
        let worker = Worker::new(Arc::clone(self.node), receiver, self.found.remove(&uid));
        self.asked.insert(uid.clone(), sender);
        self.running.spawn(async move {
            worker.run().await;
            uid
        });
    }

    /// After a whole list: what is not in it is gone.
    fn sweep(&mut self) {
        let listed = self.listed.take().unwrap_or_default();
        for (uid, worker) in &self.asked {
            if !listed.contains(uid) {
                worker.send_modify(|asked| asked.gone = true);
            }
        }
        for (uid, _) in self.found.drain() {
            let node = Arc::clone(self.node);
            self.running.spawn(async move {
                tracing::info!(uid, "removing a pod that nobody asks for");
                while let Err(why) = node.forget_uid(&uid).await {
                    tracing::warn!(uid, why, "removing a pod failed");
                    tokio::time::sleep(AGAIN).await;
                }
                uid
            });
        }
    }
}
