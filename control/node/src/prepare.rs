//! From a container as the API has it to a container as a runtime starts it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::api::{Cluster, RequestError};
use crate::environment::{self, ConfigError, Sources};
use crate::quantity::{self, milli, whole};
use crate::runtime::{ContainerId, ContainerSpec, Limits, Mount, Security};
use crate::volumes::{TOKEN_DIR, TOKEN_VOLUME, VolumeError};

/// What containers without a `PATH` of their own have.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a container cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    File(#[from] std::io::Error),
}

/// Where the files of one pod are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Its own directory.
    pub(crate) pod: PathBuf,
    /// Its logs.
    pub(crate) logs: PathBuf,
    /// Its volumes, by name.
    pub(crate) volumes: BTreeMap<String, PathBuf>,
}

impl Places {
    /// Where an attempt's log is.
    pub(crate) fn log(&self, container: &str, attempt: u32) -> PathBuf {
        self.logs.join(container).join(format!("{attempt}.log"))
    }
}

/// Reads what a container's references name.
pub(crate) async fn read_sources(
    cluster: &Cluster,
    pod: &Pod,
    container: &Container,
    mut sources: Sources,
) -> Result<Sources, PrepareError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    for from in container.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.iter().map(|one| one.name.clone()));
        secrets.extend(from.secret_ref.iter().map(|one| one.name.clone()));
    }
    for from in container.env.iter().flatten().filter_map(|one| one.value_from.as_ref()) {
        maps.extend(from.config_map_key_ref.iter().map(|one| one.name.clone()));
        secrets.extend(from.secret_key_ref.iter().map(|one| one.name.clone()));
    }
    for name in maps {
        if let Some(map) = cluster.config_map(namespace, &name).await? {
            sources.config_maps.insert(name, map);
        }
    }
    for name in secrets {
        if let Some(secret) = cluster.secret(namespace, &name).await? {
            sources.secrets.insert(name, secret);
        }
    }
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    if links {
        sources.services = cluster.services(namespace).await?;
    }
    if !links || namespace != "default" {
        sources.services.extend(cluster.service("default", "kubernetes").await?);
    }
    Ok(sources)
}

/// A container as it is to be started.
pub(crate) fn container(
    pod: &Pod,
    container: &Container,
    attempt: u32,
    sources: &Sources,
    places: &Places,
) -> Result<ContainerSpec, PrepareError> {
    let mut env = environment::variables(pod, container, sources)?;
    let hostname = crate::names::hostname(pod);
    env.entry("PATH".into()).or_insert_with(|| PATH.into());
    env.entry("HOSTNAME".into()).or_insert(hostname);
    let expand = |words: &Option<Vec<String>>| -> Vec<String> {
        words.iter().flatten().map(|word| environment::expand(word, &env)).collect()
    };
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let id = ContainerId { pod_uid: uid, name: container.name.clone(), attempt };
    let security = security(pod, container);
    if security.must_not_be_root && security.user.unwrap_or(0) == 0 {
        return Err(PrepareError::Invalid(
            "container has runAsNonRoot and image will run as root".into(),
        ));
    }
    let own = places.pod.join("own");
    fs::create_dir_all(&own)?;
    let last_words = own.join(format!("{}-{attempt}.words", container.name));
    fs::write(&last_words, "")?;
    let path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    Ok(ContainerSpec {
        id,
        image: container.image.clone().unwrap_or_default(),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts: mounts(pod, container, places, &env)?,
        security,
        limits: limits(pod, container, sources),
        log: places.log(&container.name, attempt),
        stdin: container.stdin == Some(true),
        tty: container.tty == Some(true),
        last_words: Mount { source: last_words, target: path.into(), read_only: false },
        target: None,
        env,
    })
}

fn mounts(
    pod: &Pod,
    container: &Container,
    places: &Places,
    env: &BTreeMap<String, String>,
) -> Result<Vec<Mount>, PrepareError> {
    let mut all = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let place = places.volumes.get(&mount.name).ok_or_else(|| {
            PrepareError::Invalid(format!("volume {:?} is not there", mount.name))
        })?;
        let below = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) => path.clone(),
            (None, Some(path)) => environment::expand(path, env),
            (None, None) => String::new(),
        };
        let source = if below.is_empty() { place.clone() } else { inside(place, &below)? };
        all.push(Mount {
            source,
            target: PathBuf::from(&mount.mount_path),
            read_only: mount.read_only == Some(true) || is_api_volume(pod, &mount.name),
        });
    }
    let has = |all: &[Mount], path: &str| all.iter().any(|one| one.target == Path::new(path));
    if let Some(source) = places.volumes.get(TOKEN_VOLUME).filter(|_| !has(&all, TOKEN_DIR)) {
        let target = TOKEN_DIR.into();
        all.push(Mount { source: source.clone(), target, read_only: true });
    }
    for name in ["hosts", "resolv.conf", "hostname"] {
        let target = format!("/etc/{name}");
        if !has(&all, &target) {
            let source = places.pod.join("own").join(name);
            all.push(Mount { source, target: target.into(), read_only: false });
        }
    }
    Ok(all)
}

/// A path inside a volume, made if it is not there, and never outside by a symbolic link.
fn inside(volume: &Path, below: &str) -> Result<PathBuf, PrepareError> {
    let relative = Path::new(below);
    if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(PrepareError::Invalid(format!("subPath {below:?} leads out of its volume")));
    }
    let path = volume.join(relative);
    if !path.exists() {
        fs::create_dir_all(&path)?;
    }
    let (real, root) = (path.canonicalize()?, volume.canonicalize()?);
    if !real.starts_with(&root) {
        return Err(PrepareError::Invalid(format!("subPath {below:?} leads out of its volume")));
    }
    Ok(real)
}

/// Whether a volume's content is the API's, so that nobody writes to it.
fn is_api_volume(pod: &Pod, name: &str) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter(|one| one.name == name).any(|one| {
        one.config_map.is_some()
            || one.secret.is_some()
            || one.projected.is_some()
            || one.downward_api.is_some()
    })
}

fn security(pod: &Pod, container: &Container) -> Security {
    let of_pod =
        pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let id = |own: Option<i64>, pod: Option<i64>| own.or(pod).and_then(|id| u32::try_from(id).ok());
    let groups = of_pod.supplemental_groups.into_iter().flatten().chain(of_pod.fs_group);
    let capabilities = own.capabilities.unwrap_or_default();
    let privileged = own.privileged == Some(true);
    Security {
        user: id(own.run_as_user, of_pod.run_as_user),
        group: id(own.run_as_group, of_pod.run_as_group),
        groups: groups.filter_map(|id| u32::try_from(id).ok()).collect(),
        must_not_be_root: own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true),
        privileged,
        add: capabilities.add.unwrap_or_default(),
        drop: capabilities.drop.unwrap_or_default(),
        read_only_root: own.read_only_root_filesystem == Some(true),
        no_new_privileges: own.allow_privilege_escalation == Some(false) && !privileged,
    }
}

fn limits(pod: &Pod, container: &Container, sources: &Sources) -> Limits {
    let resources = container.resources.clone().unwrap_or_default();
    let get = |list: &Option<_>, name| quantity::find(list.as_ref(), name).cloned();
    let request = get(&resources.requests, "memory").as_ref().and_then(whole);
    let cpu_request = get(&resources.requests, "cpu").as_ref().and_then(milli).unwrap_or(0);
    let qos = pod.status.as_ref().and_then(|status| status.qos_class.as_deref());
    // Upstream's formula: the more of the node's memory is requested, the later it is killed.
    let oom_score_adj = match qos {
        Some("Guaranteed") => -997,
        Some("Burstable") => {
            let share = request.unwrap_or(0).saturating_mul(1000) / sources.node_memory.max(1);
            i32::try_from(1000_u64.saturating_sub(share).clamp(3, 999)).unwrap_or(999)
        }
        _ => 1000,
    };
    Limits {
        cpu_request,
        cpu: get(&resources.limits, "cpu").as_ref().and_then(milli),
        memory: get(&resources.limits, "memory").as_ref().and_then(whole),
        oom_score_adj,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_s_own_word_counts_before_its_pod_s() {
        let text = "{spec: {securityContext: {runAsUser: 1000, runAsGroup: 2000, fsGroup: 3000}, \
                    containers: [{name: c, securityContext: {runAsUser: 5, capabilities: \
                    {drop: [ALL]}}}]}}";
        let pod: Pod = serde_saphyr::from_str(text).unwrap();
        let found = security(&pod, &pod.spec.as_ref().unwrap().containers[0]);
        assert_eq!((found.user, found.group), (Some(5), Some(2000)));
        assert_eq!((found.groups, found.drop), (vec![3000], vec!["ALL".to_owned()]));
    }

    #[test]
    fn a_sub_path_stays_in_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        fs::create_dir(&volume).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
        assert!(inside(&volume, "a/b").unwrap().ends_with("v/a/b"));
        for bad in ["../x", "/etc", "out"] {
            assert!(inside(&volume, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_are_numbers() {
        let text = "{spec: {containers: [{name: c, resources: {limits: {cpu: 500m, memory: 64Mi}, \
                    requests: {cpu: 250m, memory: 32Mi}}}]}, status: {qosClass: Burstable}}";
        let pod: Pod = serde_saphyr::from_str(text).unwrap();
        let sources = Sources { node_memory: 1 << 30, ..Sources::default() };
        let found = limits(&pod, &pod.spec.as_ref().unwrap().containers[0], &sources);
        assert_eq!((found.cpu_request, found.cpu, found.memory), (250, Some(500), Some(64 << 20)));
        assert_eq!(found.oom_score_adj, 1000 - 31);
    }
}
