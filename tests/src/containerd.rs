//! A containerd of one node's own, beside those of other nodes: everything of it is in one
//! directory, and its mounts are nobody else's.
#![expect(clippy::unwrap_used, reason = "a test fails loudly")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox::{Node, Process, wait};

/// The tests' profile that runs pods in containerd.
const PROFILE: &str = "pods-containerd";

/// How long it may take to begin on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Its runtime's sockets have a place of their own, whatever it is configured to; and what it
/// mounts goes with the last of its processes.
const ALONE: &str = r#"mkdir -p /run/containerd && mount -t tmpfs containerd /run/containerd &&
exec containerd -c "$0""#;

/// Whether pods are to run in containerd: the profile says so.
#[must_use]
pub fn is_wanted() -> bool {
    std::env::var("NEXTEST_PROFILE").is_ok_and(|profile| profile == PROFILE)
}

/// A containerd. It ends with its node's cgroup.
#[derive(Debug)]
pub struct Containerd {
    _daemon: Process,
    socket: PathBuf,
    /// The node's, from the root of every hierarchy.
    cgroup: PathBuf,
}

impl Containerd {
    /// Starts one on a node, which keeps everything in `dir`: as after a start of the machine, what is there
    /// of an earlier one is known, and nothing of it runs.
    ///
    /// # Panics
    /// It does not begin.
    pub fn start(node: &Node, dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let socket = dir.join("sock");
        _ = fs::remove_file(&socket);
        _ = fs::remove_dir_all(dir.join("state"));
        fs::write(dir.join("config.toml"), config(dir)).unwrap();
        let daemon = node
            .command("unshare")
            .args(["--mount", "--propagation", "slave", "sh", "-c", ALONE])
            .arg(dir.join("config.toml"))
            .stderr(fs::File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        let begins = wait::until(PATIENCE, || socket.exists());
        assert!(begins, "{}", fs::read_to_string(dir.join("log")).unwrap());
        let mount = sandbox::cgroup::find_mount().unwrap();
        let cgroup = node.cgroup().strip_prefix(mount).unwrap().to_owned();
        Self { _daemon: daemon, socket, cgroup }
    }

    /// An agent's flags for pods in here.
    #[must_use]
    pub fn flags(&self) -> Vec<String> {
        let endpoint = format!("unix://{}", self.socket.display());
        vec!["--runtime=containerd".into(), format!("--container-runtime-endpoint={endpoint}")]
    }
}

impl Drop for Containerd {
    /// The sandbox removes its v2 cgroups; these are the other hierarchies'. Who was killed may take
    /// a moment to leave them.
    fn drop(&mut self) {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|one| one.path());
        let old: Vec<PathBuf> = hierarchies.filter(|one| one.join("tasks").exists()).collect();
        wait::until(PATIENCE, || {
            let remove = |root: &PathBuf| sandbox::cgroup::remove(&root.join(&self.cgroup)).is_ok();
            old.iter().filter(|root| !remove(root)).count() == 0
        });
        // What is above the nodes goes with the last of them.
        for root in &old {
            _ = self.cgroup.parent().map(|above| fs::remove_dir(root.join(above)));
        }
    }
}

/// Nothing that a machine of tests lacks: no overlays (the disk may be one), no `AppArmor`, no
/// raising of OOM scores, no plugins but those that the agent installs.
fn config(dir: &Path) -> String {
    let at = dir.display();
    format!(
        r#"version = 2
root = "{at}/root"
state = "{at}/state"
[grpc]
address = "{at}/sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{at}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "fairlead/pause"
restrict_oom_score_adj = true
disable_apparmor = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{at}/cni/bin"
conf_dir = "{at}/cni/net.d"
"#
    )
}
