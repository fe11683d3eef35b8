//! What a runtime does for the agent: sandboxes, and containers in them.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::Uri;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One attempt of one container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct ContainerId {
    pub(crate) pod_uid: String,
    pub(crate) name: String,
    pub(crate) attempt: u32,
}

impl ContainerId {
    /// As a status says it, behind the runtime's name.
    pub(crate) fn url(&self, runtime: &str) -> String {
        format!("{runtime}://{}/{}/{}", self.pod_uid, self.name, self.attempt)
    }
}

/// A pod's sandbox as it is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxSpec {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) hostname: String,
    pub(crate) host_network: bool,
    pub(crate) host_ipc: bool,
    /// Processes at once in the whole pod.
    pub(crate) max_pids: u64,
    /// Whether a container of it may do everything.
    #[serde(default)]
    pub(crate) privileged: bool,
    /// The directory of its containers' logs.
    #[serde(default)]
    pub(crate) logs: PathBuf,
}

/// A sandbox that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sandbox {
    /// Empty on the host's network.
    pub(crate) addresses: Vec<IpAddr>,
}

/// A container as it is to be started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerSpec {
    pub(crate) id: ContainerId,
    pub(crate) image: String,
    /// In the place of the image's entry point, if not empty.
    pub(crate) command: Vec<String>,
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) working_dir: String,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) security: Security,
    pub(crate) limits: Limits,
    pub(crate) log: PathBuf,
    pub(crate) stdin: bool,
    pub(crate) tty: bool,
    /// A file of the host's that the container may write its last words to, and where it sees it.
    pub(crate) last_words: Mount,
    /// The container of the same pod whose processes it sees, if not only its own.
    #[serde(default)]
    pub(crate) target: Option<ContainerId>,
}

/// Something of the host's that a container sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
}

/// As whom a container runs, and what it may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the API's own switches")]
pub(crate) struct Security {
    pub(crate) user: Option<u32>,
    pub(crate) group: Option<u32>,
    pub(crate) groups: Vec<u32>,
    pub(crate) must_not_be_root: bool,
    pub(crate) privileged: bool,
    pub(crate) add: Vec<String>,
    pub(crate) drop: Vec<String>,
    pub(crate) read_only_root: bool,
    pub(crate) no_new_privileges: bool,
}

/// What a container may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Thousandths of a core that it has by right.
    pub(crate) cpu_request: u64,
    /// Thousandths of a core that it may use.
    pub(crate) cpu: Option<u64>,
    /// Bytes.
    pub(crate) memory: Option<u64>,
    pub(crate) oom_score_adj: i32,
}

/// A container's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) exit_code: i32,
    pub(crate) signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, …
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Timestamp,
}

impl Ended {
    /// The end of a container of which nobody knows how it came, in the kubelet's words.
    pub(crate) fn lost(since: Option<Timestamp>) -> Self {
        Self {
            exit_code: 137,
            signal: None,
            reason: "ContainerStatusUnknown".into(),
            message: "The container could not be located when the pod was terminated".into(),
            started_at: since,
            finished_at: Timestamp::now(),
        }
    }
}

/// A container of which the runtime knows.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) id: ContainerId,
    pub(crate) state: FoundState,
}

/// What became of it.
#[derive(Clone, Debug)]
pub(crate) enum FoundState {
    Running { since: Timestamp },
    Ended(Ended),
}

/// A pod of which the runtime knows.
#[derive(Clone, Debug)]
pub(crate) struct FoundPod {
    pub(crate) uid: String,
    /// Nothing when it is not whole.
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) containers: Vec<Found>,
}

/// Why an image cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ImageError {
    /// It is no name of an image.
    #[error("couldn't parse image name {0:?}: invalid reference format")]
    Invalid(String),
    /// It is not on this node, and may not or cannot be fetched.
    #[error("{0}")]
    Absent(String),
    /// It is not on this node, and the policy is `Never`.
    #[error("Container image {0:?} is not present with pull policy of Never")]
    NeverPull(String),
}

/// Why the runtime could not do something.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub(crate) struct RuntimeError {
    pub(crate) doing: String,
    pub(crate) source: io::Error,
}

impl RuntimeError {
    pub(crate) fn at<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> Self {
        let doing = doing.into();
        move |source| Self { doing, source: source.into() }
    }
}

/// A command to run in a container that runs.
#[derive(Clone, Debug)]
pub(crate) struct Exec {
    pub(crate) command: Vec<String>,
    pub(crate) stdin: bool,
    pub(crate) tty: bool,
}

/// A command that runs in a container: ends when dropped.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) child: tokio::process::Child,
    /// The master's side of its terminal, if it has one.
    pub(crate) terminal: Option<std::os::fd::OwnedFd>,
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) exit_code: i32,
    /// Standard output, then standard error.
    pub(crate) text: Vec<u8>,
}

/// What a client wants to speak with, and over which streams.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "the streams, each there or not")]
pub(crate) struct Conversation {
    /// A command to start, or else what the container runs anyway.
    pub(crate) command: Option<Vec<String>>,
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

/// Runs pods. Calls that give no future may block, and are made on threads that may.
pub(crate) trait Runtime: Send + Sync + std::fmt::Debug {
    /// Its name, as in a container's id.
    fn name(&self) -> &'static str;

    /// A container as a status names it.
    fn url(&self, id: &ContainerId) -> String {
        id.url(self.name())
    }

    /// Its version, as a node's status says it.
    fn version(&self) -> String;

    /// What it runs or has run and not yet removed.
    fn list(&self) -> Result<Vec<FoundPod>, RuntimeError>;

    /// Makes a pod's sandbox, in place of one that is not whole.
    fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox, RuntimeError>;

    /// Returns when the sandbox has ended.
    fn sandbox_ended(&self, uid: &str) -> BoxFuture<'static, ()>;

    /// Ends everything that runs in a pod and takes its sandbox down; what containers came to
    /// stays known.
    fn remove_sandbox(&self, uid: &str) -> Result<(), RuntimeError>;

    /// Forgets a pod, and all it left.
    fn forget(&self, uid: &str) -> Result<(), RuntimeError>;

    /// Finds an image; says what a status calls it.
    fn pull(&self, image: &str, policy: &str) -> Result<String, ImageError>;

    /// Starts a container. What cannot be run has ended at once, and says why.
    fn start(&self, spec: &ContainerSpec) -> Result<FoundState, RuntimeError>;

    /// Returns a running container's end.
    fn ended(&self, id: &ContainerId) -> BoxFuture<'static, Ended>;

    /// Asks a container to end (SIGTERM).
    fn terminate(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// Ends a container (SIGKILL).
    fn kill(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// Removes an ended container's traces, but for its log.
    fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// Runs a command in a running container, to its end or until nobody waits for it.
    fn run(
        &self,
        id: &ContainerId,
        command: &[String],
    ) -> BoxFuture<'static, Result<Said, RuntimeError>>;

    /// Where the runtime itself serves a conversation; nowhere, if that is the agent's to do.
    fn conversation(
        &self,
        _id: &ContainerId,
        _wanted: &Conversation,
    ) -> BoxFuture<'static, Result<Option<Uri>, RuntimeError>> {
        std::future::ready(Ok(None)).boxed()
    }

    /// Starts a command in a running container; to be called on the runtime's own threads.
    fn exec(&self, id: &ContainerId, exec: &Exec) -> Result<Session, RuntimeError>;

    /// The pod's network namespace, as a file.
    fn network_namespace(&self, uid: &str) -> Option<PathBuf>;

    /// The file through which a running container is written to, if it reads.
    fn input(&self, id: &ContainerId) -> PathBuf;
}
