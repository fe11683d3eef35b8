//! The names on disk, so that a restart answers before the first list is done.
//!
//! One JSON object a line: first when it was written, then a Service each, with no more of it than
//! names are made of. The file is replaced whole, and written again while nothing changes, so that
//! its age is how long ago it was known to be true.

use std::error::Error as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::cluster::{ServiceState, Snapshot};
use model::endpoint::Conditions;
use model::name::{NamespacedName, Protocol};
use model::service::{Service, ServicePort, ServiceType, TrafficPolicy};
use model::slices::{MergedEndpoint, MergedEndpoints};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Names, clock};
use crate::zone::{Origin, ZoneView};

/// What is older is not believed.
pub const MAX_AGE: Duration = Duration::from_secs(600);
/// How often the file is brought up to date, at most.
const PERIOD: Duration = Duration::from_secs(30);
/// Changes with the meaning of the lines.
const VERSION: u32 = 1;

/// What was saved cannot be used, or nothing can be saved.
#[derive(Debug, Error)]
pub enum SavedError {
    /// Reading or writing fails.
    #[error("{what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A line that means nothing.
    #[error("{}, line {line}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Another version's lines, or half a file.
    #[error("{} is of another version, or not whole", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Too old.
    #[error("{} was last true {age} s ago", path.display())]
    Old {
        /// The file.
        path: PathBuf,
        /// In seconds.
        age: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    version: u32,
    written: u64,
    n_services: usize,
    namespaces: Vec<Arc<str>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    namespace: Arc<str>,
    name: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    external_name: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cluster_ips: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    headless: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ports: Vec<(Arc<str>, String, u16)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    endpoints: Vec<(Arc<str>, String, Vec<Ready>)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    portless: Vec<Ready>,
}

/// An endpoint that is ready: address, own label, pod.
#[derive(Debug, Serialize, Deserialize)]
struct Ready(SocketAddr, Option<Arc<str>>, Option<Arc<str>>);

/// Reads what was saved, unless it is too old.
///
/// # Errors
/// There is nothing that could be believed.
pub fn read(path: &Path) -> Result<Snapshot, SavedError> {
    let error = |source| SavedError::Io { what: "cannot read", path: path.to_owned(), source };
    let mut lines = BufReader::new(File::open(path).map_err(error)?).lines();
    let foreign = || SavedError::Foreign { path: path.to_owned() };
    let head: Head = parse(path, 1, &lines.next().ok_or_else(foreign)?.map_err(error)?)?;
    if head.version != VERSION {
        return Err(foreign());
    }
    let age = clock::now().saturating_sub(head.written);
    if age > MAX_AGE.as_secs() {
        return Err(SavedError::Old { path: path.to_owned(), age });
    }
    let mut snapshot =
        Snapshot { namespaces: head.namespaces.into_iter().collect(), ..Snapshot::default() };
    for (idx, line) in lines.enumerate() {
        let (name, state) = parse::<Line>(path, idx + 2, &line.map_err(error)?)?.into_state();
        snapshot.services.insert(name, Arc::new(state));
    }
    if snapshot.services.len() != head.n_services {
        return Err(foreign());
    }
    Ok(snapshot)
}

fn parse<T: for<'de> Deserialize<'de>>(
    path: &Path,
    line: usize,
    text: &str,
) -> Result<T, SavedError> {
    serde_json::from_str(text).map_err(|source| SavedError::Line {
        path: path.to_owned(),
        line,
        source,
    })
}

/// Saves what names are made of, in place of what was saved before.
///
/// # Errors
/// It cannot be written.
pub fn write(path: &Path, snapshot: &Snapshot) -> Result<(), SavedError> {
    let beside = path.with_extension("new");
    let written = write_to(&beside, snapshot).and_then(|()| fs::rename(&beside, path));
    written.map_err(|source| SavedError::Io { what: "cannot write", path: path.to_owned(), source })
}

fn write_to(path: &Path, snapshot: &Snapshot) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    let mut file = BufWriter::new(file);
    let services = || snapshot.services.iter().filter_map(|(_, state)| Line::of(state));
    let head = Head {
        version: VERSION,
        written: clock::now(),
        n_services: services().count(),
        namespaces: snapshot.namespaces.iter().cloned().collect(),
    };
    serde_json::to_writer(&mut file, &head)?;
    for line in services() {
        file.write_all(b"\n")?;
        serde_json::to_writer(&mut file, &line)?;
    }
    file.write_all(b"\n")?;
    file.into_inner()?.sync_data()
}

/// Keeps the file as true as it can be, until dropped.
pub async fn keep(path: PathBuf, names: Names) {
    let mut last: Option<(Arc<ZoneView>, Instant)> = None;
    let mut is_told = false;
    loop {
        tokio::time::sleep(PERIOD).await;
        let view = names.view();
        let is_fresh = last
            .as_ref()
            .is_some_and(|(written, at)| Arc::ptr_eq(written, &view) && at.elapsed() < MAX_AGE / 3);
        if view.origin() != Origin::Watch || is_fresh {
            continue;
        }
        let (to, snapshot) = (path.clone(), view.snapshot().clone());
        match tokio::task::spawn_blocking(move || write(&to, &snapshot)).await {
            Ok(Ok(())) => {
                is_told = false;
                last = Some((view, Instant::now()));
            }
            Ok(Err(error)) if !is_told => {
                is_told = true;
                let why = error.source().map(ToString::to_string).unwrap_or_default();
                tracing::warn!("{error}: {why}; a restart will not answer before it has listed");
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

impl Line {
    fn of(state: &ServiceState) -> Option<Self> {
        let service = state.service.as_ref()?;
        let external_name = match &service.service_type {
            ServiceType::ExternalName(name) => Some(Arc::clone(name)),
            // It has no name.
            ServiceType::HostPort(_) => return None,
            ServiceType::ClusterIp | ServiceType::NodePort | ServiceType::LoadBalancer => None,
        };
        let endpoints = &state.endpoints;
        Some(Self {
            namespace: Arc::clone(&service.name.namespace),
            name: Arc::clone(&service.name.name),
            external_name,
            cluster_ips: service.cluster_ips.clone(),
            headless: service.headless,
            ports: service
                .ports
                .iter()
                .map(|port| (Arc::clone(&port.name), port.protocol.to_string(), port.port))
                .collect(),
            endpoints: endpoints
                .ports
                .iter()
                .map(|((name, protocol), all)| (Arc::clone(name), protocol.to_string(), ready(all)))
                .collect(),
            portless: ready(&endpoints.portless),
        })
    }

    fn into_state(self) -> (NamespacedName, ServiceState) {
        let name = NamespacedName::new(self.namespace, self.name);
        let protocol = |text: &str| Protocol::parse(text).unwrap_or(Protocol::Tcp);
        let ports = self.ports.into_iter().map(|(name, of, port)| ServicePort {
            name,
            protocol: protocol(&of),
            port,
            node_port: 0,
        });
        let service = Service {
            name: name.clone(),
            created: 0,
            service_type: self
                .external_name
                .map_or(ServiceType::ClusterIp, ServiceType::ExternalName),
            cluster_ips: self.cluster_ips,
            headless: self.headless,
            ports: ports.collect(),
            external_ips: Vec::new(),
            load_balancer_vips: Vec::new(),
            load_balancer_source_ranges: Vec::new(),
            external_traffic_policy: TrafficPolicy::Cluster,
            internal_traffic_policy: TrafficPolicy::Cluster,
            session_affinity: None,
            health_check_node_port: 0,
            foreign_proxy: false,
            capture: true,
            ends_connections: false,
        };
        let by_port = self
            .endpoints
            .into_iter()
            .map(|(name, of, all)| ((name, protocol(&of)), endpoints(all)));
        let endpoints = MergedEndpoints {
            ports: by_port.collect(),
            portless: endpoints(self.portless),
            ..MergedEndpoints::default()
        };
        (name, ServiceState { service: Some(Arc::new(service)), endpoints: Arc::new(endpoints) })
    }
}

fn ready(all: &[MergedEndpoint]) -> Vec<Ready> {
    all.iter()
        .filter(|endpoint| endpoint.conditions.ready)
        .map(|it| Ready(it.address, it.hostname.clone(), it.pod.clone()))
        .collect()
}

fn endpoints(all: Vec<Ready>) -> Arc<[MergedEndpoint]> {
    all.into_iter()
        .map(|Ready(address, hostname, pod)| MergedEndpoint {
            address,
            conditions: Conditions::default(),
            local: false,
            zone: None,
            hints: None,
            hostname,
            pod,
            weight: None,
        })
        .collect()
}
