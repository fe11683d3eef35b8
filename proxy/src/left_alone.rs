//! Has the programs leave alone the sockets of pods that ask for it: finds their network namespaces.
//!
//! ```text
//!  plan: pods ─▶ namespaces that have one of their addresses, ─▶ cookies ─▶ LEFT_ALONE
//!                or a process in one of their cgroups
//! ```
//!
//! A pod has its cgroup before it has an address, and an address before the API tells of it. From state,
//! never from events: what a former process wrote, or somebody else removed, is made good at every look.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use load::left_alone::LeftAlone as Maps;
use model::name::NamespacedName;
use nix::sched::{CloneFlags, setns};
use thiserror::Error;
use tracing::debug;

use crate::namespaces;
use crate::plan::LeftAlone;

/// Keeps the programs' list. Cloning it gives another end of the same.
#[derive(Clone, Debug, Default)]
pub struct Keeper(Arc<Mutex<Option<Maps>>>);

/// Whose sockets are left alone, and whether the pod's namespace was found.
pub type Seen = BTreeMap<NamespacedName, bool>;

/// Sockets that ought to be left alone may be translated, or the other way round.
#[derive(Debug, Error)]
pub enum KeepError {
    /// The namespaces of the machine cannot be looked into.
    #[error("cannot look for the network namespaces of pods")]
    Look(#[source] io::Error),
    /// The programs' list cannot be written.
    #[error("cannot write which sockets are left alone: {0}")]
    Write(#[source] load::MapError),
}

impl Keeper {
    /// Keeps these maps from now on.
    pub fn open(&self, maps: Maps) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(maps);
    }

    /// Looks for the namespaces of these pods, and has just those left alone.
    ///
    /// # Errors
    /// See [`KeepError`]; the next look tries again.
    pub fn keep(&self, desired: &LeftAlone) -> Result<Seen, KeepError> {
        let mut maps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(maps) = &mut *maps else { return Ok(Seen::new()) };
        let found = if desired.pods.is_empty() {
            Vec::new()
        } else {
            find(desired).map_err(KeepError::Look)?
        };
        let cookies: BTreeSet<u64> = found.iter().map(|(cookie, _)| *cookie).collect();
        maps.set(&cookies).map_err(KeepError::Write)?;
        let is_found = |pod: &NamespacedName| found.iter().any(|(_, of)| of == pod);
        Ok(desired.pods.keys().map(|pod| (pod.clone(), is_found(pod))).collect())
    }
}

/// The namespaces' cookies, with whose each is.
fn find(desired: &LeftAlone) -> io::Result<Vec<(u64, NamespacedName)>> {
    let wanted = Wanted::of(desired);
    // Entering a namespace is for the life of a thread.
    let look = || {
        // The first is the node's own.
        let all = namespaces::all();
        all.iter().skip(1).filter_map(|namespace| wanted.look_into(namespace)).collect()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("left-alone".to_owned());
        let thread = thread.spawn_scoped(scope, look)?;
        thread.join().map_err(|_panic| io::Error::other("the look was broken off"))
    })
}

/// What pods are known by.
struct Wanted<'a> {
    by_address: BTreeMap<IpAddr, &'a NamespacedName>,
    by_cgroup: Vec<(String, &'a NamespacedName)>,
}

impl<'a> Wanted<'a> {
    fn of(desired: &'a LeftAlone) -> Self {
        let pods = || desired.pods.iter();
        let addresses =
            pods().flat_map(|(name, pod)| pod.addresses.iter().map(move |ip| (*ip, name)));
        let with_uid = pods().filter(|(_, pod)| !pod.uid.is_empty());
        Self {
            by_address: addresses.collect(),
            by_cgroup: with_uid.map(|(name, pod)| (format!("pod{}", pod.uid), name)).collect(),
        }
    }

    /// The cookie of a namespace that is one of them's.
    fn look_into(&self, namespace: &Path) -> Option<(u64, NamespacedName)> {
        let of = namespace.parent()?.parent().and_then(|process| self.in_cgroup(process));
        match self.enter(namespace, of) {
            Ok(found) => found,
            Err(error) => {
                // A namespace may vanish while it is being looked at.
                debug!("cannot look into {}: {error}", namespace.display());
                None
            }
        }
    }

    fn enter(
        &self,
        namespace: &Path,
        of: Option<&NamespacedName>,
    ) -> io::Result<Option<(u64, NamespacedName)>> {
        setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET)?;
        let Some(of) = of.or_else(|| self.with_address()) else { return Ok(None) };
        let cookie = load::netns_cookie(UnixDatagram::unbound()?)?;
        Ok(Some((cookie, of.clone())))
    }

    /// Whose address the namespace has that this thread is in.
    fn with_address(&self) -> Option<&'a NamespacedName> {
        let addresses = namespaces::addresses(Path::new("/proc/thread-self/net"));
        addresses.iter().find_map(|address| self.by_address.get(address)).copied()
    }

    /// Whose cgroup a process is in.
    fn in_cgroup(&self, process: &Path) -> Option<&'a NamespacedName> {
        let cgroups = fs::read_to_string(process.join("cgroup")).ok()?;
        self.named_in(&cgroups)
    }

    /// A pod's cgroup is `…/pod<uid>`, or with systemd's names `…-pod<uid>.slice`, `_` for each `-` of the uid.
    fn named_in(&self, cgroups: &str) -> Option<&'a NamespacedName> {
        let cgroups = cgroups.replace('_', "-");
        cgroups.lines().flat_map(|line| line.split('/')).find_map(|part| {
            let part = part.strip_suffix(".slice").unwrap_or(part);
            self.by_cgroup.iter().find(|(name, _)| part.ends_with(name)).map(|(_, pod)| *pod)
        })
    }
}

#[cfg(test)]
mod tests {
    use model::pod::Pod;

    use super::*;

    #[test]
    fn a_pod_is_known_by_its_cgroup_whoever_names_it() {
        let pod = Pod {
            name: NamespacedName::new("shop", "web-0"),
            uid: "0f3a-77".into(),
            node_name: None,
            host_network: false,
            addresses: vec![],
            socket_lb: None,
            host_ports: None,
        };
        let pods = BTreeMap::from([(pod.name.clone(), Arc::new(pod))]);
        let desired = LeftAlone { pods, problems: vec![] };
        let wanted = Wanted::of(&desired);
        for (cgroups, expected) in [
            ("0::/kubepods/burstable/pod0f3a-77/c1\n", true),
            ("1:name=systemd:/\n0::/../kubepods-pod0f3a_77.slice/cri-c1.scope\n", true),
            ("0::/kubepods/pod0f3a-77\n", true),
            ("0::/kubepods/pod0f3a-78/c1\n", false),
            ("0::/kubepods/pod0f3a-770/c1\n", false),
            ("0::/0f3a-77\n", false),
            ("", false),
        ] {
            assert_eq!(wanted.named_in(cgroups).is_some(), expected, "{cgroups}");
        }
    }
}
