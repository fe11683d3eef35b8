//! The steps of a pod's life, carried out: sandboxes, starts, stops, and the removal of the rest.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, ObjectReference, Pod, PodSpec};

use super::Begun;
use crate::api::{Cluster, Happened, RequestError};
use crate::cluster_dns;
use crate::environment::Sources;
use crate::life::SandboxState;
use crate::names::{self, ClusterDns};
use crate::prepare::{self, Places, PrepareError};
use crate::probe::ask;
use crate::runtime::{ContainerId, Exec, FoundState, ImageError, Runtime, Sandbox, SandboxSpec};
use crate::volumes::{self, Volumes};

/// What the workers of one node share.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) cluster: Cluster,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) root: PathBuf,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) dns: ClusterDns,
    pub(crate) max_pids: u64,
    pub(crate) cpu_milli: u64,
    pub(crate) memory: u64,
}

/// A container to be started.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) container: Container,
    pub(super) attempt: u32,
    /// Whose processes it is to see beside its own, or why it cannot.
    pub(super) target: Result<Option<ContainerId>, String>,
}

/// Why a container was not started.
#[derive(Clone, Debug)]
pub(super) struct NotStarted {
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) event: &'static str,
    pub(super) prefix: &'static str,
}

impl NotStarted {
    pub(super) fn is_image(&self) -> bool {
        self.reason == "ErrImagePull"
    }

    /// What is said until it is tried again.
    pub(super) fn while_waiting(&self) -> (String, String) {
        if self.is_image() {
            ("ImagePullBackOff".into(), format!("Back-off pulling image: {}", self.message))
        } else {
            (self.reason.into(), self.message.clone())
        }
    }

    fn image(error: &ImageError) -> Self {
        let reason = match error {
            ImageError::Invalid(_) => "InvalidImageName",
            ImageError::NeverPull(_) => "ErrImageNeverPull",
            ImageError::Absent(_) => "ErrImagePull",
        };
        let prefix = "Failed to pull image: ";
        Self { reason, message: error.to_string(), event: "Failed", prefix }
    }

    fn config(error: &PrepareError) -> Self {
        let message = error.to_string();
        match error {
            PrepareError::Volume(_) => Self {
                reason: "ContainerCreating",
                message,
                event: "FailedMount",
                prefix: "MountVolume.SetUp failed: ",
            },
            _ => Self {
                reason: "CreateContainerConfigError",
                message,
                event: "Failed",
                prefix: "Error: ",
            },
        }
    }

    fn runtime(error: impl std::fmt::Display) -> Self {
        let message = error.to_string();
        Self { reason: "CreateContainerError", message, event: "Failed", prefix: "Error: " }
    }
}

/// A pod, or one of its containers, for an event.
pub(crate) fn reference(pod: &Pod, container: Option<&str>) -> ObjectReference {
    let spec = pod.spec.as_ref();
    let is_init = container.is_some_and(|name| {
        let mut all = spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten());
        all.any(|one| one.name == name)
    });
    let is_ephemeral = container.is_some_and(|name| {
        let mut all = spec.into_iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten());
        all.any(|one| one.name == name)
    });
    let list = match (is_init, is_ephemeral) {
        (true, _) => "initContainers",
        (false, true) => "ephemeralContainers",
        (false, false) => "containers",
    };
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        field_path: container.map(|name| format!("spec.{list}{{{name}}}")),
        ..ObjectReference::default()
    }
}

impl Node {
    pub(crate) fn uid<'a>(&self, pod: &'a Pod) -> &'a str {
        pod.metadata.uid.as_deref().unwrap_or_default()
    }

    pub(crate) fn id(&self, pod: &Pod, container: &str, attempt: u32) -> ContainerId {
        ContainerId { pod_uid: self.uid(pod).to_owned(), name: container.to_owned(), attempt }
    }

    /// Where probes find a pod.
    pub(super) fn probe_address(&self, pod: &Pod, sandbox: &SandboxState) -> Option<IpAddr> {
        let on_host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        match sandbox {
            SandboxState::Ready(_) if on_host => self.addresses.first().copied(),
            SandboxState::Ready(sandbox) => sandbox.addresses.first().copied(),
            _ => None,
        }
    }

    fn pod_dir(&self, pod: &Pod) -> PathBuf {
        self.root.join("pods").join(self.uid(pod))
    }

    /// Where a pod's logs are, named so that people find them.
    pub(crate) fn logs_dir(&self, pod: &Pod) -> PathBuf {
        let meta = &pod.metadata;
        let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
        let dir = [namespace, name, meta.uid.as_deref()].map(Option::unwrap_or_default).join("_");
        self.root.join("logs").join(dir)
    }

    /// Does what blocks on a thread that may.
    async fn blocking<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
        &self,
        f: impl FnOnce(&dyn Runtime) -> Result<T, E> + Send + 'static,
    ) -> Result<T, String> {
        let runtime = Arc::clone(&self.runtime);
        let done = tokio::task::spawn_blocking(move || f(runtime.as_ref()));
        done.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    pub(super) async fn make_sandbox(&self, pod: &Pod) -> Result<Sandbox, String> {
        let spec = pod.spec.clone().unwrap_or_default();
        if let Some(what) = unsupported(&spec) {
            return Err(what);
        }
        let sandbox = SandboxSpec {
            uid: self.uid(pod).to_owned(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            hostname: names::hostname(pod),
            host_network: spec.host_network == Some(true),
            host_ipc: spec.host_ipc == Some(true),
            max_pids: self.max_pids,
            privileged: is_privileged(&spec),
            logs: self.logs_dir(pod),
        };
        self.blocking(move |runtime| runtime.create_sandbox(&sandbox)).await
    }

    pub(super) async fn remove_sandbox(&self, pod: &Pod) -> Result<(), String> {
        let uid = self.uid(pod).to_owned();
        self.blocking(move |runtime| runtime.remove_sandbox(&uid)).await
    }

    /// Removes everything of a pod.
    pub(super) async fn forget(&self, pod: &Pod) -> Result<(), String> {
        self.forget_uid(self.uid(pod)).await
    }

    /// The same by its uid alone, for pods that nobody asks for.
    pub(crate) async fn forget_uid(&self, uid: &str) -> Result<(), String> {
        let (uid, root) = (uid.to_owned(), self.root.clone());
        self.blocking(move |runtime| -> Result<(), String> {
            let text = |error: io::Error| error.to_string();
            runtime.remove_sandbox(&uid).map_err(|error| error.to_string())?;
            volumes::unmount_all(&root.join("pods").join(&uid).join("volumes")).map_err(text)?;
            runtime.forget(&uid).map_err(|error| error.to_string())?;
            remove_logs(&root.join("logs"), &uid).map_err(text)
        })
        .await
    }

    pub(super) async fn start(
        &self,
        pod: &Pod,
        Start { container, attempt, target }: Start,
        sandbox: &Sandbox,
    ) -> Result<Begun, NotStarted> {
        let container = &container;
        let about = reference(pod, Some(&container.name));
        let image = container.image.clone().unwrap_or_default();
        let policy = container.image_pull_policy.clone().unwrap_or_default();
        let runtime = Arc::clone(&self.runtime);
        let name = image.clone();
        let pulling = tokio::task::spawn_blocking(move || runtime.pull(&name, &policy));
        let found = pulling.await.map_err(NotStarted::runtime)?;
        let image_id = found.map_err(|error| NotStarted::image(&error))?;
        let what = format!("Container image {image:?} already present on machine");
        self.cluster.event(&about, Happened::well("Pulled", what));
        let spec = self.prepare(pod, container, attempt, sandbox).await;
        let mut spec = spec.map_err(|error| NotStarted::config(&error))?;
        spec.target = target.map_err(|why| NotStarted::config(&PrepareError::Invalid(why)))?;
        let what = format!("Created container: {}", container.name);
        let id = spec.id.clone();
        let old = attempt.checked_sub(2).map(|attempt| ContainerId { attempt, ..id.clone() });
        let old_log = old
            .as_ref()
            .map(|old| self.logs_dir(pod).join(&old.name).join(format!("{}.log", old.attempt)));
        let started = self.blocking(move |runtime| {
            // The last end but one is told nowhere any more.
            if let Some(old) = old {
                runtime.remove(&old)?;
            }
            if let Some(Err(error)) = old_log.map(fs::remove_file) {
                tracing::trace!(%error, "an old log is gone already");
            }
            runtime.start(&spec)
        });
        let state = started.await.map_err(NotStarted::runtime)?;
        self.cluster.event(&about, Happened::well("Created", what));
        if matches!(state, FoundState::Running { .. }) {
            let address = self.probe_address(pod, &SandboxState::Ready(sandbox.clone()));
            self.post_start(pod, container, &id, address).await;
        }
        Ok(Begun { image_id, state })
    }

    async fn prepare(
        &self,
        pod: &Pod,
        container: &Container,
        attempt: u32,
        sandbox: &Sandbox,
    ) -> Result<crate::runtime::ContainerSpec, PrepareError> {
        let on_host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        let pod_ips = if on_host { self.addresses.clone() } else { sandbox.addresses.clone() };
        let sources = Sources {
            pod_ips,
            host_ips: self.addresses.clone(),
            node_cpu_milli: self.cpu_milli,
            node_memory: self.memory,
            ..Sources::default()
        };
        let asking = prepare::read_sources(&self.cluster, pod, container, sources);
        let (sources, dns) = tokio::join!(asking, self.cluster_dns());
        let (sources, dns) = (sources?, dns?);
        let dir = self.pod_dir(pod);
        let volumes =
            Volumes { cluster: &self.cluster, pod, sources: &sources, dir: dir.join("volumes") };
        let volumes = volumes.set_up().await?;
        let places = Places { pod: dir, logs: self.logs_dir(pod), volumes };
        self.write_names(pod, sandbox, &places, &dns)?;
        prepare::container(pod, container, attempt, &sources, &places)
    }

    /// What the agent was told of names, or else where Service kube-system/kube-dns is.
    async fn cluster_dns(&self) -> Result<ClusterDns, RequestError> {
        let mut dns = self.dns.clone();
        if dns.servers.is_empty() {
            dns.servers = cluster_dns::servers(&self.cluster).await?;
        }
        Ok(dns)
    }

    /// Writes `/etc/hosts` and its like, once for a sandbox.
    fn write_names(
        &self,
        pod: &Pod,
        sandbox: &Sandbox,
        places: &Places,
        dns: &ClusterDns,
    ) -> io::Result<()> {
        let own = places.pod.join("own");
        fs::create_dir_all(&own)?;
        let host = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let hosts = names::hosts(pod, &sandbox.addresses, dns, &host("/etc/hosts"));
        let resolv_conf = names::resolv_conf(pod, dns, &host("/etc/resolv.conf"));
        for (name, text) in [
            ("hosts", hosts),
            ("resolv.conf", resolv_conf),
            ("hostname", format!("{}\n", names::hostname(pod))),
        ] {
            // Written in place: containers that run see the file itself.
            if fs::read_to_string(own.join(name)).ok().as_ref() != Some(&text) {
                fs::write(own.join(name), text)?;
            }
        }
        Ok(())
    }

    async fn post_start(
        &self,
        pod: &Pod,
        container: &Container,
        id: &ContainerId,
        address: Option<IpAddr>,
    ) {
        let Some(hook) = container.lifecycle.as_ref().and_then(|one| one.post_start.as_ref())
        else {
            return;
        };
        if let Err(why) = self.hook(container, id, hook, address).await {
            let about = reference(pod, Some(&container.name));
            let what = format!("PostStartHook failed: {why}");
            self.cluster.event(&about, Happened::ill("FailedPostStartHook", what));
            self.kill(id.clone()).await;
        }
    }

    async fn hook(
        &self,
        container: &Container,
        id: &ContainerId,
        hook: &LifecycleHandler,
        address: Option<IpAddr>,
    ) -> Result<(), String> {
        if let Some(exec) = &hook.exec {
            return ask::command(self.runtime.as_ref(), id, exec).await;
        }
        if let Some(get) = &hook.http_get {
            let address = address.ok_or("the pod has no address")?;
            return ask::http_get(address, container, get).await;
        }
        if let Some(sleep) = &hook.sleep {
            let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
        Ok(())
    }

    /// Runs a container's preStop hook, then asks it to end. When the grace period is over, it is
    /// killed, whichever of the two it was at.
    pub(super) async fn stop(
        &self,
        pod: &Pod,
        id: &ContainerId,
        container: &Container,
        address: Option<IpAddr>,
    ) {
        if let Some(hook) = container.lifecycle.as_ref().and_then(|one| one.pre_stop.as_ref())
            && let Err(why) = self.hook(container, id, hook, address).await
        {
            let about = reference(pod, Some(&container.name));
            let what = format!("PreStopHook failed: {why}");
            self.cluster.event(&about, Happened::ill("FailedPreStopHook", what));
        }
        let id = id.clone();
        if let Err(why) = self.blocking(move |runtime| runtime.terminate(&id)).await {
            tracing::warn!(why, "terminating a container failed");
        }
    }

    pub(super) async fn kill(&self, id: ContainerId) {
        if let Err(why) = self.blocking(move |runtime| runtime.kill(&id)).await {
            tracing::warn!(why, "killing a container failed");
        }
    }

    /// A command in a container, started on a thread that may block.
    pub(crate) async fn exec(
        &self,
        id: ContainerId,
        exec: Exec,
    ) -> Result<crate::runtime::Session, String> {
        self.runtime.exec(&id, &exec).map_err(|error| error.to_string())
    }
}

/// Removes a pod's logs: their directory's name ends with its uid.
fn remove_logs(logs: &Path, uid: &str) -> io::Result<()> {
    let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let all = match fs::read_dir(logs) {
        Err(error) if absent(&error) => return Ok(()),
        all => all?,
    };
    for one in all {
        let one = one?;
        if one.file_name().to_string_lossy().ends_with(&format!("_{uid}")) {
            fs::remove_dir_all(one.path())
                .or_else(|error| if absent(&error) { Ok(()) } else { Err(error) })?;
        }
    }
    Ok(())
}

/// Whether a container of a pod may do everything.
fn is_privileged(spec: &PodSpec) -> bool {
    let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    all.any(|one| one.security_context.as_ref().and_then(|own| own.privileged) == Some(true))
}

/// What a pod asks for that this node cannot do: the field, and what to do about it.
fn unsupported(spec: &PodSpec) -> Option<String> {
    let off = |field: &str| {
        Some(format!("spec.{field}: true is not supported on this node: leave it out"))
    };
    if spec.host_pid == Some(true) {
        return off("hostPID");
    }
    if spec.share_process_namespace == Some(true) {
        return off("shareProcessNamespace");
    }
    None
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;

    use super::unsupported;

    fn told(spec: &str) -> Option<String> {
        unsupported(&serde_json::from_str::<PodSpec>(spec).unwrap())
    }

    #[test]
    fn what_a_node_cannot_do_is_named() {
        assert!(told(r#"{"containers": [], "hostPID": true}"#).unwrap().contains("spec.hostPID"));
        assert_eq!(told(r#"{"containers": [{"name": "web"}]}"#), None);
    }
}
