//! `StatefulSet`: pods with names that stay, made, updated and ended in order.

use futures::FutureExt;
use serde_json::{Value, json};

use crate::cache::Key;
use crate::cluster::{Cluster, Result};
use crate::json::{at, int_at, is_being_deleted, name, set, str_at};
use crate::kinds::{POD, STATEFUL_SET};
use crate::pods::{self, is_available, is_finished};
use crate::revisions::{self, HASH, Revisions, revision_of};
use crate::run::{Again, Context, Controller};

const NAME: &str = "statefulset-controller";

pub(crate) const CONTROLLER: Controller = Controller {
    name: NAME,
    kinds: &[STATEFUL_SET, POD],
    concerns: |caches, change| {
        if change.kind == POD {
            return pods::owners(caches, change, STATEFUL_SET);
        }
        change.object().map(Key::of).into_iter().collect()
    },
    reconcile: |context, key| reconcile(context, key).boxed(),
};

async fn reconcile(context: Context, key: Key) -> Result<Again> {
    let cluster = &context.cluster;
    let Some(owner) = cluster.get(STATEFUL_SET, &key.namespace, &key.name).await? else {
        return Ok(None);
    };
    if is_being_deleted(&owner) {
        return Ok(None);
    }
    let revisions = revisions::ensure(cluster, &owner).await?;
    let pods = pods::controlled(cluster, &owner, POD).await?;
    let mut step = Step::new(cluster, &owner, &revisions, pods);
    step.take().await?;
    let again = step.report().await?;
    revisions::forget(cluster, &owner, &revisions, &step.pods).await?;
    Ok(again)
}

/// One look at a set: at most one thing is done at a time, unless its policy is Parallel.
struct Step<'a> {
    cluster: &'a Cluster,
    owner: &'a Value,
    revisions: &'a Revisions,
    pods: Vec<Value>,
    replicas: i64,
    start: i64,
    parallel: bool,
    /// What pods below the partition are made of.
    current: String,
}

impl<'a> Step<'a> {
    fn new(
        cluster: &'a Cluster,
        owner: &'a Value,
        revisions: &'a Revisions,
        mut pods: Vec<Value>,
    ) -> Self {
        pods.sort_by_key(ordinal);
        let known = str_at(owner, "status.currentRevision");
        let kept = revisions.all.iter().any(|one| name(one) == known);
        let current = if kept { known.to_owned() } else { revisions.current.clone() };
        Self {
            cluster,
            owner,
            revisions,
            pods,
            replicas: int_at(owner, "spec.replicas"),
            start: int_at(owner, "spec.ordinals.start"),
            parallel: str_at(owner, "spec.podManagementPolicy") == "Parallel",
            current,
        }
    }

    async fn take(&mut self) -> Result<()> {
        if self.make_missing().await? {
            return Ok(());
        }
        if self.end_surplus().await? {
            return Ok(());
        }
        self.update().await
    }

    fn wanted(&self, ordinal: i64) -> bool {
        (self.start..self.start + self.replicas).contains(&ordinal)
    }

    fn is_well(&self, pod: &Value) -> bool {
        !is_being_deleted(pod)
            && is_available(pod, int_at(self.owner, "spec.minReadySeconds")).is_ok()
    }

    /// Makes the pods that are not there, each after the one before it is well. `true` if the rest
    /// must wait.
    async fn make_missing(&mut self) -> Result<bool> {
        let mut waiting = false;
        for number in self.start..self.start + self.replicas {
            let found = self.pods.iter().find(|pod| ordinal(pod) == number).cloned();
            match found {
                None => {
                    let pod = self.pod(number);
                    pods::create(self.cluster, self.owner, &pod, NAME).await?;
                    waiting = true;
                }
                Some(pod) if is_finished(&pod) && !is_being_deleted(&pod) => {
                    // It is made again when it is gone.
                    pods::delete(self.cluster, self.owner, &pod, NAME).await?;
                    waiting = true;
                }
                Some(pod) => waiting |= !self.is_well(&pod),
            }
            if waiting && !self.parallel {
                // An update may still replace a pod that will never be well.
                return Ok(self.pods.iter().all(|pod| ordinal(pod) != number));
            }
        }
        Ok(false)
    }

    /// Ends the pods beyond the number wanted, the highest first, while all before are well.
    async fn end_surplus(&mut self) -> Result<bool> {
        let surplus: Vec<Value> =
            self.pods.iter().rev().filter(|pod| !self.wanted(ordinal(pod))).cloned().collect();
        for pod in &surplus {
            if is_being_deleted(pod) {
                if self.parallel {
                    continue;
                }
                return Ok(true);
            }
            pods::delete(self.cluster, self.owner, pod, NAME).await?;
            if !self.parallel {
                return Ok(true);
            }
        }
        Ok(!surplus.is_empty())
    }

    /// Replaces pods of an old revision, from the highest down to the partition.
    async fn update(&mut self) -> Result<()> {
        if str_at(self.owner, "spec.updateStrategy.type") == "OnDelete" {
            return Ok(());
        }
        let partition = int_at(self.owner, "spec.updateStrategy.rollingUpdate.partition");
        let pods: Vec<Value> = self.pods.iter().rev().cloned().collect();
        for pod in pods.iter().filter(|pod| ordinal(pod) >= partition && self.wanted(ordinal(pod)))
        {
            if revision_of(pod) != self.revisions.current && !is_being_deleted(pod) {
                return pods::delete(self.cluster, self.owner, pod, NAME).await;
            }
            if !self.is_well(pod) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn pod(&self, number: i64) -> Value {
        let partition = int_at(self.owner, "spec.updateStrategy.rollingUpdate.partition");
        let rolling = str_at(self.owner, "spec.updateStrategy.type") != "OnDelete";
        let old = rolling && number < partition;
        let revision = if old { &self.current } else { &self.revisions.current };
        let template = revisions::template(self.revisions, revision);
        let template = template.unwrap_or_else(|| at(self.owner, "spec.template").clone());
        let mut pod = pods::from_template(self.owner, &template);
        let pod_name = format!("{}-{number}", name(self.owner));
        if let Value::Object(metadata) = &mut pod["metadata"] {
            metadata.remove("generateName");
        }
        set(&mut pod, "metadata.name", json!(pod_name));
        let labels = &mut pod["metadata"]["labels"];
        labels["statefulset.kubernetes.io/pod-name"] = json!(pod_name);
        labels["apps.kubernetes.io/pod-index"] = json!(number.to_string());
        labels[HASH] = json!(revision);
        pod["spec"]["hostname"] = json!(pod_name);
        let service = str_at(self.owner, "spec.serviceName");
        if !service.is_empty() {
            pod["spec"]["subdomain"] = json!(service);
        }
        pod
    }

    async fn report(&self) -> Result<Again> {
        let mine: Vec<&Value> = self.pods.iter().filter(|pod| !is_finished(pod)).collect();
        let counts =
            pods::count(mine.iter().copied().filter(|pod| !is_being_deleted(pod)), self.owner);
        let of = |revision: &str| mine.iter().filter(|pod| revision_of(pod) == revision).count();
        let target = &self.revisions.current;
        let updated = of(target);
        let done = i64::try_from(updated).unwrap_or(0) == self.replicas
            && counts.ready == self.replicas
            && mine.len() == updated;
        let current = if done { target } else { &self.current };
        let mut status = json!({
            "observedGeneration": at(self.owner, "metadata.generation"),
            "replicas": mine.len(),
            "readyReplicas": counts.ready,
            "availableReplicas": counts.available,
            "currentReplicas": of(current),
            "updatedReplicas": updated,
            "currentRevision": current,
            "updateRevision": target,
            "collisionCount": 0,
        });
        if let Value::Object(map) = &mut status {
            let always = ["replicas", "availableReplicas", "collisionCount"];
            map.retain(|key, value| always.contains(&key.as_str()) || *value != 0);
        }
        self.cluster.replace_status(STATEFUL_SET, self.owner, status).await?;
        Ok(pods::seconds(counts.next_in))
    }
}

/// A pod's number: what follows the last dash of its name.
fn ordinal(pod: &Value) -> i64 {
    name(pod).rsplit_once('-').and_then(|(_, number)| number.parse().ok()).unwrap_or(-1)
}
