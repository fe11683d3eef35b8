//! `ReplicaSet` and `ReplicationController`: so many pods of one template.

use futures::FutureExt;
use serde_json::{Value, json};

use crate::cache::{Caches, Change, Key};
use crate::cluster::Result;
use crate::json::{at, has_all, int_at, is_being_deleted, name};
use crate::kinds::{Kind, POD, REPLICA_SET, REPLICATION_CONTROLLER};
use crate::pods;
use crate::run::{Again, Context, Controller};

const SETS: &str = "replicaset-controller";
const CONTROLLERS: &str = "replication-controller";

pub(crate) const REPLICA_SETS: Controller = Controller {
    name: SETS,
    kinds: &[REPLICA_SET, POD],
    concerns: |caches, change| concerns(caches, change, REPLICA_SET),
    reconcile: |context, key| reconcile(context, REPLICA_SET, key).boxed(),
};

pub(crate) const REPLICATION_CONTROLLERS: Controller = Controller {
    name: CONTROLLERS,
    kinds: &[REPLICATION_CONTROLLER, POD],
    concerns: |caches, change| concerns(caches, change, REPLICATION_CONTROLLER),
    reconcile: |context, key| reconcile(context, REPLICATION_CONTROLLER, key).boxed(),
};

/// Pods made or deleted in one round, at most.
const BURST: usize = 500;

fn concerns(caches: &Caches, change: &Change, kind: Kind) -> Vec<Key> {
    if change.kind == POD {
        return pods::owners(caches, change, kind);
    }
    change.object().map(Key::of).into_iter().collect()
}

async fn reconcile(context: Context, kind: Kind, key: Key) -> Result<Again> {
    let cluster = &context.cluster;
    let Some(set) = cluster.get(kind, &key.namespace, &key.name).await? else { return Ok(None) };
    let from = if kind == REPLICA_SET { SETS } else { CONTROLLERS };
    let mut active: Vec<Value> = pods::controlled(cluster, &set, POD).await?;
    active.retain(pods::is_active);
    let wanted = usize::try_from(int_at(&set, "spec.replicas")).unwrap_or(0);
    let mut result = Ok(());
    if !is_being_deleted(&set) {
        if active.len() < wanted {
            let template = at(&set, "spec.template");
            for _ in 0..(wanted - active.len()).min(BURST) {
                let pod = pods::from_template(&set, template);
                result = pods::create(cluster, &set, &pod, from).await;
                if result.is_err() {
                    break;
                }
            }
        } else {
            pods::least_useful_first(&mut active);
            let surplus = (active.len() - wanted).min(BURST);
            for pod in active.drain(..surplus) {
                pods::delete(cluster, &set, &pod, from).await?;
            }
        }
    }
    let again = report(&context, kind, &set, &active).await?;
    result.map(|()| again)
}

/// Says what there is now. What was just made is counted when it is heard of.
async fn report(context: &Context, kind: Kind, set: &Value, active: &[Value]) -> Result<Again> {
    let counts = pods::count(active.iter(), set);
    let template = at(set, "spec.template.metadata.labels");
    let labelled = |pod: &&Value| has_all(template, at(pod, "metadata.labels"));
    let mut status = json!({
        "replicas": active.len(),
        "fullyLabeledReplicas": active.iter().filter(labelled).count(),
        "readyReplicas": counts.ready,
        "availableReplicas": counts.available,
        "observedGeneration": at(set, "metadata.generation"),
    });
    let conditions = at(set, "status.conditions");
    if !conditions.is_null() {
        status["conditions"] = conditions.clone();
    }
    tracing::trace!(set = name(set), %status, "observed");
    context.cluster.replace_status(kind, set, drop_zeros(status)).await?;
    Ok(pods::seconds(counts.next_in))
}

/// Counts of zero are left out, as upstream leaves them out; `replicas` is always there.
fn drop_zeros(mut status: Value) -> Value {
    if let Value::Object(map) = &mut status {
        map.retain(|key, value| key == "replicas" || *value != 0);
    }
    status
}
