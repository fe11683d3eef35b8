//! What its owners leave behind: an object goes when the last of its owners has gone, and an
//! owner that is being deleted waits for its dependents, or lets them go.

use futures::FutureExt;
use serde_json::{Value, json};

use crate::cache::{Caches, Change, Key};
use crate::cluster::{Cluster, Result};
use crate::json::{is_being_deleted, list_at, name, namespace, str_at, uid};
use crate::kinds::{ALL, Kind};
use crate::run::{Again, Context, Controller};

pub(crate) const CONTROLLER: Controller = Controller {
    name: "garbage-collector",
    kinds: KINDS,
    concerns,
    reconcile: |context, key| reconcile(context, key).boxed(),
};

/// The kinds that may own others here, or be owned: all but events, the last.
const KINDS: &[Kind] = match ALL.split_last() {
    Some((_events, others)) => others,
    None => &[],
};

/// A key here is a kind's plural and name, since it is about any kind: `pods/web-1`.
fn key(kind: Kind, object: &Value) -> Key {
    Key::new(namespace(object), &format!("{}/{}", kind.plural, name(object)))
}

fn concerns(caches: &Caches, change: &Change) -> Vec<Key> {
    let mut keys = Vec::new();
    if let Some(gone) = gone(change) {
        // Its dependents, and the owners that waited for it.
        keys.extend(dependents(caches, gone).into_iter().map(|(kind, one)| key(kind, &one)));
        for owner in list_at(gone, "metadata.ownerReferences") {
            if let Some(kind) = Kind::of(str_at(owner, "apiVersion"), str_at(owner, "kind")) {
                let name = format!("{}/{}", kind.plural, str_at(owner, "name"));
                keys.push(Key::new(namespace(gone), &name));
            }
        }
    }
    if let Some(object) = change.new.as_deref()
        && (waits(object).is_some() || has_owners(object) && has_other_owners(change))
    {
        keys.push(key(change.kind, object));
    }
    keys
}

/// The object that is no more: another of its name may have come while nobody watched.
fn gone(change: &Change) -> Option<&Value> {
    let old = change.old.as_deref()?;
    change.new.as_deref().is_none_or(|new| uid(new) != uid(old)).then_some(old)
}

/// Whether its owners are not those that were looked at before.
fn has_other_owners(change: &Change) -> bool {
    let owners = |object: &Value| list_at(object, "metadata.ownerReferences").to_vec();
    change.old.as_deref().map(owners) != change.new.as_deref().map(owners)
}

fn has_owners(object: &Value) -> bool {
    !list_at(object, "metadata.ownerReferences").is_empty()
}

/// The finalizer by which a deleted owner waits for its dependents.
fn waits(object: &Value) -> Option<&'static str> {
    let finalizers = list_at(object, "metadata.finalizers");
    ["orphan", "foregroundDeletion"]
        .into_iter()
        .filter(|_| is_being_deleted(object))
        .find(|one| finalizers.iter().any(|held| held == one))
}

fn dependents(caches: &Caches, owner: &Value) -> Vec<(Kind, std::sync::Arc<Value>)> {
    let mut owned = caches.owned_by(uid(owner));
    let place = namespace(owner);
    owned.retain(|(_, object)| place.is_empty() || namespace(object) == place);
    owned
}

async fn reconcile(context: Context, key: Key) -> Result<Again> {
    let Some((plural, name)) = key.name.split_once('/') else { return Ok(None) };
    let kind = KINDS.iter().find(|kind| kind.plural == plural);
    let Some(kind) = kind.copied() else { return Ok(None) };
    let cluster = &context.cluster;
    let Some(object) = cluster.get(kind, &key.namespace, name).await? else { return Ok(None) };
    match waits(&object) {
        Some("orphan") => orphan(&context, kind, &object).await?,
        Some(_) => delete_dependents_first(&context, kind, &object).await?,
        None => {}
    }
    if has_owners(&object) && !is_being_deleted(&object) {
        collect(cluster, kind, &object).await?;
    }
    Ok(None)
}

/// Deletes the object if none of its owners exists; forgets those that do not, otherwise.
async fn collect(cluster: &Cluster, kind: Kind, object: &Value) -> Result<()> {
    let owners = list_at(object, "metadata.ownerReferences");
    let mut kept = Vec::new();
    for owner in owners {
        if exists(cluster, owner, namespace(object)).await? {
            kept.push(owner.clone());
        }
    }
    if kept.is_empty() {
        return cluster.delete(kind, object).await;
    }
    if kept.len() < owners.len() {
        let patch = json!({"metadata": {"uid": uid(object), "ownerReferences": kept}});
        cluster.merge(kind, object, &patch).await?;
    }
    Ok(())
}

/// Whether an owner is there; one of a kind that is not known here is taken to be.
async fn exists(cluster: &Cluster, owner: &Value, namespace: &str) -> Result<bool> {
    let Some(kind) = Kind::of(str_at(owner, "apiVersion"), str_at(owner, "kind")) else {
        return Ok(true);
    };
    let place = if kind.namespaced { namespace } else { "" };
    let found = cluster.get(kind, place, str_at(owner, "name")).await?;
    let Some(found) = found.filter(|found| uid(found) == str_at(owner, "uid")) else {
        return Ok(false);
    };
    // One that waits for its dependents is as good as gone to them.
    Ok(waits(&found) != Some("foregroundDeletion"))
}

async fn orphan(context: &Context, kind: Kind, owner: &Value) -> Result<()> {
    for (kind, dependent) in dependents(&context.caches, owner) {
        let owners = list_at(&dependent, "metadata.ownerReferences").iter();
        let others: Vec<&Value> = owners.filter(|one| str_at(one, "uid") != uid(owner)).collect();
        let patch = json!({"metadata": {"uid": uid(&dependent), "ownerReferences": others}});
        context.cluster.merge(kind, &dependent, &patch).await?;
    }
    let_go(&context.cluster, kind, owner, "orphan").await
}

async fn delete_dependents_first(context: &Context, kind: Kind, owner: &Value) -> Result<()> {
    let mut blocking = 0;
    for (kind, dependent) in dependents(&context.caches, owner) {
        let fresh = context.cluster.get(kind, namespace(&dependent), name(&dependent)).await?;
        let Some(fresh) = fresh.filter(|fresh| uid(fresh) == uid(&dependent)) else { continue };
        let owners = list_at(&fresh, "metadata.ownerReferences").iter();
        blocking += owners
            .into_iter()
            .filter(|one| str_at(one, "uid") == uid(owner) && one["blockOwnerDeletion"] == true)
            .count();
        if !is_being_deleted(&fresh) {
            context.cluster.delete(kind, &fresh).await?;
        }
    }
    if blocking == 0 {
        return let_go(&context.cluster, kind, owner, "foregroundDeletion").await;
    }
    Ok(())
}

async fn let_go(cluster: &Cluster, kind: Kind, owner: &Value, finalizer: &str) -> Result<()> {
    let finalizers = list_at(owner, "metadata.finalizers").iter();
    let others: Vec<&Value> = finalizers.filter(|one| *one != finalizer).collect();
    let patch = json!({"metadata": {
        "resourceVersion": owner["metadata"]["resourceVersion"], "finalizers": others,
    }});
    cluster.merge(kind, owner, &patch).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kinds::{POD, REPLICA_SET};

    #[test]
    fn an_owner_that_came_anew_is_not_the_one_that_owned() {
        let caches = Caches::new([POD, REPLICA_SET].into_iter());
        let pod = json!({"metadata": {"namespace": "n", "name": "p",
            "ownerReferences": [{"uid": "one"}]}});
        caches.put(POD, pod.clone());
        let set = |uid: &str| {
            Some(Arc::new(json!({"metadata": {"namespace": "n", "name": "s", "uid": uid}})))
        };
        let about = |old, new| concerns(&caches, &Change { kind: REPLICA_SET, old, new });
        let concerned = vec![Key::new("n", "pods/p")];
        assert_eq!(about(set("one"), None), concerned);
        assert_eq!(about(set("one"), set("two")), concerned);
        assert_eq!(about(set("one"), set("one")), []);
        assert_eq!(about(None, set("one")), []);
        // Once looked at, a pod is looked at again when its owners are others.
        let pod = Some(Arc::new(pod));
        let change = |old| Change { kind: POD, old, new: pod.clone() };
        assert_eq!(concerns(&caches, &change(None)), concerned);
        assert_eq!(concerns(&caches, &change(pod.clone())), []);
    }
}
