//! Runs the controllers: watches feed queues, workers empty them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cache::{Caches, Change, Key};
use crate::cluster::{Cluster, Result};
use crate::kinds::Kind;
use crate::node_ipam::ClusterCidr;
use crate::queue::Queue;
use crate::{
    cron_job, daemon_set, deployment, endpoint_slice, garbage, job, namespace, node, node_ipam,
    replicas, scheduler, service_account, stateful_set,
};

/// What a reconciliation works with.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) cluster: Cluster,
    pub(crate) caches: Arc<Caches>,
    /// Where nodes' pods have their addresses; empty, if somebody else says so.
    pub(crate) cluster_cidrs: Arc<[ClusterCidr]>,
}

/// When a key is to be looked at again, if not because something changed.
pub(crate) type Again = Option<Duration>;

/// One controller: what it is called, which kinds it hears of, which keys a change concerns, and
/// what it does about a key.
pub(crate) struct Controller {
    pub(crate) name: &'static str,
    pub(crate) kinds: &'static [Kind],
    pub(crate) concerns: fn(&Caches, &Change) -> Vec<Key>,
    pub(crate) reconcile: fn(Context, Key) -> BoxFuture<'static, Result<Again>>,
}

/// Every controller there is.
const CONTROLLERS: [&Controller; 15] = [
    &namespace::CONTROLLER,
    &service_account::CONTROLLER,
    &endpoint_slice::CONTROLLER,
    &endpoint_slice::mirror::CONTROLLER,
    &deployment::CONTROLLER,
    &replicas::REPLICA_SETS,
    &replicas::REPLICATION_CONTROLLERS,
    &stateful_set::CONTROLLER,
    &daemon_set::CONTROLLER,
    &job::CONTROLLER,
    &cron_job::CONTROLLER,
    &scheduler::CONTROLLER,
    &node::CONTROLLER,
    &node_ipam::CONTROLLER,
    &garbage::CONTROLLER,
];

/// Keys of one controller that are worked on at the same time.
const WORKERS: usize = 2;

/// Why the controllers cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be used.
    #[error("read the kubeconfig of the controllers")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// No client can be made from it.
    #[error("make a client of the API server")]
    Client(#[source] Box<kube::Error>),
}

/// Runs all controllers against the server that a kubeconfig names, until told to stop. Nodes get
/// their pods' addresses out of `cluster_cidrs`, a range of each.
///
/// # Errors
/// The kubeconfig (its text) is not one.
pub async fn run(
    kubeconfig: &str,
    cluster_cidrs: Vec<ClusterCidr>,
    stop: CancellationToken,
) -> Result<(), ConnectError> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    // Without TLS nobody asks for certificates, and a machine may have none.
    if config.cluster_url.scheme_str() == Some("http") {
        config.root_cert.get_or_insert_default();
    }
    let client =
        Client::try_from(config).map_err(|source| ConnectError::Client(Box::new(source)))?;
    follow_and_work(client, cluster_cidrs.into(), stop).await;
    Ok(())
}

async fn follow_and_work(
    client: Client,
    cluster_cidrs: Arc<[ClusterCidr]>,
    stop: CancellationToken,
) {
    let cluster = Cluster::new(client);
    let kinds: BTreeSet<Kind> = CONTROLLERS.iter().flat_map(|one| one.kinds).copied().collect();
    let caches = Arc::new(Caches::new(kinds.into_iter()));
    let queues: Vec<(&Controller, Arc<Queue>)> =
        CONTROLLERS.iter().map(|one| (*one, Arc::new(Queue::default()))).collect();
    let mut tasks = JoinSet::new();
    let mut synced = Vec::new();
    for kind in caches.kinds() {
        let (sender, receiver) = watch::channel(false);
        synced.push(receiver);
        let (caches, cluster) = (Arc::clone(&caches), cluster.clone());
        let mine: Vec<_> =
            queues.iter().filter(|(one, _)| one.kinds.contains(&kind)).cloned().collect();
        tasks.spawn(async move {
            let tell = |change: &Change| {
                for (controller, queue) in &mine {
                    for key in (controller.concerns)(&caches, change) {
                        queue.add(key);
                    }
                }
            };
            caches.follow(kind, &cluster, sender, tell).await;
        });
    }
    let context = Context { cluster, caches, cluster_cidrs };
    tasks.spawn(start_workers(queues, context, synced));
    stop.cancelled().await;
    tasks.shutdown().await;
}

/// Nobody acts before everything has been heard once.
async fn start_workers(
    queues: Vec<(&'static Controller, Arc<Queue>)>,
    context: Context,
    synced: Vec<watch::Receiver<bool>>,
) {
    for mut one in synced {
        if one.wait_for(|synced| *synced).await.is_err() {
            return;
        }
    }
    tracing::info!("controllers are in sync");
    let mut workers = JoinSet::new();
    for (controller, queue) in queues {
        for _ in 0..WORKERS {
            workers.spawn(work(controller, Arc::clone(&queue), context.clone()));
        }
    }
    while workers.join_next().await.is_some() {}
}

async fn work(controller: &'static Controller, queue: Arc<Queue>, context: Context) {
    loop {
        let key = queue.next().await;
        let result = (controller.reconcile)(context.clone(), key.clone()).await;
        match &result {
            Ok(Some(delay)) => queue.add_after(key.clone(), *delay),
            Ok(None) => {}
            // Somebody else wrote first: expected, and tried again.
            Err(error) if error.code() == 409 => {}
            Err(error) => {
                let why = std::error::Error::source(error).map(ToString::to_string);
                tracing::debug!(
                    controller = controller.name, ?key, %error, why, "will be tried again"
                );
            }
        }
        queue.done(&key, result.is_ok());
    }
}
