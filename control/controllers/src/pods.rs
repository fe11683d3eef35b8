//! What the controllers of pods share: whose pods there are, how they are, how one is made.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cache::{Caches, Change, Key};
use crate::cluster::{Cluster, Happened, Result};
use crate::json::{
    at, controller_of, has_all, int_at, is_being_deleted, list_at, name, namespace,
    owner_reference, selects, set, str_at, uid,
};
use crate::kinds::{Kind, POD};

pub(crate) fn condition<'a>(object: &'a Value, form: &str) -> &'a Value {
    let conditions = list_at(object, "status.conditions");
    conditions.iter().find(|one| one["type"] == form).unwrap_or(&Value::Null)
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready")["status"] == "True"
}

/// Ready for so long that it counts; otherwise in how many seconds it may.
pub(crate) fn is_available(pod: &Value, min_ready_seconds: i64) -> Result<(), Option<i64>> {
    if !is_ready(pod) {
        return Err(None);
    }
    if min_ready_seconds == 0 {
        return Ok(());
    }
    let since: Result<Timestamp, _> = str_at(condition(pod, "Ready"), "lastTransitionTime").parse();
    let Ok(since) = since else { return Err(None) };
    let left = min_ready_seconds - Timestamp::now().duration_since(since).as_secs();
    if left <= 0 { Ok(()) } else { Err(Some(left)) }
}

pub(crate) fn is_finished(pod: &Value) -> bool {
    matches!(str_at(pod, "status.phase"), "Succeeded" | "Failed")
}

/// Neither at its end nor on its way there.
pub(crate) fn is_active(pod: &Value) -> bool {
    !is_finished(pod) && !is_being_deleted(pod)
}

/// The owner of the change's pod, if it is of a kind; and those that might adopt an orphan.
pub(crate) fn owners(caches: &Caches, change: &Change, kind: Kind) -> Vec<Key> {
    let mut keys = Vec::new();
    for pod in [change.old.as_deref(), change.new.as_deref()].into_iter().flatten() {
        match controller_of(pod) {
            Some(owner) if str_at(owner, "kind") == kind.kind => {
                keys.push(Key::new(namespace(pod), str_at(owner, "name")));
            }
            Some(_) => {}
            None => {
                let labels = at(pod, "metadata.labels");
                let all = caches.list(kind, namespace(pod));
                let might = all.iter().filter(|one| selector_matches(one, labels));
                keys.extend(might.map(|one| Key::of(one)));
            }
        }
    }
    keys.dedup();
    keys
}

/// Whether an owner's selector, of either form, matches labels.
pub(crate) fn selector_matches(owner: &Value, labels: &Value) -> bool {
    let selector = at(owner, "spec.selector");
    let object = selector["matchLabels"].is_object() || selector["matchExpressions"].is_array();
    if object { selects(selector, labels) } else { has_all(selector, labels) }
}

/// The objects of a kind that an owner controls, read anew: orphans it selects are adopted, and
/// what it no longer selects is let go.
pub(crate) async fn controlled(cluster: &Cluster, owner: &Value, kind: Kind) -> Result<Vec<Value>> {
    let mut mine = Vec::new();
    for object in cluster.list(kind, namespace(owner), "").await? {
        let selected = selector_matches(owner, at(&object, "metadata.labels"));
        match controller_of(&object) {
            Some(controller) if str_at(controller, "uid") == uid(owner) => {
                if selected || is_being_deleted(&object) {
                    mine.push(object);
                } else {
                    release(cluster, owner, &object, kind).await?;
                }
            }
            None if selected && !is_being_deleted(&object) && !is_being_deleted(owner) => {
                let mut owners = list_at(&object, "metadata.ownerReferences").to_vec();
                owners.push(owner_reference(owner));
                let patch = json!({"metadata": {"uid": uid(&object), "ownerReferences": owners}});
                mine.extend(cluster.merge(kind, &object, &patch).await?);
            }
            _ => {}
        }
    }
    Ok(mine)
}

async fn release(cluster: &Cluster, owner: &Value, object: &Value, kind: Kind) -> Result<()> {
    let owners = list_at(object, "metadata.ownerReferences").iter();
    let owners: Vec<&Value> = owners.filter(|one| str_at(one, "uid") != uid(owner)).collect();
    let patch = json!({"metadata": {"uid": uid(object), "ownerReferences": owners}});
    cluster.merge(kind, object, &patch).await.map(|_| ())
}

/// A pod as a template says, owned by its maker.
pub(crate) fn from_template(owner: &Value, template: &Value) -> Value {
    let mut pod = json!({"metadata": at(template, "metadata"), "spec": at(template, "spec")});
    if !pod["metadata"].is_object() {
        pod["metadata"] = json!({});
    }
    if let Value::Object(metadata) = &mut pod["metadata"] {
        metadata.remove("creationTimestamp");
        metadata.remove("name");
    }
    set(&mut pod, "metadata.namespace", json!(namespace(owner)));
    set(&mut pod, "metadata.generateName", json!(format!("{}-", name(owner))));
    set(&mut pod, "metadata.ownerReferences", json!([owner_reference(owner)]));
    pod
}

/// Makes a pod and says so.
pub(crate) async fn create(
    cluster: &Cluster,
    owner: &Value,
    pod: &Value,
    from: &str,
) -> Result<()> {
    let made = cluster.create(POD, pod).await;
    let (normal, reason, message) = match &made {
        Ok(made) => (true, "SuccessfulCreate", format!("Created pod: {}", name(made))),
        Err(error) if matches!(error.code(), 403 | 422) => {
            let why = std::error::Error::source(error).map(ToString::to_string);
            (false, "FailedCreate", format!("Error creating: {}", why.unwrap_or_default()))
        }
        Err(_) => return made.map(|_| ()),
    };
    cluster.event(owner, &Happened { from, normal, reason, message: &message }).await;
    made.map(|_| ())
}

/// Deletes a pod and says so.
pub(crate) async fn delete(
    cluster: &Cluster,
    owner: &Value,
    pod: &Value,
    from: &str,
) -> Result<()> {
    cluster.delete(POD, pod).await?;
    let message = format!("Deleted pod: {}", name(pod));
    let what = Happened { from, normal: true, reason: "SuccessfulDelete", message: &message };
    cluster.event(owner, &what).await;
    Ok(())
}

/// Which pods a controller gives up first: those that have come least far.
pub(crate) fn least_useful_first(pods: &mut [Value]) {
    pods.sort_by_key(|pod| {
        let placed = !str_at(pod, "spec.nodeName").is_empty();
        let running = str_at(pod, "status.phase") == "Running";
        let created = str_at(pod, "metadata.creationTimestamp").to_owned();
        (placed, running, is_ready(pod), std::cmp::Reverse(created), name(pod).to_owned())
    });
}

/// A condition; its transition time is kept while its status does not change.
pub(crate) fn set_condition(conditions: &mut Vec<Value>, new: Value) {
    let time = crate::cluster::now();
    let mut new = new;
    match conditions.iter_mut().find(|one| one["type"] == new["type"]) {
        Some(old) => {
            let same = old["status"] == new["status"];
            new["lastTransitionTime"] =
                if same { old["lastTransitionTime"].clone() } else { json!(time) };
            if same && old["reason"] == new["reason"] && old["message"] == new["message"] {
                return;
            }
            if old.get("lastUpdateTime").is_some() {
                new["lastUpdateTime"] = json!(time);
            }
            *old = new;
        }
        None => {
            new["lastTransitionTime"] = json!(time);
            conditions.push(new);
        }
    }
}

/// How many pods of a set are there, ready and available; and when the next may become available.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) ready: i64,
    pub(crate) available: i64,
    pub(crate) next_in: Option<i64>,
}

pub(crate) fn count<'a>(pods: impl Iterator<Item = &'a Value>, owner: &Value) -> Counts {
    let min_ready = int_at(owner, "spec.minReadySeconds");
    let mut counts = Counts::default();
    for pod in pods {
        counts.ready += i64::from(is_ready(pod));
        match is_available(pod, min_ready) {
            Ok(()) => counts.available += 1,
            Err(Some(left)) => counts.next_in = Some(counts.next_in.map_or(left, |n| n.min(left))),
            Err(None) => {}
        }
    }
    counts
}

pub(crate) fn seconds(seconds: Option<i64>) -> Option<std::time::Duration> {
    let seconds = u64::try_from(seconds?).unwrap_or(0);
    Some(std::time::Duration::from_secs(seconds.max(1)))
}
