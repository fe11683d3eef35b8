//! A pod's volumes, as directories and files of the host's.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{KeyToPath, Pod, Volume};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::api::{Cluster, RequestError};
use crate::environment::{self, ConfigError, Sources};
use crate::quantity;

/// Where a service account's token is, in every container.
pub(crate) const TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The volume that it is in.
pub(crate) const TOKEN_VOLUME: &str = "kube-api-access";
/// How long a token is good for, if nothing else is asked for.
const TOKEN_SECONDS: i64 = 3600;

/// Why a volume is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    File(#[from] io::Error),
    #[error("hostPath type check failed: {path} is not a {form}")]
    HostPath { path: String, form: String },
    #[error("references non-existent key: {0}")]
    NoKey(String),
    #[error(
        "volume {0:?}: this kind of volume is not supported on this node: use emptyDir, hostPath, configMap, secret, downwardAPI or projected"
    )]
    Unsupported(String),
}

/// Files of a volume that the API fills: path, content, mode.
type Content = BTreeMap<String, (Vec<u8>, u32)>;

/// Where a pod's volumes are.
#[derive(Clone, Debug)]
pub(crate) struct Volumes<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) pod: &'a Pod,
    pub(crate) sources: &'a Sources,
    pub(crate) dir: PathBuf,
}

impl Volumes<'_> {
    /// Makes every volume of the pod, or brings it up to date; says where each is.
    pub(crate) async fn set_up(&self) -> Result<BTreeMap<String, PathBuf>, VolumeError> {
        let mut places = BTreeMap::new();
        let spec = self.pod.spec.clone().unwrap_or_default();
        for volume in spec.volumes.iter().flatten() {
            places.insert(volume.name.clone(), self.one(volume).await?);
        }
        if spec.automount_service_account_token != Some(false) {
            let dir = self.dir.join(TOKEN_VOLUME);
            match self.account_files(spec.service_account_name.as_deref()).await {
                Ok(content) => {
                    fill(&dir, &content)?;
                    places.insert(TOKEN_VOLUME.to_owned(), dir);
                }
                // No account was asked for, and there is none.
                Err(VolumeError::Request(error))
                    if error.code() == 404 && spec.service_account_name.is_none() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(places)
    }

    async fn one(&self, volume: &Volume) -> Result<PathBuf, VolumeError> {
        let dir = self.dir.join(&volume.name);
        if let Some(host) = &volume.host_path {
            return host_path(&host.path, host.type_.as_deref().unwrap_or_default());
        }
        if let Some(empty) = &volume.empty_dir {
            let limit = empty.size_limit.as_ref().and_then(quantity::whole);
            make_empty(&dir, empty.medium.as_deref() == Some("Memory"), limit)?;
            return Ok(dir);
        }
        let content = if let Some(map) = &volume.config_map {
            let mode = map.default_mode;
            let optional = map.optional == Some(true);
            self.config_map(&map.name, map.items.as_deref(), optional, mode).await?
        } else if let Some(secret) = &volume.secret {
            let name = secret.secret_name.as_deref().unwrap_or_default();
            let optional = secret.optional == Some(true);
            self.secret(name, secret.items.as_deref(), optional, secret.default_mode).await?
        } else if let Some(downward) = &volume.downward_api {
            self.downward(downward.items.as_deref().unwrap_or_default(), downward.default_mode)?
        } else if let Some(projected) = &volume.projected {
            self.projected(projected).await?
        } else if has_no_source(volume) {
            make_empty(&dir, false, None)?;
            return Ok(dir);
        } else {
            return Err(VolumeError::Unsupported(volume.name.clone()));
        };
        fill(&dir, &content)?;
        Ok(dir)
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("default")
    }

    async fn config_map(
        &self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
        mode: Option<i32>,
    ) -> Result<Content, VolumeError> {
        let Some(map) = self.cluster.config_map(self.namespace(), name).await? else {
            return none(optional, "configmap", name);
        };
        let mut all: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        all.extend(map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes())));
        all.extend(map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0)));
        choose(&all, items, optional, mode)
    }

    async fn secret(
        &self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
        mode: Option<i32>,
    ) -> Result<Content, VolumeError> {
        let Some(secret) = self.cluster.secret(self.namespace(), name).await? else {
            return none(optional, "secret", name);
        };
        let all = secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect();
        choose(&all, items, optional, mode)
    }

    fn downward(
        &self,
        items: &[k8s_openapi::api::core::v1::DownwardAPIVolumeFile],
        default: Option<i32>,
    ) -> Result<Content, VolumeError> {
        let mut content = Content::new();
        for item in items {
            let value = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => {
                    environment::field_value(self.pod, &field.field_path, self.sources)?
                }
                (_, Some(resource)) => {
                    let none = k8s_openapi::api::core::v1::Container::default();
                    environment::resource_value(self.pod, &none, resource, self.sources)?
                }
                _ => continue,
            };
            let mode = file_mode(item.mode.or(default));
            content.insert(item.path.clone(), (value.into_bytes(), mode));
        }
        Ok(content)
    }

    async fn projected(
        &self,
        projected: &k8s_openapi::api::core::v1::ProjectedVolumeSource,
    ) -> Result<Content, VolumeError> {
        let mode = projected.default_mode;
        let mut content = Content::new();
        for source in projected.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                let optional = map.optional == Some(true);
                let some = self.config_map(&map.name, map.items.as_deref(), optional, mode).await?;
                content.extend(some);
            }
            if let Some(secret) = &source.secret {
                let optional = secret.optional == Some(true);
                let items = secret.items.as_deref();
                content.extend(self.secret(&secret.name, items, optional, mode).await?);
            }
            if let Some(downward) = &source.downward_api {
                let items = downward.items.as_deref().unwrap_or_default();
                content.extend(self.downward(items, mode)?);
            }
            if let Some(token) = &source.service_account_token {
                let account =
                    self.pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
                let seconds = token.expiration_seconds.unwrap_or(TOKEN_SECONDS);
                let audience = token.audience.as_deref();
                let account = account.unwrap_or("default");
                let text = self.cluster.token(self.namespace(), account, audience, seconds).await?;
                content.insert(token.path.clone(), (text.into_bytes(), file_mode(mode)));
            }
        }
        Ok(content)
    }

    /// What a service account has in every container: its token, the authority, the namespace.
    async fn account_files(&self, account: Option<&str>) -> Result<Content, VolumeError> {
        let account = account.unwrap_or("default");
        let token = self.cluster.token(self.namespace(), account, None, TOKEN_SECONDS).await?;
        let mut content = Content::new();
        content.insert("token".into(), (token.into_bytes(), 0o644));
        content.insert("namespace".into(), (self.namespace().as_bytes().to_vec(), 0o644));
        let authority = self.cluster.config_map(self.namespace(), "kube-root-ca.crt").await?;
        let text = authority.and_then(|map| map.data?.remove("ca.crt")).unwrap_or_default();
        content.insert("ca.crt".into(), (text.into_bytes(), 0o644));
        Ok(content)
    }
}

fn none(optional: bool, kind: &'static str, name: &str) -> Result<Content, VolumeError> {
    if optional {
        return Ok(Content::new());
    }
    Err(ConfigError::Object { kind, name: name.to_owned() }.into())
}

/// A volume without a source is an empty directory.
fn has_no_source(volume: &Volume) -> bool {
    *volume == Volume { name: volume.name.clone(), ..Volume::default() }
}

fn file_mode(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644) & 0o777
}

fn choose(
    all: &BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    default: Option<i32>,
) -> Result<Content, VolumeError> {
    let Some(items) = items else {
        let whole =
            all.iter().map(|(key, value)| (key.clone(), (value.clone(), file_mode(default))));
        return Ok(whole.collect());
    };
    let mut content = Content::new();
    for item in items {
        match all.get(&item.key) {
            Some(value) => {
                let mode = file_mode(item.mode.or(default));
                content.insert(item.path.clone(), (value.clone(), mode));
            }
            None if optional => {}
            None => return Err(VolumeError::NoKey(item.key.clone())),
        }
    }
    Ok(content)
}

/// Writes a volume's files so that readers see the old ones or the new ones: into a directory of
/// their own, which a symbolic link is then turned to.
fn fill(dir: &Path, content: &Content) -> io::Result<()> {
    let link = dir.join("..data");
    if is_current(&link, content) {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    let version = format!("..{}", jiff::Timestamp::now().as_nanosecond());
    let new = dir.join(&version);
    fs::create_dir(&new)?;
    for (path, (bytes, mode)) in content {
        let relative = Path::new(path);
        if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(io::Error::other(format!("the path {path:?} leads out of its volume")));
        }
        let file = new.join(relative);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&file, bytes)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(*mode))?;
    }
    let old = fs::read_link(&link).ok();
    let turned = dir.join("..data_tmp");
    symlink(&version, &turned)?;
    fs::rename(&turned, &link)?;
    let tops: std::collections::BTreeSet<&str> =
        content.keys().filter_map(|path| path.split('/').next()).collect();
    for top in &tops {
        if fs::symlink_metadata(dir.join(top)).is_err() {
            symlink(Path::new("..data").join(top), dir.join(top))?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !tops.contains(name.as_str()) {
            fs::remove_file(entry.path())?;
        }
    }
    match old {
        Some(old) => fs::remove_dir_all(dir.join(old)),
        None => Ok(()),
    }
}

fn is_current(link: &Path, content: &Content) -> bool {
    let n_files = fs::read_dir(link).map(Iterator::count);
    let tops: std::collections::BTreeSet<Option<&str>> =
        content.keys().map(|path| path.split('/').next()).collect();
    n_files.is_ok_and(|n| n == tops.len())
        && content.iter().all(|(path, (bytes, _))| {
            fs::read(link.join(path)).is_ok_and(|current| current == *bytes)
        })
}

fn make_empty(dir: &Path, in_memory: bool, limit: Option<u64>) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    if in_memory {
        let size = limit.map(|limit| format!(",size={limit}")).unwrap_or_default();
        let options = format!("mode=1777{size}");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options.as_str()))?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o1777))
}

/// Unmounts what is mounted among a pod's volumes, before they are removed.
pub(crate) fn unmount_all(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        match umount2(&entry?.path(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // EINVAL: it is no mount.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn host_path(path: &str, form: &str) -> Result<PathBuf, VolumeError> {
    let place = PathBuf::from(path);
    let fits = match form {
        "DirectoryOrCreate" => {
            fs::create_dir_all(&place)?;
            true
        }
        "FileOrCreate" => {
            fs::File::options().append(true).create(true).open(&place)?;
            true
        }
        "Directory" => place.is_dir(),
        "File" => place.is_file(),
        _ => {
            if !place.exists() {
                fs::create_dir_all(&place)?;
            }
            true
        }
    };
    if fits {
        return Ok(place);
    }
    Err(VolumeError::HostPath { path: path.to_owned(), form: form.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(files: &[(&str, &str)]) -> Content {
        let one =
            |(path, text): &(&str, &str)| ((*path).to_owned(), (text.as_bytes().to_vec(), 0o644));
        files.iter().map(one).collect()
    }

    #[test]
    fn files_change_together_and_go_when_they_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).ok();
        fill(dir.path(), &content(&[("a", "1"), ("d/b", "2")])).unwrap();
        assert_eq!((read("a").unwrap(), read("d/b").unwrap()), ("1".into(), "2".into()));
        let before = fs::read_link(dir.path().join("..data")).unwrap();
        fill(dir.path(), &content(&[("a", "1"), ("d/b", "2")])).unwrap();
        assert_eq!(fs::read_link(dir.path().join("..data")).unwrap(), before);
        fill(dir.path(), &content(&[("a", "3")])).unwrap();
        assert_eq!((read("a").unwrap(), read("d/b")), ("3".into(), None));
        assert!(!dir.path().join(before).exists());
    }

    #[test]
    fn no_path_leads_out_of_a_volume() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "a/../../x"] {
            assert!(fill(&dir.path().join("v"), &content(&[(path, "")])).is_err(), "{path}");
        }
    }

    #[test]
    fn chosen_keys_have_their_own_paths() {
        let all = [("k".to_owned(), b"v".to_vec())].into();
        let item = |key: &str| KeyToPath {
            key: key.into(),
            path: "p/q".into(),
            mode: Some(0o400),
            ..KeyToPath::default()
        };
        let chosen = choose(&all, Some(&[item("k")]), false, None).unwrap();
        assert_eq!(chosen["p/q"], (b"v".to_vec(), 0o400));
        choose(&all, Some(&[item("z")]), false, None).unwrap_err();
        assert!(choose(&all, Some(&[item("z")]), true, None).unwrap().is_empty());
    }
}
