//! Nodes that live and nodes that do not: by lease; taints, and the pods that must go.

use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cache::Key;
use crate::cluster::{Cluster, Happened, Result, now};
use crate::json::{at, is_being_deleted, list_at, name, namespace, str_at, uid};
use crate::kinds::{LEASE, NODE, POD};
use crate::pods::{condition, is_ready};
use crate::run::{Again, Context, Controller};
use crate::scheduler::toleration;

const NAME: &str = "node-lifecycle-controller";

pub(crate) const CONTROLLER: Controller = Controller {
    name: NAME,
    kinds: &[NODE, POD, LEASE],
    concerns: |_, change| match (change.kind, change.object()) {
        (NODE, Some(node)) => vec![Key::new("", name(node))],
        (LEASE, Some(lease)) if namespace(lease) == "kube-node-lease" && change.old.is_none() => {
            vec![Key::new("", name(lease))]
        }
        (POD, Some(pod)) if change.new.is_some() => {
            let node = str_at(pod, "spec.nodeName");
            let news = change.old.as_ref().is_none_or(|old| str_at(old, "spec.nodeName") != node);
            (news && !node.is_empty()).then(|| Key::new("", node)).into_iter().collect()
        }
        _ => Vec::new(),
    },
    reconcile: |context, key| reconcile(context, key).boxed(),
};

/// How long a node may be silent.
const GRACE: Duration = Duration::from_secs(40);
/// How often each node is looked at.
const PERIOD: Duration = Duration::from_secs(5);

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

async fn reconcile(context: Context, key: Key) -> Result<Again> {
    let cluster = &context.cluster;
    let Some(mut node) = cluster.get(NODE, "", &key.name).await? else {
        return bury(&context, &key.name).await.map(|()| None);
    };
    if is_silent(&context, &node) && str_at(condition(&node, "Ready"), "status") != "Unknown" {
        node = mark_unknown(cluster, node).await?;
    }
    let tainted = taint(cluster, &node).await?;
    let next = evict(&context, &tainted).await?;
    Ok(Some(next.map_or(PERIOD, |next| next.min(PERIOD))))
}

/// Whether a node has not been heard of for too long.
fn is_silent(context: &Context, node: &Value) -> bool {
    let lease = context.caches.get(LEASE, &Key::new("kube-node-lease", name(node)));
    let heard = [
        lease.as_deref().map_or("", |lease| str_at(lease, "spec.renewTime")),
        str_at(condition(node, "Ready"), "lastHeartbeatTime"),
        str_at(node, "metadata.creationTimestamp"),
    ];
    let last = heard.iter().filter_map(|time| time.parse::<Timestamp>().ok()).max();
    let grace = i64::try_from(GRACE.as_secs()).unwrap_or(i64::MAX);
    last.is_none_or(|last| Timestamp::now().duration_since(last).as_secs() > grace)
}

async fn mark_unknown(cluster: &Cluster, mut node: Value) -> Result<Value> {
    let mut conditions = list_at(&node, "status.conditions").to_vec();
    conditions.retain(|one| one["type"] != "Ready");
    conditions.push(json!({
        "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
        "message": "Kubelet stopped posting node status.", "lastTransitionTime": now(),
        "lastHeartbeatTime": condition(&node, "Ready")["lastHeartbeatTime"],
    }));
    let mut status = node["status"].clone();
    status["conditions"] = json!(conditions);
    cluster.replace_status(NODE, &node, status.clone()).await?;
    let message = format!("Node {} status is now: NodeNotReady", name(&node));
    let what = Happened { from: NAME, normal: true, reason: "NodeNotReady", message: &message };
    cluster.event(&node, &what).await;
    node["status"] = status;
    Ok(node)
}

/// Puts on a node the taints that its readiness calls for, and takes off the others.
async fn taint(cluster: &Cluster, node: &Value) -> Result<Value> {
    let wanted = match str_at(condition(node, "Ready"), "status") {
        "True" => None,
        "Unknown" => Some(UNREACHABLE),
        _ => Some(NOT_READY),
    };
    let taints = list_at(node, "spec.taints");
    let ours = |taint: &Value| matches!(str_at(taint, "key"), NOT_READY | UNREACHABLE);
    let fits = |taint: &&Value| !ours(taint) || Some(str_at(taint, "key")) == wanted;
    let mut new: Vec<Value> = taints.iter().filter(fits).cloned().collect();
    for effect in ["NoSchedule", "NoExecute"] {
        let there =
            |taint: &Value| Some(str_at(taint, "key")) == wanted && taint["effect"] == effect;
        if let Some(key) = wanted
            && !new.iter().any(there)
        {
            new.push(json!({"key": key, "effect": effect, "timeAdded": now()}));
        }
    }
    if new.as_slice() == taints {
        return Ok(node.clone());
    }
    let patch = json!({
        "metadata": {"resourceVersion": node["metadata"]["resourceVersion"]},
        "spec": {"taints": new},
    });
    // The status has just been written: what matters is that nobody else writes taints.
    let patch = match cluster.get(NODE, "", name(node)).await? {
        Some(fresh) if list_at(&fresh, "spec.taints") == taints => json!({
            "metadata": {"resourceVersion": fresh["metadata"]["resourceVersion"]},
            "spec": {"taints": new},
        }),
        _ => patch,
    };
    Ok(cluster.merge(NODE, node, &patch).await?.unwrap_or_else(|| node.clone()))
}

/// Deletes the pods that a taint drives away, now or when their toleration has run out; says when
/// the next is due. On a node that is not ready, no pod is ready.
async fn evict(context: &Context, node: &Value) -> Result<Option<Duration>> {
    let taints: Vec<&Value> =
        list_at(node, "spec.taints").iter().filter(|one| one["effect"] == "NoExecute").collect();
    let mut next: Option<Duration> = None;
    let all = context.caches.list(POD, "");
    for pod in all.iter().filter(|pod| str_at(pod, "spec.nodeName") == name(node)) {
        if condition(node, "Ready")["status"] == "Unknown" && is_ready(pod) {
            mark_not_ready(&context.cluster, pod).await?;
        }
        if is_being_deleted(pod) {
            continue;
        }
        for taint in &taints {
            match left(pod, taint) {
                None => {}
                Some(left) if left.is_zero() => {
                    context.cluster.delete(POD, pod).await?;
                    let message =
                        format!("Marking for deletion Pod {}/{}", namespace(pod), name(pod));
                    let what = Happened {
                        from: "taint-eviction-controller",
                        normal: true,
                        reason: "TaintManagerEviction",
                        message: &message,
                    };
                    context.cluster.event(pod, &what).await;
                    break;
                }
                Some(left) => next = Some(next.map_or(left, |next| next.min(left))),
            }
        }
    }
    Ok(next)
}

/// How long a pod may stay in spite of a taint; `None`: for ever.
fn left(pod: &Value, taint: &Value) -> Option<Duration> {
    let Some(toleration) = toleration(pod, taint) else { return Some(Duration::ZERO) };
    let tolerated = at(toleration, "tolerationSeconds").as_i64()?;
    let since: Timestamp = str_at(taint, "timeAdded").parse().unwrap_or_else(|_| Timestamp::now());
    let gone = Timestamp::now().duration_since(since).as_secs();
    Some(Duration::from_secs(u64::try_from(tolerated - gone).unwrap_or(0)))
}

async fn mark_not_ready(cluster: &Cluster, pod: &Value) -> Result<()> {
    let mut conditions = list_at(pod, "status.conditions").to_vec();
    for one in conditions.iter_mut().filter(|one| one["type"] == "Ready") {
        one["status"] = json!("False");
        one["lastTransitionTime"] = json!(now());
    }
    let mut status = pod["status"].clone();
    status["conditions"] = json!(conditions);
    cluster.replace_status(POD, pod, status).await
}

/// The pods of a node that is no more: nobody else will end them.
async fn bury(context: &Context, node: &str) -> Result<()> {
    let all = context.caches.list(POD, "");
    for pod in all.iter().filter(|pod| str_at(pod, "spec.nodeName") == node) {
        let body = json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": name(pod), "namespace": namespace(pod)},
            "deleteOptions": {"gracePeriodSeconds": 0, "preconditions": {"uid": uid(pod)}},
        });
        let path = format!("{}/eviction", POD.path(namespace(pod), name(pod)));
        match context.cluster.post(path, &body).await {
            Err(error) if error.code() != 409 => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
