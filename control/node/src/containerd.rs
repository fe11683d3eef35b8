//! The containerd runtime: pods by the Container Runtime Interface, over containerd's socket.
//!
//! ```text
//! agent ── cri, grpc ──▶ containerd ── runs ──▶ `fairlead cni` ── links the sandbox
//!   │                        └── shims, which outlive both: sandboxes (pause), containers
//!   └── images: the built-in ones and archives of a folder, by `ctr images import`
//! ```
//!
//! containerd keeps everything that a restarted agent must know, in labels and annotations (`spec`).

mod archive;
pub(crate) mod cni;
mod cri;
mod grpc;
mod images;
mod logs;
mod pause;
mod settings;
mod spec;
mod watch;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::Uri;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::built_in::{HOST_DIRS, PROGRAM};
use crate::cgroups::Cgroups;
use crate::identity::Identity;
use crate::network::Network;
use crate::runtime::{
    ContainerId, ContainerSpec, Conversation, Ended, Exec, Found, FoundPod, FoundState, ImageError,
    Mount, Runtime, RuntimeError, Said, Sandbox, SandboxSpec, Session,
};
use cri::{
    AttachRequest, Container, ContainerFilter, ContainerName, ContainerState,
    CreateContainerRequest, Done, ExecRequest, ExecSyncRequest, ExecSyncResponse,
    ListContainersRequest, ListContainersResponse, ListPodSandboxRequest, ListPodSandboxResponse,
    PodSandbox, PodSandboxConfig, PodSandboxFilter, PodSandboxState, RunPodSandboxRequest,
    SandboxName, StopContainerRequest, StreamAt,
};
use grpc::{CallError, Client};
use images::Images;
use settings::Settings;
use spec::Home;

/// Longer than any grace period: when that is over, the agent kills.
const LONG: i64 = 365 * 24 * 3600;

/// Pods in containerd.
#[derive(Debug)]
pub(crate) struct Containerd {
    client: Arc<Client>,
    handle: Handle,
    settings: Settings,
    node: String,
    root: PathBuf,
    /// This program, for the images that consist of it.
    program: PathBuf,
    images: Images,
    cgroups: Cgroups,
    network: Arc<Network>,
    pods: Mutex<HashMap<String, Place>>,
    /// What containerd calls them.
    containers: Mutex<HashMap<ContainerId, String>>,
    /// Calls that nobody waits for; they end with the runtime.
    calls: Mutex<JoinSet<()>>,
}

/// A whole sandbox.
#[derive(Clone, Debug)]
struct Place {
    id: String,
    spec: SandboxSpec,
    config: PodSandboxConfig,
    addresses: Vec<IpAddr>,
    pause: Option<Identity>,
}

/// Where a runtime of this kind is, and for whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Where<'a> {
    pub(crate) socket: &'a Path,
    /// Where everything is kept.
    pub(crate) root: &'a Path,
    /// The cgroup v2 directory above every pod.
    pub(crate) above: &'a Path,
    pub(crate) node: &'a str,
}

impl Containerd {
    /// A runtime that asks containerd; to be called on a thread that may block.
    pub(crate) fn open(place: Where<'_>, network: Arc<Network>) -> Result<Self, RuntimeError> {
        let Where { socket, root, above, node } = place;
        let handle = Handle::current();
        let client = Arc::new(Client::new(socket));
        let asking = Settings::ask(&client);
        let settings = handle.block_on(asking).map_err(RuntimeError::at("ask containerd"))?;
        let program = std::env::current_exe().map_err(RuntimeError::at("find this program"))?;
        cni::install(&program, &settings.plugins, &settings.networks, &network)
            .map_err(RuntimeError::at("tell containerd of the pods' network"))?;
        let cgroups = Cgroups::find_alike(above, node)
            .map_err(RuntimeError::at(format!("make cgroups below {}", above.display())))?;
        let images = Images::new(Arc::clone(&client), socket, root.join("images"));
        let bringing = async {
            images.bring_along(&settings.sandbox_image).await?;
            settings::until_network(&client).await
        };
        handle.block_on(bringing).map_err(RuntimeError::at("prepare containerd"))?;
        let mut calls = JoinSet::new();
        let (asker, name) = (Arc::clone(&client), node.to_owned());
        calls.spawn_on(async move { logs::keep_short(&asker, &name).await }, &handle);
        Ok(Self {
            client,
            handle,
            settings,
            node: node.to_owned(),
            root: root.to_owned(),
            program,
            images,
            cgroups,
            network,
            pods: Mutex::default(),
            containers: Mutex::default(),
            calls: Mutex::new(calls),
        })
    }

    fn pods(&self) -> MutexGuard<'_, HashMap<String, Place>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn names(&self) -> MutexGuard<'_, HashMap<ContainerId, String>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name_of(&self, id: &ContainerId) -> Option<String> {
        self.names().get(id).cloned()
    }

    /// As `name_of`, for what cannot be done without.
    fn known(&self, id: &ContainerId) -> io::Result<String> {
        let unknown = || io::Error::other(format!("container {:?} is not there", id.name));
        self.name_of(id).ok_or_else(unknown)
    }

    /// This node's sandboxes, or one pod's; the newest last.
    async fn sandboxes(&self, uid: Option<&str>) -> Result<Vec<PodSandbox>, CallError> {
        let filter = PodSandboxFilter { label_selector: spec::selector(&self.node, uid) };
        let asked = ListPodSandboxRequest { filter: Some(filter) };
        let list: ListPodSandboxResponse =
            self.client.call(cri::RUNTIME, "ListPodSandbox", &asked).await?;
        let mut items = list.items;
        items.sort_by_key(|one| one.metadata.as_ref().map(|meta| meta.attempt));
        Ok(items)
    }

    async fn list_containers(&self) -> Result<Vec<Container>, CallError> {
        let filter = ContainerFilter { label_selector: spec::selector(&self.node, None) };
        let asked = ListContainersRequest { filter: Some(filter) };
        let list: ListContainersResponse =
            self.client.call(cri::RUNTIME, "ListContainers", &asked).await?;
        Ok(list.containers)
    }

    async fn list_all(&self) -> io::Result<Vec<FoundPod>> {
        let mut pods: HashMap<String, FoundPod> = HashMap::new();
        for one in self.sandboxes(None).await? {
            let Some(uid) = one.metadata.as_ref().map(|meta| meta.uid.clone()) else { continue };
            let sandbox = self.adopt(&one).await?;
            let pod = pods.entry(uid.clone()).or_insert_with(|| FoundPod {
                uid,
                sandbox: None,
                containers: Vec::new(),
            });
            pod.sandbox = sandbox;
        }
        for one in self.list_containers().await? {
            let Some(found) = self.find(&one).await? else { continue };
            if let Some(pod) = pods.get_mut(&found.id.pod_uid) {
                pod.containers.push(found);
            }
        }
        let mut all: Vec<FoundPod> = pods.into_values().collect();
        for pod in &mut all {
            pod.containers.sort_by(|a, b| a.id.cmp(&b.id));
        }
        Ok(all)
    }

    /// Takes a sandbox over, if it is whole.
    async fn adopt(&self, one: &PodSandbox) -> io::Result<Option<Sandbox>> {
        let read = spec::read_sandbox(&one.annotations);
        let Some((spec, addresses)) = read.filter(|_| one.state == PodSandboxState::Ready as i32)
        else {
            return Ok(None);
        };
        let attempt = one.metadata.as_ref().map_or(0, |meta| meta.attempt);
        let cgroup = self.cgroups.parent(&spec.uid);
        let home = Home { node: &self.node, cgroup: &cgroup };
        let config = spec::sandbox(&spec, attempt, &addresses, home);
        self.network.take(&addresses);
        let pause = watch::sandbox_pid(&self.client, &one.id).await?;
        let (uid, id) = (spec.uid.clone(), one.id.clone());
        let place = Place { id, spec, config, addresses: addresses.clone(), pause };
        self.pods().insert(uid, place);
        Ok(Some(Sandbox { addresses }))
    }

    /// What became of a container; one that a killed agent had only made is removed.
    async fn find(&self, one: &Container) -> io::Result<Option<Found>> {
        let (Some(meta), Some(uid)) = (&one.metadata, one.labels.get(spec::UID_LABEL)) else {
            return Ok(None);
        };
        if one.state == ContainerState::Created as i32 {
            self.remove_container(&one.id).await?;
            return Ok(None);
        }
        let (pod_uid, name) = (uid.clone(), meta.name.clone());
        let id = ContainerId { pod_uid, name, attempt: meta.attempt };
        self.names().insert(id.clone(), one.id.clone());
        let state = watch::look(&self.client, &one.id).await?.into_found();
        Ok(Some(Found { id, state }))
    }

    async fn make_sandbox(&self, spec: &SandboxSpec) -> io::Result<Sandbox> {
        self.take_down(&spec.uid).await?;
        let before = self.sandboxes(Some(&spec.uid)).await?;
        let attempts = before.iter().filter_map(|one| Some(one.metadata.as_ref()?.attempt));
        let attempt = attempts.max().map_or(0, |attempt| attempt + 1);
        self.cgroups.create_pod(&spec.uid, spec.max_pids)?;
        fs::create_dir_all(&spec.logs)?;
        let addresses = if spec.host_network {
            Vec::new()
        } else {
            self.network.allocate().map_err(io::Error::other)?
        };
        let cgroup = self.cgroups.parent(&spec.uid);
        let home = Home { node: &self.node, cgroup: &cgroup };
        let config = spec::sandbox(spec, attempt, &addresses, home);
        let asked = RunPodSandboxRequest { config: Some(config.clone()) };
        let made: Result<SandboxName, CallError> =
            self.client.call(cri::RUNTIME, "RunPodSandbox", &asked).await;
        let id = match made {
            Ok(name) => name.pod_sandbox_id,
            Err(error) => {
                self.network.release(&addresses);
                return Err(error.into());
            }
        };
        let sandbox = Sandbox { addresses: addresses.clone() };
        let place = Place { id: id.clone(), spec: spec.clone(), config, addresses, pause: None };
        self.pods().insert(spec.uid.clone(), place);
        let pause = watch::sandbox_pid(&self.client, &id).await?;
        if let Some(place) = self.pods().get_mut(&spec.uid) {
            place.pause = pause;
        }
        Ok(sandbox)
    }

    /// Ends what runs in a pod; its containers stay known.
    async fn take_down(&self, uid: &str) -> io::Result<()> {
        for one in self.sandboxes(Some(uid)).await? {
            let asked = SandboxName { pod_sandbox_id: one.id };
            let _: Done = self.client.call(cri::RUNTIME, "StopPodSandbox", &asked).await?;
        }
        let place = self.pods().remove(uid);
        if let Some(place) = place {
            self.network.disconnect(uid).map_err(io::Error::other)?;
            self.network.release(&place.addresses);
        }
        Ok(())
    }

    async fn forget_all(&self, uid: &str) -> io::Result<()> {
        self.take_down(uid).await?;
        for one in self.sandboxes(Some(uid)).await? {
            let asked = SandboxName { pod_sandbox_id: one.id };
            let _: Done = self.client.call(cri::RUNTIME, "RemovePodSandbox", &asked).await?;
        }
        self.names().retain(|id, _| id.pod_uid != uid);
        self.cgroups.remove_pod(uid)?;
        match fs::remove_dir_all(self.root.join("pods").join(uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    async fn launch(&self, spec: &ContainerSpec) -> io::Result<FoundState> {
        let place = self.pods().get(&spec.id.pod_uid).cloned();
        let place = place.ok_or_else(|| io::Error::other("the pod has no sandbox"))?;
        if let Some(dir) = spec.log.parent() {
            fs::create_dir_all(dir)?;
        }
        let image = self.images.status(&spec.image).await?;
        let image = image.ok_or_else(|| io::Error::other(format!("no image {:?}", spec.image)))?;
        let host = if images::shows_host(&spec.image) { self.host_mounts() } else { Vec::new() };
        let mut config = spec::container(spec, &place.spec, &image, &self.node, &host);
        if let Some(target) = &spec.target {
            spec::share_processes(&mut config, self.known(target)?);
        }
        let asked = CreateContainerRequest {
            pod_sandbox_id: place.id,
            config: Some(config),
            sandbox_config: Some(place.config),
        };
        let name: ContainerName = self.client.call(cri::RUNTIME, "CreateContainer", &asked).await?;
        self.names().insert(spec.id.clone(), name.container_id.clone());
        let started: Result<Done, CallError> =
            self.client.call(cri::RUNTIME, "StartContainer", &name).await;
        let state = watch::look(&self.client, &name.container_id).await?;
        match started {
            Err(error) if !state.is_over() => {
                self.remove_container(&name.container_id).await?;
                Err(error.into())
            }
            // What cannot be run has ended, and says why.
            _ => Ok(state.into_found()),
        }
    }

    /// What the images that are this program show of the host.
    fn host_mounts(&self) -> Vec<Mount> {
        let is_dir = |dir: &&&str| fs::symlink_metadata(dir).is_ok_and(|meta| meta.is_dir());
        let mount = |source: &Path, target: &str| Mount {
            source: source.to_owned(),
            target: target.into(),
            read_only: true,
        };
        let mut mounts: Vec<Mount> =
            HOST_DIRS.iter().filter(is_dir).map(|dir| mount(Path::new(dir), dir)).collect();
        mounts.push(mount(&self.program, PROGRAM));
        mounts
    }

    async fn remove_container(&self, name: &str) -> Result<(), CallError> {
        let asked = ContainerName { container_id: name.to_owned() };
        let _: Done = self.client.call(cri::RUNTIME, "RemoveContainer", &asked).await?;
        Ok(())
    }
}

impl Runtime for Containerd {
    fn name(&self) -> &'static str {
        "containerd"
    }

    fn url(&self, id: &ContainerId) -> String {
        self.name_of(id).map_or_else(String::new, |name| format!("containerd://{name}"))
    }

    fn version(&self) -> String {
        self.settings.version.clone()
    }

    fn list(&self) -> Result<Vec<FoundPod>, RuntimeError> {
        self.handle.block_on(self.list_all()).map_err(RuntimeError::at("list what runs"))
    }

    fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox, RuntimeError> {
        let made = self.handle.block_on(self.make_sandbox(spec));
        made.map_err(RuntimeError::at("failed to create pod sandbox"))
    }

    fn sandbox_ended(&self, uid: &str) -> BoxFuture<'static, ()> {
        let id = self.pods().get(uid).map(|place| place.id.clone());
        let client = Arc::clone(&self.client);
        async move {
            if let Some(id) = id {
                watch::sandbox_ended(&client, &id).await;
            }
        }
        .boxed()
    }

    fn remove_sandbox(&self, uid: &str) -> Result<(), RuntimeError> {
        let removed = self.handle.block_on(self.take_down(uid));
        removed.map_err(RuntimeError::at("remove the pod's sandbox"))
    }

    fn forget(&self, uid: &str) -> Result<(), RuntimeError> {
        let forgotten = self.handle.block_on(self.forget_all(uid));
        forgotten.map_err(RuntimeError::at("remove the pod's directory"))
    }

    fn pull(&self, image: &str, policy: &str) -> Result<String, ImageError> {
        self.handle.block_on(self.images.find(image, policy))
    }

    fn start(&self, spec: &ContainerSpec) -> Result<FoundState, RuntimeError> {
        let started = self.handle.block_on(self.launch(spec));
        started.map_err(RuntimeError::at("failed to create containerd task"))
    }

    fn ended(&self, id: &ContainerId) -> BoxFuture<'static, Ended> {
        let (client, name) = (Arc::clone(&self.client), self.name_of(id));
        async move {
            match name {
                Some(name) => watch::ended(&client, &name).await,
                None => Ended::lost(None),
            }
        }
        .boxed()
    }

    fn terminate(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let Some(name) = self.name_of(id) else { return Ok(()) };
        let client = Arc::clone(&self.client);
        // Answered when the container has ended, which nobody waits for here.
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        while calls.try_join_next().is_some() {}
        let call = async move {
            let asked = StopContainerRequest { container_id: name, timeout: LONG };
            let stopped: Result<Done, CallError> =
                client.call_patiently(cri::RUNTIME, "StopContainer", &asked).await;
            if let Err(error) = stopped {
                tracing::debug!(%error, "terminating a container was not answered");
            }
        };
        calls.spawn_on(call, &self.handle);
        Ok(())
    }

    fn kill(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let Some(name) = self.name_of(id) else { return Ok(()) };
        let asked = StopContainerRequest { container_id: name, timeout: 0 };
        let stop = self.client.call(cri::RUNTIME, "StopContainer", &asked);
        let stopped: Result<Done, CallError> = self.handle.block_on(stop);
        stopped.map(|_| ()).map_err(RuntimeError::at("kill a container"))
    }

    fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let Some(name) = self.name_of(id) else { return Ok(()) };
        let removed = self.handle.block_on(self.remove_container(&name));
        removed.map_err(RuntimeError::at("remove a container"))?;
        self.names().remove(id);
        Ok(())
    }

    fn run(
        &self,
        id: &ContainerId,
        command: &[String],
    ) -> BoxFuture<'static, Result<Said, RuntimeError>> {
        let (client, known) = (Arc::clone(&self.client), self.known(id));
        let cmd = command.to_vec();
        async move {
            let at = || RuntimeError::at("run a command in a container");
            let asked = ExecSyncRequest { container_id: known.map_err(at())?, cmd };
            let said: ExecSyncResponse = client
                .call_patiently(cri::RUNTIME, "ExecSync", &asked)
                .await
                .map_err(io::Error::from)
                .map_err(at())?;
            let text = [said.stdout, said.stderr].concat();
            Ok(Said { exit_code: said.exit_code, text })
        }
        .boxed()
    }

    fn conversation(
        &self,
        id: &ContainerId,
        wanted: &Conversation,
    ) -> BoxFuture<'static, Result<Option<Uri>, RuntimeError>> {
        let (client, known) = (Arc::clone(&self.client), self.known(id));
        let Conversation { command, stdin, stdout, stderr, tty } = wanted.clone();
        async move {
            let at = || RuntimeError::at("open a container's streams");
            let container_id = known.map_err(at())?;
            let served: StreamAt = match command {
                Some(cmd) => {
                    let asked = ExecRequest { container_id, cmd, tty, stdin, stdout, stderr };
                    client.call(cri::RUNTIME, "Exec", &asked).await
                }
                None => {
                    let asked = AttachRequest { container_id, stdin, tty, stdout, stderr };
                    client.call(cri::RUNTIME, "Attach", &asked).await
                }
            }
            .map_err(io::Error::from)
            .map_err(at())?;
            served.url.parse().map(Some).map_err(|error| at()(io::Error::other(error)))
        }
        .boxed()
    }

    fn exec(&self, _id: &ContainerId, _exec: &Exec) -> Result<Session, RuntimeError> {
        let why = io::Error::other("containerd serves its containers' streams itself");
        Err(RuntimeError::at("run a command in a container")(why))
    }

    fn network_namespace(&self, uid: &str) -> Option<PathBuf> {
        let pause = self.pods().get(uid)?.pause?;
        pause.is_alive().then(|| format!("/proc/{}/ns/net", pause.pid).into())
    }

    fn input(&self, _id: &ContainerId) -> PathBuf {
        PathBuf::new()
    }
}
