//! The kinds that controllers read and write, as the API names them.

use kube::core::{ApiResource, GroupVersionKind};

/// One kind's place in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Kind {
    /// The API group, empty for core.
    pub(crate) group: &'static str,
    /// The kind.
    pub(crate) kind: &'static str,
    /// The resource in paths.
    pub(crate) plural: &'static str,
    /// Whether objects live in namespaces.
    pub(crate) namespaced: bool,
    /// What the cache keeps besides metadata, if not everything.
    pub(crate) kept: Option<&'static [&'static str]>,
}

impl Kind {
    const fn new(group: &'static str, kind: &'static str, plural: &'static str) -> Self {
        Self { group, kind, plural, namespaced: true, kept: None }
    }

    const fn cluster(group: &'static str, kind: &'static str, plural: &'static str) -> Self {
        Self { namespaced: false, ..Self::new(group, kind, plural) }
    }

    /// Of this kind there are many, or they are large, and reconciliations read them anew: the
    /// cache keeps their metadata and these fields.
    const fn keeping(self, fields: &'static [&'static str]) -> Self {
        Self { kept: Some(fields), ..self }
    }

    pub(crate) fn api_version(self) -> String {
        if self.group.is_empty() { "v1".into() } else { format!("{}/v1", self.group) }
    }

    pub(crate) fn path(self, namespace: &str, name: &str) -> String {
        let root = if self.group.is_empty() { "/api/v1" } else { "/apis" };
        let group =
            if self.group.is_empty() { String::new() } else { format!("/{}/v1", self.group) };
        let scope = if self.namespaced && !namespace.is_empty() {
            format!("/namespaces/{namespace}")
        } else {
            String::new()
        };
        let name = if name.is_empty() { String::new() } else { format!("/{name}") };
        format!("{root}{group}{scope}/{}{name}", self.plural)
    }

    pub(crate) fn resource(self) -> ApiResource {
        let gvk = GroupVersionKind::gvk(self.group, "v1", self.kind);
        ApiResource::from_gvk_with_plural(&gvk, self.plural)
    }

    /// The kind that an owner reference names.
    pub(crate) fn of(api_version: &str, kind: &str) -> Option<Self> {
        ALL.into_iter().find(|one| one.kind == kind && one.api_version() == api_version)
    }
}

pub(crate) const NAMESPACE: Kind = Kind::cluster("", "Namespace", "namespaces");
pub(crate) const NODE: Kind = Kind::cluster("", "Node", "nodes");
pub(crate) const POD: Kind = Kind::new("", "Pod", "pods");
pub(crate) const SERVICE: Kind = Kind::new("", "Service", "services").keeping(&["spec.selector"]);
pub(crate) const ENDPOINTS: Kind = Kind::new("", "Endpoints", "endpoints").keeping(&[]);
pub(crate) const SERVICE_ACCOUNT: Kind =
    Kind::new("", "ServiceAccount", "serviceaccounts").keeping(&[]);
pub(crate) const EVENT: Kind = Kind::new("", "Event", "events");
pub(crate) const REPLICATION_CONTROLLER: Kind =
    Kind::new("", "ReplicationController", "replicationcontrollers");
pub(crate) const REPLICA_SET: Kind = Kind::new("apps", "ReplicaSet", "replicasets");
pub(crate) const DEPLOYMENT: Kind = Kind::new("apps", "Deployment", "deployments");
pub(crate) const STATEFUL_SET: Kind = Kind::new("apps", "StatefulSet", "statefulsets");
pub(crate) const DAEMON_SET: Kind = Kind::new("apps", "DaemonSet", "daemonsets");
pub(crate) const CONTROLLER_REVISION: Kind =
    Kind::new("apps", "ControllerRevision", "controllerrevisions").keeping(&[]);
pub(crate) const JOB: Kind = Kind::new("batch", "Job", "jobs");
pub(crate) const CRON_JOB: Kind = Kind::new("batch", "CronJob", "cronjobs");
pub(crate) const ENDPOINT_SLICE: Kind =
    Kind::new("discovery.k8s.io", "EndpointSlice", "endpointslices").keeping(&[]);
pub(crate) const LEASE: Kind = Kind::new("coordination.k8s.io", "Lease", "leases");
pub(crate) const ROLE: Kind = Kind::new("rbac.authorization.k8s.io", "Role", "roles").keeping(&[]);
pub(crate) const ROLE_BINDING: Kind =
    Kind::new("rbac.authorization.k8s.io", "RoleBinding", "rolebindings").keeping(&[]);
pub(crate) const CONFIG_MAP: Kind = Kind::new("", "ConfigMap", "configmaps").keeping(&[]);
pub(crate) const SECRET: Kind = Kind::new("", "Secret", "secrets").keeping(&[]);

/// Every kind above: what owns and is owned, and what goes with its namespace. Events come last,
/// because deleting the others makes some.
pub(crate) const ALL: [Kind; 21] = [
    NAMESPACE,
    NODE,
    SERVICE,
    ENDPOINTS,
    ENDPOINT_SLICE,
    CRON_JOB,
    JOB,
    DEPLOYMENT,
    STATEFUL_SET,
    DAEMON_SET,
    REPLICATION_CONTROLLER,
    REPLICA_SET,
    CONTROLLER_REVISION,
    POD,
    ROLE_BINDING,
    ROLE,
    SERVICE_ACCOUNT,
    SECRET,
    CONFIG_MAP,
    LEASE,
    EVENT,
];
