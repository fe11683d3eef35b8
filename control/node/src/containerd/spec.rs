//! From what the agent wants to what the CRI is asked for. `[pure]`

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use super::cri::{
    Capability, ContainerConfig, ContainerMetadata, Image, ImageSpec, Int64Value, KeyValue,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, ProfileType, SecurityProfile,
};
use crate::runtime::{self, ContainerSpec, Limits, SandboxSpec, Security};

/// Annotations by which a sandbox tells what it was asked to be …
pub(super) const SANDBOX: &str = "fairlead.io/sandbox";
/// … whose it is …
pub(super) const UID: &str = "fairlead.io/uid";
/// … and its addresses, with commas between them.
pub(super) const ADDRESSES: &str = "fairlead.io/addresses";
/// Where a container's last words are.
pub(super) const LAST_WORDS: &str = "fairlead.io/last-words";

/// Labels: the agent's own, and those that everybody looks for.
pub(super) const NODE_LABEL: &str = "fairlead.io/node";
pub(super) const UID_LABEL: &str = "io.kubernetes.pod.uid";
const NAME_LABEL: &str = "io.kubernetes.pod.name";
const NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
const CONTAINER_LABEL: &str = "io.kubernetes.container.name";

/// How long a CPU quota's period is, in microseconds.
const PERIOD: i64 = 100_000;

/// What containers may not see of the kernel, as upstream has it …
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// … and what they may not change.
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Where a sandbox belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Home<'a> {
    pub(super) node: &'a str,
    /// The pod's cgroup, from the root of every hierarchy.
    pub(super) cgroup: &'a Path,
}

/// The labels by which a node's own pods are found, or one of them.
pub(super) fn selector(node: &str, uid: Option<&str>) -> BTreeMap<String, String> {
    let of_node = std::iter::once((NODE_LABEL.to_owned(), node.to_owned()));
    of_node.chain(uid.map(|uid| (UID_LABEL.to_owned(), uid.to_owned()))).collect()
}

/// A sandbox as it is asked for.
pub(super) fn sandbox(
    spec: &SandboxSpec,
    attempt: u32,
    addresses: &[IpAddr],
    home: Home<'_>,
) -> PodSandboxConfig {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let json = serde_json::to_string(spec).unwrap_or_default();
    let mut labels = selector(home.node, Some(&spec.uid));
    labels.insert(NAME_LABEL.into(), spec.name.clone());
    labels.insert(NAMESPACE_LABEL.into(), spec.namespace.clone());
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: spec.name.clone(),
            uid: spec.uid.clone(),
            namespace: spec.namespace.clone(),
            attempt,
        }),
        // On the node's network it has the node's name.
        hostname: if spec.host_network { String::new() } else { spec.hostname.clone() },
        log_directory: text(&spec.logs),
        labels,
        annotations: BTreeMap::from([
            (SANDBOX.into(), json),
            (UID.into(), spec.uid.clone()),
            (ADDRESSES.into(), addresses.join(",")),
        ]),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: text(home.cgroup),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(spec)),
                privileged: spec.privileged,
                seccomp: Some(unconfined()),
            }),
        }),
    }
}

/// What a sandbox was asked to be, and its addresses, from its annotations.
pub(super) fn read_sandbox(
    annotations: &BTreeMap<String, String>,
) -> Option<(SandboxSpec, Vec<IpAddr>)> {
    let spec = serde_json::from_str(annotations.get(SANDBOX)?).ok()?;
    let addresses = annotations.get(ADDRESSES)?.split(',').filter(|one| !one.is_empty());
    Some((spec, addresses.map(str::parse).collect::<Result<_, _>>().ok()?))
}

/// A container as it is asked for; `host` is what it sees of the host beside its own mounts.
pub(super) fn container(
    spec: &ContainerSpec,
    pod: &SandboxSpec,
    image: &Image,
    node: &str,
    host: &[runtime::Mount],
) -> ContainerConfig {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mounts = host.iter().chain(&spec.mounts).chain([&spec.last_words]).map(|one| Mount {
        container_path: text(&one.target),
        host_path: text(&one.source),
        readonly: one.read_only,
    });
    let envs = spec.env.iter();
    let envs = envs.map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() });
    let mut labels = selector(node, Some(&spec.id.pod_uid));
    labels.insert(NAME_LABEL.into(), pod.name.clone());
    labels.insert(NAMESPACE_LABEL.into(), pod.namespace.clone());
    labels.insert(CONTAINER_LABEL.into(), spec.id.name.clone());
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: spec.id.name.clone(), attempt: spec.id.attempt }),
        image: Some(ImageSpec { image: image.id.clone() }),
        command: spec.command.clone(),
        args: spec.args.clone(),
        working_dir: spec.working_dir.clone(),
        envs: envs.collect(),
        mounts: mounts.collect(),
        labels,
        annotations: BTreeMap::from([(LAST_WORDS.into(), text(&spec.last_words.source))]),
        log_path: text(spec.log.strip_prefix(&pod.logs).unwrap_or(&spec.log)),
        stdin: spec.stdin,
        tty: spec.tty,
        linux: Some(LinuxContainerConfig {
            resources: Some(resources(spec.limits)),
            security_context: Some(security(&spec.security, pod, image)),
        }),
    }
}

fn namespaces(spec: &SandboxSpec) -> NamespaceOption {
    let of = |is_node| if is_node { NamespaceMode::Node } else { NamespaceMode::Pod };
    NamespaceOption {
        network: of(spec.host_network).into(),
        pid: NamespaceMode::Container.into(),
        ipc: of(spec.host_ipc).into(),
        target_id: String::new(),
    }
}

/// Lets a container see the processes of another one, which containerd knows by this name.
pub(super) fn share_processes(config: &mut ContainerConfig, target_id: String) {
    let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    if let Some(options) = security.and_then(|security| security.namespace_options.as_mut()) {
        options.pid = NamespaceMode::Target.into();
        options.target_id = target_id;
    }
}

/// What a pod has that says nothing else.
fn unconfined() -> SecurityProfile {
    SecurityProfile { profile_type: ProfileType::Unconfined.into() }
}

fn resources(limits: Limits) -> LinuxContainerResources {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    // As upstream converts requests: 1,024 shares a core, 2 at least.
    let shares = (limits.cpu_request * 1024 / 1000).clamp(2, 262_144);
    let quota = limits.cpu.map(|milli| (number(milli) * PERIOD / 1000).max(1000));
    LinuxContainerResources {
        cpu_period: if quota.is_some() { PERIOD } else { 0 },
        cpu_quota: quota.unwrap_or(0),
        cpu_shares: number(shares),
        memory_limit_in_bytes: limits.memory.map_or(0, number),
        oom_score_adj: limits.oom_score_adj.into(),
    }
}

fn security(own: &Security, pod: &SandboxSpec, image: &Image) -> LinuxContainerSecurityContext {
    let number = |n: u32| Int64Value { value: n.into() };
    let names = |all: &[String]| -> Vec<String> {
        all.iter().map(|one| one.strip_prefix("CAP_").unwrap_or(one).to_owned()).collect()
    };
    let words = |all: &[&str]| -> Vec<String> {
        all.iter().filter(|_| !own.privileged).map(|one| (*one).to_owned()).collect()
    };
    // A group goes with a user: the image's own, if nobody names another.
    let username = if own.user.is_none() { image.username.clone() } else { String::new() };
    let image_user = image.uid.filter(|_| username.is_empty());
    LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: names(&own.add),
            drop_capabilities: names(&own.drop),
        }),
        privileged: own.privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: own.user.map(number).or(image_user),
        run_as_group: own.group.map(number),
        run_as_username: username,
        readonly_rootfs: own.read_only_root,
        supplemental_groups: own.groups.iter().map(|group| (*group).into()).collect(),
        no_new_privs: own.no_new_privileges,
        masked_paths: words(&MASKED),
        readonly_paths: words(&READ_ONLY),
        seccomp: Some(unconfined()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> SandboxSpec {
        SandboxSpec {
            uid: "u".into(),
            namespace: "shop".into(),
            name: "web".into(),
            hostname: "web".into(),
            host_network: false,
            host_ipc: false,
            max_pids: 7,
            privileged: false,
            logs: "/logs/shop_web_u".into(),
        }
    }

    #[test]
    fn a_sandbox_tells_what_it_was_asked_to_be() {
        let addresses = ["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let home = Home { node: "n", cgroup: Path::new("/a/podu") };
        let config = sandbox(&pod(), 3, &addresses, home);
        let (spec, read) = read_sandbox(&config.annotations).unwrap();
        assert_eq!((spec.max_pids, read), (7, addresses.to_vec()));
        assert_eq!(config.metadata.unwrap().attempt, 3);
        let on_host = SandboxSpec { host_network: true, ..pod() };
        let config = sandbox(&on_host, 0, &[], home);
        assert_eq!(config.hostname, "");
        assert_eq!(read_sandbox(&config.annotations).unwrap().1, Vec::<IpAddr>::new());
        assert!(read_sandbox(&BTreeMap::new()).is_none());
    }

    #[test]
    fn limits_are_the_cgroup_s_numbers() {
        let limits =
            Limits { cpu_request: 500, cpu: Some(1500), memory: Some(64), oom_score_adj: 9 };
        let asked = resources(limits);
        assert_eq!((asked.cpu_shares, asked.cpu_quota, asked.cpu_period), (512, 150_000, 100_000));
        assert_eq!((asked.memory_limit_in_bytes, asked.oom_score_adj), (64, 9));
        assert_eq!(resources(Limits::default()).cpu_quota, 0);
    }

    #[test]
    fn a_container_runs_as_its_own_user_before_its_image_s() {
        let image = Image { uid: Some(Int64Value { value: 5 }), ..Image::default() };
        let user =
            |own: &Security| security(own, &pod(), &image).run_as_user.map(|user| user.value);
        assert_eq!(user(&Security::default()), Some(5));
        assert_eq!(user(&Security { user: Some(7), ..Security::default() }), Some(7));
        let named = Image { username: "web".into(), ..Image::default() };
        let asked = security(&Security::default(), &pod(), &named);
        assert_eq!((asked.run_as_user, asked.run_as_username.as_str()), (None, "web"));
        let privileged = Security { privileged: true, ..Security::default() };
        assert!(security(&privileged, &pod(), &image).masked_paths.is_empty());
        assert_eq!(asked.masked_paths.len(), MASKED.len());
    }
}
