//! How lists and maps merge: which key tells the elements of a list apart. Facts of the API's
//! types, by the name of the field and of the field it is in.

/// How the elements of a list are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListKind {
    /// Replaced as a whole.
    Atomic,
    /// Of scalars, each at most once.
    Set,
    /// Of objects, told apart by these fields.
    Map(&'static [&'static str]),
}

/// How server-side apply sees the list `field` of `parent`.
pub(super) fn list_kind(parent: &str, field: &str) -> ListKind {
    match (parent, field) {
        ("metadata", "ownerReferences") => ListKind::Map(&["uid"]),
        ("metadata", "finalizers") | ("spec", "podCIDRs" | "finalizers") => ListKind::Set,
        ("status", "conditions" | "addresses") => ListKind::Map(&["type"]),
        ("status", "podIPs" | "hostIPs") | (_, "hostAliases") => ListKind::Map(&["ip"]),
        ("containers" | "initContainers" | "ephemeralContainers", "ports") => {
            ListKind::Map(&["containerPort", "protocol"])
        }
        ("spec", "ports") => ListKind::Map(&["port", "protocol"]),
        (
            _,
            "containers"
            | "initContainers"
            | "ephemeralContainers"
            | "env"
            | "volumes"
            | "imagePullSecrets"
            | "resourceClaims"
            | "schedulingGates",
        )
        | ("", "secrets") => ListKind::Map(&["name"]),
        (_, "volumeMounts") => ListKind::Map(&["mountPath"]),
        (_, "volumeDevices") => ListKind::Map(&["devicePath"]),
        (_, "topologySpreadConstraints") => ListKind::Map(&["topologyKey", "whenUnsatisfiable"]),
        _ => ListKind::Atomic,
    }
}

/// How a strategic merge patch sees it: with at most one key.
pub(crate) fn merge_key(parent: &str, field: &str) -> ListKind {
    match (parent, field) {
        ("spec", "taints") => ListKind::Map(&["key"]),
        _ => match list_kind(parent, field) {
            ListKind::Map([first, ..]) => ListKind::Map(std::slice::from_ref(first)),
            other => other,
        },
    }
}

/// Whether a map is owned as a whole.
pub(super) fn is_atomic_map(field: &str) -> bool {
    matches!(
        field,
        "selector"
            | "nodeSelector"
            | "labelSelector"
            | "roleRef"
            | "targetRef"
            | "involvedObject"
            | "regarding"
            | "secretKeyRef"
            | "configMapKeyRef"
            | "fieldRef"
            | "resourceFieldRef"
            | "fieldsV1"
    )
}
