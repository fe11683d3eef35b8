//! An API server: list once, watch from there, and go on where a watch ended.
//!
//! ```text
//!  list, by pages ─▶ watch from its resourceVersion ─▶ ended, or lost ─▶ watch from the last one seen
//!        ▲                                                                       │
//!        └──────────────── 410 Gone: that version is forgotten ◀─────────────────┘
//! ```
//!
//! Each kind is followed by itself. Objects are parsed to our types as they arrive and are not
//! kept. What vanished while nobody watched is found by the list that follows.

mod backoff;
mod events;
mod follow;

use std::path::PathBuf;
use std::sync::Arc;

use futures::future;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Config};
use thiserror::Error;
use tokio::sync::mpsc;

use crate::cluster::{Change, Kind};
use crate::name::NamespacedName;
use crate::parse;
use crate::source::kube::follow::{Followed, Follower};
use crate::watch::{HealthReport, Notices};

/// Which API server, as kube-proxy's flags say it.
#[derive(Clone, Debug, Default)]
pub struct KubeConfig {
    /// `--kubeconfig`. Neither this nor `master` means the pod's own service account.
    pub kubeconfig: Option<PathBuf>,
    /// `--master`: the URL to use instead of the kubeconfig's.
    pub master: Option<String>,
}

/// What of a kind is listed and watched; the server does the filtering.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// A label selector; empty is everything.
    pub labels: String,
    /// A field selector; empty is everything.
    pub fields: String,
}

/// What is listed and watched. This node is always selected by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Of Services.
    pub services: Selector,
    /// Of `EndpointSlices`.
    pub slices: Selector,
    /// Whether Namespaces are watched.
    pub namespaces: Watched,
    /// Whether the pods of this node are.
    pub pods: Watched,
}

/// Whether a kind is watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Watched {
    /// No: as far as anybody asks, there is nothing of it.
    #[default]
    No,
    /// Where this identity may, which that of kube-proxy may not: as long as the server refuses to
    /// list them there is nothing of it.
    IfAllowed,
    /// Yes.
    Yes,
}

impl Selection {
    /// Everything, as names need it.
    pub fn everything() -> Self {
        Self { namespaces: Watched::Yes, ..Self::default() }
    }

    /// The same with what says whose sockets are left alone, where that may be asked for.
    #[must_use]
    pub fn with_socket_lb(mut self) -> Self {
        for kind in [&mut self.namespaces, &mut self.pods] {
            if *kind == Watched::No {
                *kind = Watched::IfAllowed;
            }
        }
        self
    }

    /// What routing alone needs, as kube-proxy selects it.
    pub fn for_proxy() -> Self {
        Self {
            services: Selector {
                labels: "!service.kubernetes.io/service-proxy-name".to_owned(),
                fields: "spec.clusterIP!=None".to_owned(),
            },
            slices: Selector {
                labels: "!service.kubernetes.io/headless".to_owned(),
                fields: String::new(),
            },
            ..Self::default()
        }
    }
}

/// There is no way to reach an API server.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The kubeconfig file cannot be used.
    #[error("cannot use the kubeconfig {}; name one that exists and has a current context", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: kube::config::KubeconfigError,
    },
    /// No file was named and this is no pod.
    #[error("no kubeconfig and no service account; give --kubeconfig, or run as a pod")]
    InCluster(#[source] kube::config::InClusterError),
    /// The URL cannot be used.
    #[error("cannot use the API server URL {url:?}; write it as https://10.0.0.1:6443")]
    Master {
        /// As given.
        url: String,
        /// What is wrong with it.
        source: http::uri::InvalidUri,
    },
    /// The client's keys or certificates cannot be used.
    #[error("cannot make a client for {url}; check its certificates and credentials")]
    Client {
        /// The API server.
        url: String,
        /// What is wrong.
        source: Box<kube::Error>,
    },
}

/// A client of one API server. It connects when it is used.
#[derive(Clone)]
pub struct Connection {
    client: Client,
    url: Arc<str>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Connection {
    /// Finds the API server and the credentials for it.
    ///
    /// # Errors
    /// Something that was named does not exist or cannot be used.
    pub async fn find(kube_config: &KubeConfig) -> Result<Self, ConnectError> {
        let mut config = match (&kube_config.kubeconfig, &kube_config.master) {
            (Some(path), _) => {
                let wrong = |source| ConnectError::Kubeconfig { path: path.clone(), source };
                let file = Kubeconfig::read_from(path).map_err(wrong)?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(file, &options).await.map_err(wrong)?
            }
            (None, Some(master)) => Config::new(parse_url(master)?),
            (None, None) => Config::incluster().map_err(ConnectError::InCluster)?,
        };
        if let Some(master) = &kube_config.master {
            config.cluster_url = parse_url(master)?;
        }
        // Without TLS nobody asks for certificates, and a machine may have none.
        if config.cluster_url.scheme_str() == Some("http") {
            config.root_cert.get_or_insert_default();
        }
        // Retries are ours, so that health tells of them.
        config.default_retry = false;
        let url = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|source| ConnectError::Client {
            url: url.clone(),
            source: Box::new(source),
        })?;
        Ok(Self { client, url: url.into() })
    }

    /// The API server's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The client itself, for what is not watched.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Tells the owners of objects what is wrong with them, as the proxy of a node. Never ends.
    pub(crate) async fn tell(self, node_name: Arc<str>, notices: Notices) {
        events::run(self.client, node_name, notices.subscribe()).await;
        // Nobody has anything more to say.
        future::pending::<()>().await;
    }

    /// Sends what the API server has, then what changes, until nobody listens.
    pub(crate) async fn run(
        self,
        node_name: Arc<str>,
        selection: Selection,
        out: mpsc::Sender<Vec<Change>>,
        health: HealthReport,
    ) {
        let follower = |selector| Follower::new(selector, out.clone(), health.clone(), &self.url);
        let client = || self.client.clone();
        let node = Selector { fields: format!("metadata.name={node_name}"), ..Selector::default() };
        let services = follower(selection.services).run(Api::<Service>::all(client()));
        let slices = follower(selection.slices).run(Api::<EndpointSlice>::all(client()));
        let node = follower(node).run(Api::<Node>::all(client()));
        let namespaces = follower(Selector::default())
            .run_if(selection.namespaces, Api::<PartialObjectMeta<Namespace>>::all(client()));
        let mine = format!("spec.nodeName={node_name}");
        let mine = Selector { fields: mine, ..Selector::default() };
        let pods = follower(mine).run_if(selection.pods, Api::<Pod>::all(client()));
        Box::pin(future::join5(services, slices, node, namespaces, pods)).await;
    }
}

fn parse_url(url: &str) -> Result<http::Uri, ConnectError> {
    url.parse().map_err(|source| ConnectError::Master { url: url.to_owned(), source })
}

impl Followed for Service {
    const KIND: Kind = Kind::Service;
    const TITLE: &'static str = "Service";

    fn parse(&self, names: &mut parse::Names) -> parse::Parsed<Change> {
        let parse::Parsed { object, problems } = parse::service(self, names);
        parse::Parsed { object: object.map(|new| Change::Service(Arc::new(new))), problems }
    }

    fn gone(name: NamespacedName) -> Change {
        Change::ServiceGone(name)
    }
}

impl Followed for EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;
    const TITLE: &'static str = "EndpointSlice";

    fn parse(&self, names: &mut parse::Names) -> parse::Parsed<Change> {
        let parse::Parsed { object, problems } = parse::slice(self, names);
        parse::Parsed { object: object.map(|new| Change::Slice(Arc::new(new))), problems }
    }

    fn gone(name: NamespacedName) -> Change {
        Change::SliceGone(name)
    }
}

impl Followed for Node {
    const KIND: Kind = Kind::Node;
    const TITLE: &'static str = "Node";

    fn parse(&self, names: &mut parse::Names) -> parse::Parsed<Change> {
        let parse::Parsed { object, problems } = parse::node(self, names);
        parse::Parsed { object: object.map(|new| Change::Node(Arc::new(new))), problems }
    }

    fn gone(_: NamespacedName) -> Change {
        Change::NodeGone
    }
}

impl Followed for PartialObjectMeta<Namespace> {
    const KIND: Kind = Kind::Namespace;
    const TITLE: &'static str = "Namespace";

    fn parse(&self, names: &mut parse::Names) -> parse::Parsed<Change> {
        let parse::Parsed { object, problems } = parse::namespace(&self.metadata, names);
        parse::Parsed { object: object.map(Change::Namespace), problems }
    }

    fn gone(name: NamespacedName) -> Change {
        Change::NamespaceGone(name.name)
    }
}

impl Followed for Pod {
    const KIND: Kind = Kind::Pod;
    const TITLE: &'static str = "Pod";

    fn parse(&self, names: &mut parse::Names) -> parse::Parsed<Change> {
        let parse::Parsed { object, problems } = parse::pod(self, names);
        parse::Parsed { object: object.map(|new| Change::Pod(Arc::new(new))), problems }
    }

    fn gone(name: NamespacedName) -> Change {
        Change::PodGone(name)
    }
}
