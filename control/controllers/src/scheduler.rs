//! The scheduler: a node for each pod, or why there is none.

mod fit;

use std::collections::BTreeMap;

use futures::FutureExt;
use serde_json::{Value, json};

use crate::cache::Key;
use crate::cluster::{Happened, Result, now};
use crate::json::{int_at, is_being_deleted, list_at, name, namespace, str_at, uid};
use crate::kinds::{NODE, POD};
use crate::pods;
use crate::run::{Again, Context, Controller};

use fit::Placement;
pub(crate) use fit::{is_selected, tolerates, toleration};

const NAME: &str = "default-scheduler";

pub(crate) const CONTROLLER: Controller = Controller {
    name: NAME,
    kinds: &[POD, NODE],
    // One key for all: placing one pod changes what is left for the next.
    concerns: |_, change| {
        let pending =
            |pod: &Value| str_at(pod, "spec.nodeName").is_empty() && !is_being_deleted(pod);
        let concerns = match (&change.new, change.kind) {
            (Some(pod), POD) => pending(pod),
            _ => true,
        };
        concerns.then(|| Key::new("", "pending")).into_iter().collect()
    },
    reconcile: |context, _| reconcile(context).boxed(),
};

async fn reconcile(context: Context) -> Result<Again> {
    let cluster = &context.cluster;
    let pods = cluster.list(POD, "", "").await?;
    let nodes = context.caches.list(NODE, "");
    let (placed, mut pending): (Vec<Value>, Vec<Value>) = pods
        .into_iter()
        .filter(|pod| !pods::is_finished(pod))
        .partition(|pod| !str_at(pod, "spec.nodeName").is_empty());
    pending.retain(|pod| {
        !is_being_deleted(pod)
            && str_at(pod, "spec.schedulerName") == NAME
            && list_at(pod, "spec.schedulingGates").is_empty()
    });
    pending.sort_by_key(|pod| {
        (-int_at(pod, "spec.priority"), str_at(pod, "metadata.creationTimestamp").to_owned())
    });
    let mut placement = Placement::new(nodes.iter().map(|node| &**node), placed);
    for pod in pending {
        match placement.choose(&pod) {
            Ok(node) => {
                if bind(&context, &pod, &node).await? {
                    placement.put(pod, &node);
                }
            }
            Err(reasons) => tell_why(&context, &pod, &reasons, nodes.len()).await?,
        }
    }
    Ok(None)
}

/// Binds a pod; `false` if it is gone, or somebody else was faster.
async fn bind(context: &Context, pod: &Value, node: &str) -> Result<bool> {
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": name(pod), "namespace": namespace(pod), "uid": uid(pod)},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let path = format!("{}/binding", POD.path(namespace(pod), name(pod)));
    match context.cluster.post(path, &binding).await {
        Ok(Some(_)) => {
            let message =
                format!("Successfully assigned {}/{} to {node}", namespace(pod), name(pod));
            let what =
                Happened { from: NAME, normal: true, reason: "Scheduled", message: &message };
            context.cluster.event(pod, &what).await;
            Ok(true)
        }
        Ok(None) => Ok(false),
        Err(error) if error.code() == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

/// Says why a pod fits nowhere: in its condition, and as an event.
async fn tell_why(
    context: &Context,
    pod: &Value,
    reasons: &BTreeMap<String, usize>,
    n_nodes: usize,
) -> Result<()> {
    let message = if n_nodes == 0 {
        "no nodes available to schedule pods".to_owned()
    } else {
        let parts: Vec<String> = reasons.iter().map(|(why, n)| format!("{n} {why}")).collect();
        format!("0/{n_nodes} nodes are available: {}.", parts.join(", "))
    };
    let old = pods::condition(pod, "PodScheduled");
    if old["status"] == "False" && old["message"] == message {
        return Ok(());
    }
    let mut conditions = list_at(pod, "status.conditions").to_vec();
    conditions.retain(|one| one["type"] != "PodScheduled");
    conditions.push(json!({
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
        "lastProbeTime": null, "lastTransitionTime": now(),
    }));
    let mut status = pod["status"].clone();
    status["conditions"] = json!(conditions);
    let what =
        Happened { from: NAME, normal: false, reason: "FailedScheduling", message: &message };
    context.cluster.event(pod, &what).await;
    match context.cluster.replace_status(POD, pod, status).await {
        Err(error) if error.code() == 409 => Ok(()),
        other => other,
    }
}
