//! The cgroups of pods, in every hierarchy there is: v2 for what is attached to sockets, v1 or v2
//! for limits.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::runtime::Limits;

/// Where v1 hierarchies are mounted, each under its controller's name.
const V1: &str = "/sys/fs/cgroup";
/// The controllers that limits need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// How long a CPU quota's period is, in microseconds.
const PERIOD: u64 = 100_000;

/// The directories below which pods have theirs.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    v2: PathBuf,
    /// Where a controller is not on v2.
    v1: Vec<PathBuf>,
    /// Where an OCI runtime makes some as well, and leaves them.
    others: Vec<PathBuf>,
    /// What the pods' directories are in, from the root of every hierarchy, if it is the same.
    inside: PathBuf,
}

impl Cgroups {
    /// Finds them: v2 below `above`, v1 below the cgroups that this process is in.
    pub(crate) fn find(above: &Path, node: &str) -> io::Result<Self> {
        let name = format!("fairlead-{node}");
        let available = fs::read_to_string(above.join("cgroup.controllers"))?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let (v1, v2) = (below_own_v1(&available, &own, &name), above.join(name));
        let found = Self { v1, v2, others: Vec::new(), inside: PathBuf::new() };
        found.delegate(above, &available)?;
        Ok(found)
    }

    /// Finds them as OCI runtimes do, which have one path for every hierarchy.
    pub(crate) fn find_alike(above: &Path, node: &str) -> io::Result<Self> {
        let mount = sandbox::cgroup::find_mount().map_err(io::Error::other)?;
        let inside = above.strip_prefix(&mount).map_err(io::Error::other)?;
        let inside = Path::new("/").join(inside).join(format!("fairlead-{node}"));
        let available = fs::read_to_string(above.join("cgroup.controllers"))?;
        let below = |hierarchy: &Path| hierarchy.join(inside.strip_prefix("/").unwrap_or(&inside));
        let (mut v1, mut others) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(V1)? {
            let hierarchy = entry?.path();
            let is_limit = |one: &&str| hierarchy.ends_with(one) && !has_word(&available, one);
            if !hierarchy.join("tasks").exists() {
                continue;
            } else if CONTROLLERS.iter().any(is_limit) {
                v1.push(below(&hierarchy));
            } else {
                others.push(below(&hierarchy));
            }
        }
        let found = Self { v1, v2: below(&mount), others, inside: inside.clone() };
        found.delegate(above, &available)?;
        Ok(found)
    }

    /// A pod's cgroup, from the root of every hierarchy.
    pub(crate) fn parent(&self, uid: &str) -> PathBuf {
        pod(&self.inside, uid)
    }

    /// Lets the cgroups of pods have the v2 controllers.
    fn delegate(&self, above: &Path, available: &str) -> io::Result<()> {
        fs::create_dir_all(&self.v2)?;
        for controller in CONTROLLERS.into_iter().filter(|one| has_word(available, one)) {
            for dir in [above, &self.v2] {
                enable(dir, controller)?;
            }
        }
        Ok(())
    }

    fn roots(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.v2.as_path()).chain(self.v1.iter().map(PathBuf::as_path))
    }

    /// Makes a pod's cgroups.
    pub(crate) fn create_pod(&self, uid: &str, max_pids: u64) -> io::Result<()> {
        for root in self.roots() {
            fs::create_dir_all(pod(root, uid))?;
        }
        let v2 = pod(&self.v2, uid);
        let available = fs::read_to_string(v2.join("cgroup.controllers"))?;
        for controller in CONTROLLERS.into_iter().filter(|one| has_word(&available, one)) {
            enable(&v2, controller)?;
        }
        for root in self.roots() {
            let file = pod(root, uid).join("pids.max");
            if file.exists() {
                fs::write(file, max_pids.to_string())?;
            }
        }
        Ok(())
    }

    /// Makes one container's cgroups; says where processes join them.
    pub(crate) fn create_container(
        &self,
        uid: &str,
        name: &str,
        limits: &Limits,
    ) -> io::Result<Vec<PathBuf>> {
        let mut joins = Vec::new();
        for root in self.roots() {
            let dir = pod(root, uid).join(name);
            fs::create_dir_all(&dir)?;
            for (file, value) in settings(limits) {
                let file = dir.join(file);
                if file.exists() {
                    fs::write(file, value)?;
                }
            }
            joins.push(dir.join("cgroup.procs"));
        }
        Ok(joins)
    }

    /// Kills what runs in one container.
    pub(crate) fn kill_container(&self, uid: &str, name: &str) -> io::Result<()> {
        sandbox::cgroup::kill(&pod(&self.v2, uid).join(name))
    }

    /// Kills what runs in a pod, and removes its cgroups.
    pub(crate) fn remove_pod(&self, uid: &str) -> io::Result<()> {
        sandbox::cgroup::kill(&pod(&self.v2, uid))?;
        for root in self.roots().chain(self.others.iter().map(PathBuf::as_path)) {
            sandbox::cgroup::remove(&pod(root, uid))?;
        }
        Ok(())
    }
}

/// Where an agent of this name that runs processes keeps its pods' limits outside of `above`, the
/// cgroup v2 directory above every pod: whoever removes that has these left to remove.
///
/// # Errors
/// `above` is no cgroup, or the kernel does not say in which cgroups this process is.
pub fn limit_cgroups(above: &Path, node: &str) -> io::Result<Vec<PathBuf>> {
    let available = fs::read_to_string(above.join("cgroup.controllers"))?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    Ok(below_own_v1(&available, &own, &format!("fairlead-{node}")))
}

/// Of the controllers that v2 does not have, below the cgroups that a process is in.
fn below_own_v1(available: &str, own: &str, name: &str) -> Vec<PathBuf> {
    let v1 = CONTROLLERS.into_iter().filter(|one| !has_word(available, one));
    let v1 = v1.filter_map(|one| {
        let dir = Path::new(V1).join(one).join(own_v1(own, one)?.trim_start_matches('/'));
        dir.is_dir().then(|| dir.join(name))
    });
    v1.collect()
}

fn pod(root: &Path, uid: &str) -> PathBuf {
    root.join(format!("pod{uid}"))
}

fn has_word(words: &str, word: &str) -> bool {
    words.split_whitespace().any(|one| one == word)
}

fn enable(dir: &Path, controller: &str) -> io::Result<()> {
    let enabled = fs::read_to_string(dir.join("cgroup.subtree_control"))?;
    if has_word(&enabled, controller) {
        return Ok(());
    }
    fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"))
}

/// This process's own cgroup in the hierarchy of a v1 controller, from `/proc/self/cgroup`.
fn own_v1<'a>(own: &'a str, controller: &str) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?;
        controllers.split(',').any(|one| one == controller).then(|| parts.next())?
    })
}

/// What limits come to, in both versions' files; those of the other version do not exist.
fn settings(limits: &Limits) -> Vec<(&'static str, String)> {
    // As upstream converts requests: 1,024 shares a core, 2 at least.
    let shares = (limits.cpu_request * 1024 / 1000).clamp(2, 262_144);
    let weight = 1 + (shares - 2) * 9999 / 262_142;
    let mut all = vec![("cpu.shares", shares.to_string()), ("cpu.weight", weight.to_string())];
    if let Some(cpu) = limits.cpu {
        let quota = (cpu * PERIOD / 1000).max(1000);
        all.push(("cpu.cfs_period_us", PERIOD.to_string()));
        all.push(("cpu.cfs_quota_us", quota.to_string()));
        all.push(("cpu.max", format!("{quota} {PERIOD}")));
    }
    if let Some(memory) = limits.memory {
        all.push(("memory.limit_in_bytes", memory.to_string()));
        all.push(("memory.max", memory.to_string()));
        // The processes of a container end together.
        all.push(("memory.oom.group", "1".to_owned()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_shares_by_request_and_a_quota_by_limit() {
        let limits = Limits {
            cpu_request: 500,
            cpu: Some(1500),
            memory: Some(1 << 20),
            ..Limits::default()
        };
        let all = settings(&limits);
        let value = |name: &str| all.iter().find(|(file, _)| *file == name).unwrap().1.as_str();
        assert_eq!(value("cpu.shares"), "512");
        assert_eq!(value("cpu.cfs_quota_us"), "150000");
        assert_eq!(value("cpu.max"), "150000 100000");
        assert_eq!(value("memory.max"), "1048576");
    }

    #[test]
    fn the_own_v1_cgroup_is_found_by_controller() {
        let own = "8:pids:/a\n4:cpu,cpuacct:/b:c\n0::/u\n";
        assert_eq!(own_v1(own, "pids"), Some("/a"));
        assert_eq!(own_v1(own, "cpu"), Some("/b:c"));
        assert_eq!(own_v1(own, "memory"), None);
    }
}
