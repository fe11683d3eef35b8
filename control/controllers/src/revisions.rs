//! The history of a template: a `ControllerRevision` for each, so that one can go back.

use serde_json::{Value, json};

use crate::cluster::{Cluster, Result};
use crate::json::{at, hash, int_at, list_at, name, namespace, owner_reference, str_at, uid};
use crate::kinds::CONTROLLER_REVISION;

/// The label by which pods say which revision they are of.
pub(crate) const HASH: &str = "controller-revision-hash";

/// The present revision's name, made or renumbered as needed; and all older ones, oldest first.
pub(crate) struct Revisions {
    pub(crate) current: String,
    pub(crate) all: Vec<Value>,
}

/// Brings the history up to the present template.
pub(crate) async fn ensure(cluster: &Cluster, owner: &Value) -> Result<Revisions> {
    let data = json!({"spec": {"template": patched(at(owner, "spec.template"))}});
    let mut all = cluster.list(CONTROLLER_REVISION, namespace(owner), "").await?;
    all.retain(|one| {
        let owners = list_at(one, "metadata.ownerReferences").iter();
        owners.into_iter().any(|reference| str_at(reference, "uid") == uid(owner))
    });
    all.sort_by_key(|one| int_at(one, "revision"));
    let highest = all.last().map_or(0, |one| int_at(one, "revision"));
    if let Some(known) = all.iter().position(|one| one["data"] == data) {
        let revision = all.remove(known);
        let current = name(&revision).to_owned();
        let revision = if int_at(&revision, "revision") < highest {
            let patch = json!({"revision": highest + 1});
            cluster.merge(CONTROLLER_REVISION, &revision, &patch).await?.unwrap_or(revision)
        } else {
            revision
        };
        all.push(revision);
        return Ok(Revisions { current, all });
    }
    let revision = json!({
        "metadata": {
            "name": format!("{}-{}", name(owner), hash(&json!([data, uid(owner)]))),
            "namespace": namespace(owner),
            "labels": at(owner, "spec.template.metadata.labels"),
            "ownerReferences": [owner_reference(owner)],
        },
        "revision": highest + 1,
        "data": data,
    });
    let made = cluster.create(CONTROLLER_REVISION, &revision).await?;
    let current = name(&made).to_owned();
    all.push(made);
    Ok(Revisions { current, all })
}

/// Deletes the oldest revisions that no pod is of, beyond the limit.
pub(crate) async fn forget(
    cluster: &Cluster,
    owner: &Value,
    revisions: &Revisions,
    pods: &[Value],
) -> Result<()> {
    let limit = at(owner, "spec.revisionHistoryLimit").as_u64().unwrap_or(10);
    let used = |one: &&Value| {
        name(one) == revisions.current
            || str_at(owner, "status.currentRevision") == name(one)
            || pods.iter().any(|pod| revision_of(pod) == name(one))
    };
    let unused: Vec<&Value> = revisions.all.iter().filter(|one| !used(one)).collect();
    let surplus = unused.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    for one in unused.into_iter().take(surplus) {
        cluster.delete(CONTROLLER_REVISION, one).await?;
    }
    Ok(())
}

/// The template of a revision, as its owner had it.
pub(crate) fn template(revisions: &Revisions, wanted: &str) -> Option<Value> {
    let revision = revisions.all.iter().find(|one| name(one) == wanted)?;
    let mut template = at(revision, "data.spec.template").clone();
    if let Value::Object(map) = &mut template {
        map.remove("$patch");
    }
    Some(template)
}

pub(crate) fn revision_of(pod: &Value) -> &str {
    crate::json::label(pod, HASH)
}

/// A patch that replaces the template whole: what `kubectl rollout undo` applies.
fn patched(template: &Value) -> Value {
    let mut template = template.clone();
    template["$patch"] = json!("replace");
    template
}
