//! Deployment: replica sets, one for each template, and the way from one to the next.

use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cache::Key;
use crate::cluster::{Cluster, Happened, Result, now};
use crate::json::{
    annotation, at, controller_of, hash, int_at, is_being_deleted, label, list_at, name, namespace,
    owner_reference, scaled, set, str_at, uid,
};
use crate::kinds::{DEPLOYMENT, POD, REPLICA_SET};
use crate::pods::{self, set_condition};
use crate::run::{Again, Context, Controller};

const NAME: &str = "deployment-controller";

pub(crate) const CONTROLLER: Controller = Controller {
    name: NAME,
    kinds: &[DEPLOYMENT, REPLICA_SET, POD],
    concerns: |caches, change| match change.kind {
        REPLICA_SET => pods::owners(caches, change, DEPLOYMENT),
        // A pod that has gone lets a Recreate go on.
        POD if change.new.is_none() => {
            let pod = change.object();
            let set = pod.and_then(|pod| Some((namespace(pod), controller_of(pod)?)));
            let set = set.and_then(|(namespace, owner)| {
                caches.get(REPLICA_SET, &Key::new(namespace, str_at(owner, "name")))
            });
            let owner = set.as_deref().and_then(|set| Some((namespace(set), controller_of(set)?)));
            owner.map(|(ns, owner)| Key::new(ns, str_at(owner, "name"))).into_iter().collect()
        }
        POD => Vec::new(),
        _ => change.object().map(Key::of).into_iter().collect(),
    },
    reconcile: |context, key| reconcile(context, key).boxed(),
};

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
/// What the deployment wanted when a set got its size, and the most it allowed for.
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MOST: &str = "deployment.kubernetes.io/max-replicas";

async fn reconcile(context: Context, key: Key) -> Result<Again> {
    let cluster = &context.cluster;
    let Some(deployment) = cluster.get(DEPLOYMENT, &key.namespace, &key.name).await? else {
        return Ok(None);
    };
    if is_being_deleted(&deployment) {
        return Ok(None);
    }
    let mut sets = pods::controlled(cluster, &deployment, REPLICA_SET).await?;
    sets.sort_by_key(|set| (revision(set), name(set).to_owned()));
    let mut rollout = Rollout::new(deployment, sets);
    if rollout.take_up_size(cluster).await? {
        // What is updated next depends on what comes of this.
    } else if at(&rollout.deployment, "spec.paused") != true {
        if rollout.new_set().is_none() && !rollout.make_new(cluster).await? {
            return Ok(Some(Duration::from_millis(50)));
        }
        rollout.number(cluster).await?;
        match str_at(&rollout.deployment, "spec.strategy.type") {
            "Recreate" => rollout.recreate(cluster).await?,
            _ => rollout.roll(cluster).await?,
        }
    }
    let again = rollout.report(cluster).await?;
    rollout.forget_old(cluster).await?;
    Ok(again)
}

/// A deployment and its replica sets, the newest being that of its template.
struct Rollout {
    deployment: Value,
    sets: Vec<Value>,
    replicas: i64,
}

impl Rollout {
    fn new(deployment: Value, sets: Vec<Value>) -> Self {
        let replicas = int_at(&deployment, "spec.replicas");
        Self { deployment, sets, replicas }
    }

    fn new_idx(&self) -> Option<usize> {
        let template = without_hash(at(&self.deployment, "spec.template"));
        let same = |set: &Value| without_hash(at(set, "spec.template")) == template;
        self.sets.iter().position(same)
    }

    fn new_set(&self) -> Option<&Value> {
        self.new_idx().and_then(|i| self.sets.get(i))
    }

    fn olds(&self) -> Vec<usize> {
        let new = self.new_idx();
        (0..self.sets.len()).filter(|i| Some(*i) != new).collect()
    }

    /// Makes the replica set of the present template; `false` if its name is taken by another.
    async fn make_new(&mut self, cluster: &Cluster) -> Result<bool> {
        let deployment = &self.deployment;
        let template = at(deployment, "spec.template");
        let collisions = int_at(deployment, "status.collisionCount");
        let id = hash(&json!([without_hash(template), collisions]));
        let mut template = template.clone();
        let mut selector = at(deployment, "spec.selector").clone();
        set_key(&mut template["metadata"], "labels", HASH, &id);
        set_key(&mut selector, "matchLabels", HASH, &id);
        let replica_set = json!({
            "metadata": {
                "name": format!("{}-{id}", name(deployment)),
                "namespace": namespace(deployment),
                "labels": at(&template, "metadata.labels"),
                "annotations": self.annotations(self.next_revision()),
                "ownerReferences": [owner_reference(deployment)],
            },
            "spec": {
                "replicas": 0, "selector": selector, "template": template,
                "minReadySeconds": int_at(deployment, "spec.minReadySeconds"),
            },
        });
        match cluster.create(REPLICA_SET, &replica_set).await {
            Ok(made) => {
                self.sets.push(made);
                Ok(true)
            }
            Err(error) if error.code() == 409 => {
                let taken =
                    cluster.get(REPLICA_SET, namespace(deployment), name(&replica_set)).await?;
                let ours = taken.as_ref().and_then(controller_of);
                if ours.is_none_or(|owner| str_at(owner, "uid") != uid(deployment)) {
                    let mut status = at(deployment, "status").clone();
                    set(&mut status, "collisionCount", json!(collisions + 1));
                    cluster.replace_status(DEPLOYMENT, deployment, status).await?;
                }
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn next_revision(&self) -> i64 {
        self.sets.iter().map(revision).max().unwrap_or(0) + 1
    }

    fn annotations(&self, revision: i64) -> Value {
        let mut all = at(&self.deployment, "metadata.annotations").clone();
        if let Value::Object(map) = &mut all {
            map.remove("kubectl.kubernetes.io/last-applied-configuration");
        } else {
            all = json!({});
        }
        all[REVISION] = json!(revision.to_string());
        all[DESIRED] = json!(self.replicas.to_string());
        let most = self.replicas + self.surge();
        all[MOST] = json!(most.to_string());
        all
    }

    /// The newest template has the highest number, also after going back to an old one.
    async fn number(&mut self, cluster: &Cluster) -> Result<()> {
        let Some(new) = self.new_idx() else { return Ok(()) };
        let highest = self.sets.iter().map(revision).max().unwrap_or(0);
        let Some(set) = self.sets.get(new) else { return Ok(()) };
        let mut number = revision(set);
        let older_are_higher =
            self.olds().iter().filter_map(|i| self.sets.get(*i)).any(|old| revision(old) >= number);
        if number == 0 || older_are_higher {
            number = highest + 1;
            let patch = json!({"metadata": {"annotations": {REVISION: number.to_string()}}});
            if let Some(changed) = cluster.merge(REPLICA_SET, set, &patch).await?
                && let Some(slot) = self.sets.get_mut(new)
            {
                *slot = changed;
            }
        }
        if annotation(&self.deployment, REVISION) != number.to_string() {
            let patch = json!({"metadata": {"annotations": {REVISION: number.to_string()}}});
            if let Some(changed) = cluster.merge(DEPLOYMENT, &self.deployment, &patch).await? {
                self.deployment = changed;
            }
        }
        Ok(())
    }

    fn surge(&self) -> i64 {
        let rolling = at(&self.deployment, "spec.strategy.rollingUpdate");
        scaled(&rolling["maxSurge"], self.replicas, true)
    }

    fn max_unavailable(&self) -> i64 {
        let rolling = at(&self.deployment, "spec.strategy.rollingUpdate");
        let most = scaled(&rolling["maxUnavailable"], self.replicas, false);
        // Both rounded to nothing would never get anywhere.
        if most == 0 && self.surge() == 0 { 1 } else { most.min(self.replicas) }
    }

    fn total(&self, path: &str) -> i64 {
        self.sets.iter().map(|set| int_at(set, path)).sum()
    }

    /// One step of a rolling update: the new set up as far as the surge lets it, the old ones
    /// down as far as availability lets them.
    async fn roll(&mut self, cluster: &Cluster) -> Result<()> {
        let Some(new) = self.new_idx() else { return Ok(()) };
        let have = self.sets.get(new).map_or(0, |set| int_at(set, "spec.replicas"));
        // Pods that a set no longer wants count until they go, or there would be too many.
        let there = |set: &Value| int_at(set, "spec.replicas").max(int_at(set, "status.replicas"));
        let room = self.replicas + self.surge() - self.sets.iter().map(there).sum::<i64>();
        let wanted = if have > self.replicas {
            self.replicas
        } else {
            have + room.max(0).min(self.replicas - have)
        };
        self.scale(cluster, new, wanted).await?;

        let least = self.replicas - self.max_unavailable();
        let (spec, available) = self.sets.get(new).map_or((0, 0), |set| {
            (int_at(set, "spec.replicas"), int_at(set, "status.availableReplicas"))
        });
        let mut may_go = self.total("spec.replicas") - least - (spec - available).max(0);
        // Those that are not available are no loss.
        for old in self.olds() {
            let Some(set) = self.sets.get(old) else { continue };
            let (spec, up) =
                (int_at(set, "spec.replicas"), int_at(set, "status.availableReplicas"));
            let unhealthy = (spec - up).max(0).min(may_go.max(0));
            if unhealthy > 0 {
                may_go -= unhealthy;
                self.scale(cluster, old, spec - unhealthy).await?;
            }
        }
        let mut spare = (self.total("status.availableReplicas") - least).min(may_go);
        for old in self.olds() {
            let spec = self.sets.get(old).map_or(0, |set| int_at(set, "spec.replicas"));
            let down = spec.min(spare.max(0));
            if down > 0 {
                spare -= down;
                self.scale(cluster, old, spec - down).await?;
            }
        }
        Ok(())
    }

    /// All old pods end before the first new one begins.
    async fn recreate(&mut self, cluster: &Cluster) -> Result<()> {
        for old in self.olds() {
            self.scale(cluster, old, 0).await?;
        }
        let mut left = 0;
        for old in self.olds() {
            let Some(set) = self.sets.get(old) else { continue };
            let pods = pods::controlled(cluster, set, POD).await?;
            left += pods.iter().filter(|pod| !pods::is_finished(pod)).count();
        }
        match self.new_idx() {
            Some(new) if left == 0 => self.scale(cluster, new, self.replicas).await,
            _ => Ok(()),
        }
    }

    /// Takes up a change of size, so that in the middle of an update each set keeps its share.
    /// A paused deployment can be scaled as well. Whether there was something to take up.
    async fn take_up_size(&mut self, cluster: &Cluster) -> Result<bool> {
        let size = |i: &usize| self.sets.get(*i).map_or(0, |set| int_at(set, "spec.replicas"));
        let active: Vec<usize> = (0..self.sets.len()).filter(|i| size(i) > 0).collect();
        let marked = |set: &Value| annotation(set, DESIRED) == self.replicas.to_string();
        let news = |i: &usize| self.sets.get(*i).is_some_and(|set| !marked(set));
        let paused = at(&self.deployment, "spec.paused") == true;
        if !paused && !active.iter().any(news) {
            return Ok(false);
        }
        if let [] | [_] = active.as_slice() {
            let newest = self.new_idx().or_else(|| self.sets.len().checked_sub(1));
            if let Some(only) = active.first().copied().or(newest) {
                self.scale(cluster, only, self.replicas).await?;
            }
            return Ok(true);
        }
        let saturated = self.new_set().is_some_and(|set| {
            marked(set)
                && int_at(set, "spec.replicas") == self.replicas
                && int_at(set, "status.availableReplicas") == self.replicas
        });
        if saturated {
            for old in self.olds() {
                self.scale(cluster, old, 0).await?;
            }
        } else if active.iter().any(news) {
            // The newest first: it takes what does not divide.
            let newest = self.new_idx();
            let mut order = active;
            order.sort_by_key(|i| (Some(*i) != newest, std::cmp::Reverse(*i)));
            let before: Vec<(i64, i64)> = order.iter().map(|i| self.size_and_most(*i)).collect();
            let most = if self.replicas > 0 { self.replicas + self.surge() } else { 0 };
            for (which, to) in order.into_iter().zip(shares(&before, most)) {
                self.scale(cluster, which, to).await?;
            }
        }
        Ok(true)
    }

    /// A set's size, and how many pods all sets together could have when it got that.
    fn size_and_most(&self, which: usize) -> (i64, i64) {
        let Some(set) = self.sets.get(which) else { return (0, 0) };
        let most = annotation(set, MOST).parse().ok().filter(|most| *most > 0);
        let now = || int_at(&self.deployment, "status.replicas");
        (int_at(set, "spec.replicas"), most.unwrap_or_else(now))
    }

    async fn scale(&mut self, cluster: &Cluster, which: usize, to: i64) -> Result<()> {
        let Some(set) = self.sets.get(which) else { return Ok(()) };
        let from = int_at(set, "spec.replicas");
        let marks = self.annotations(revision(set).max(1));
        let current = annotation(set, DESIRED) == self.replicas.to_string();
        if from == to && current {
            return Ok(());
        }
        let patch = json!({
            "metadata": {
                "resourceVersion": set["metadata"]["resourceVersion"],
                "annotations": {DESIRED: marks[DESIRED], MOST: marks[MOST]},
            },
            "spec": {"replicas": to},
        });
        let changed = cluster.merge(REPLICA_SET, set, &patch).await?;
        if from != to {
            let way = if to > from { "up" } else { "down" };
            let message = format!("Scaled {way} replica set {} from {from} to {to}", name(set));
            let what = Happened {
                from: NAME,
                normal: true,
                reason: "ScalingReplicaSet",
                message: &message,
            };
            cluster.event(&self.deployment, &what).await;
        }
        if let (Some(changed), Some(slot)) = (changed, self.sets.get_mut(which)) {
            *slot = changed;
        }
        Ok(())
    }

    /// Says how far it is.
    async fn report(&self, cluster: &Cluster) -> Result<Again> {
        let available = self.total("status.availableReplicas");
        let replicas = self.total("status.replicas");
        let updated = self.new_set().map_or(0, |set| int_at(set, "status.replicas"));
        let mut conditions = list_at(&self.deployment, "status.conditions").to_vec();
        let enough = available >= self.replicas - self.max_unavailable();
        let (status, reason, message) = if enough {
            ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        } else {
            (
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.",
            )
        };
        set_condition(
            &mut conditions,
            json!({"type": "Available", "status": status, "reason": reason, "message": message,
                "lastUpdateTime": now()}),
        );
        let complete = updated == self.replicas
            && replicas == self.replicas
            && available == self.replicas
            && self.new_set().is_some();
        let counts = [replicas, updated, self.total("status.readyReplicas"), available];
        let before = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"]
            .map(|field| int_at(&self.deployment, &format!("status.{field}")));
        let again = self.progress(&mut conditions, complete, counts != before);
        let mut status = json!({
            "observedGeneration": at(&self.deployment, "metadata.generation"),
            "conditions": conditions,
        });
        let missing = (self.replicas - available).max(0);
        for (field, count) in [
            ("replicas", replicas),
            ("updatedReplicas", updated),
            ("readyReplicas", self.total("status.readyReplicas")),
            ("availableReplicas", available),
            ("unavailableReplicas", missing),
        ] {
            if count != 0 {
                status[field] = json!(count);
            }
        }
        let collisions = at(&self.deployment, "status.collisionCount");
        if !collisions.is_null() {
            status["collisionCount"] = collisions.clone();
        }
        cluster.replace_status(DEPLOYMENT, &self.deployment, status).await?;
        Ok(again)
    }

    /// Whether it gets on, has arrived, or has taken too long; and when to look again.
    fn progress(&self, conditions: &mut Vec<Value>, complete: bool, moved: bool) -> Again {
        let newest = self.new_set().map(name).unwrap_or_default();
        let deadline = int_at(&self.deployment, "spec.progressDeadlineSeconds");
        let old = pods::condition(&self.deployment, "Progressing");
        let mut put = |status: &str, reason: &str, message: String, touch: bool| {
            let mut new = json!({"type": "Progressing", "status": status, "reason": reason,
                "message": message, "lastUpdateTime": now()});
            if touch {
                // The clock of the deadline starts again.
                conditions.retain(|one| one["type"] != "Progressing" || one["status"] != status);
                if old["status"] == status {
                    new["lastTransitionTime"] = old["lastTransitionTime"].clone();
                    conditions.push(new);
                    return;
                }
            }
            set_condition(conditions, new);
        };
        if at(&self.deployment, "spec.paused") == true {
            let reason = "DeploymentPaused";
            put("Unknown", reason, "Deployment is paused".into(), false);
            return None;
        }
        if complete {
            let message = format!("ReplicaSet \"{newest}\" has successfully progressed.");
            put("True", "NewReplicaSetAvailable", message, false);
            return None;
        }
        let since: Option<Timestamp> = str_at(old, "lastUpdateTime").parse().ok();
        let waited = since.map_or(0, |since| Timestamp::now().duration_since(since).as_secs());
        let stuck = !moved && since.is_some() && old["reason"] != "NewReplicaSetAvailable";
        if stuck && waited >= deadline {
            let message = format!("ReplicaSet \"{newest}\" has timed out progressing.");
            put("False", "ProgressDeadlineExceeded", message, false);
            return None;
        }
        let message = format!("ReplicaSet \"{newest}\" is progressing.");
        put("True", "ReplicaSetUpdated", message, moved);
        pods::seconds(Some((deadline - waited).max(1)))
    }

    /// Old replica sets without pods are kept for going back, so many and no more.
    async fn forget_old(&self, cluster: &Cluster) -> Result<()> {
        let limit = at(&self.deployment, "spec.revisionHistoryLimit").as_u64().unwrap_or(10);
        let olds = self.olds().into_iter().filter_map(|i| self.sets.get(i));
        let empty: Vec<&Value> = olds
            .filter(|set| {
                int_at(set, "spec.replicas") == 0
                    && int_at(set, "status.replicas") == 0
                    && !is_being_deleted(set)
            })
            .collect();
        let surplus = empty.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
        for set in empty.into_iter().take(surplus) {
            cluster.delete(REPLICA_SET, set).await?;
        }
        Ok(())
    }
}

/// Sizes that keep the sets' shares when all together may have `most`. Each comes with the most
/// that was allowed when it got its size; what is left over goes to the first.
fn shares(before: &[(i64, i64)], most: i64) -> Vec<i64> {
    let mut left = most - before.iter().map(|(size, _)| size).sum::<i64>();
    let mut sizes = Vec::with_capacity(before.len());
    for (size, allowed) in before {
        let wanted = match (most, *allowed) {
            (0, _) => 0,
            (_, 0) => *size,
            // To the nearest.
            (most, allowed) => (2 * size * most + allowed) / (2 * allowed),
        };
        let change = wanted - size;
        let change = if left > 0 { change.clamp(0, left) } else { change.clamp(left, 0) };
        left -= change;
        sizes.push(size + change);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + left).max(0);
    }
    sizes
}

fn revision(set: &Value) -> i64 {
    annotation(set, REVISION).parse().unwrap_or(0)
}

/// A template without the label that tells replica sets apart.
fn without_hash(template: &Value) -> Value {
    let mut template = template.clone();
    if label(&template, HASH).is_empty() {
        return template;
    }
    if let Value::Object(labels) = &mut template["metadata"]["labels"] {
        labels.remove(HASH);
    }
    template
}

fn set_key(value: &mut Value, map: &str, key: &str, text: &str) {
    if !value.is_object() {
        *value = json!({});
    }
    if !value[map].is_object() {
        value[map] = json!({});
    }
    value[map][key] = json!(text);
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn sets_keep_their_shares_when_a_deployment_is_scaled_in_the_middle_of_an_update() {
        // Upstream's example: 10 replicas and 3 more; 5 new and 8 old, then 15 replicas.
        assert_eq!(shares(&[(5, 13), (8, 13)], 18), [7, 11]);
        assert_eq!(shares(&[(5, 13), (8, 13)], 8), [3, 5]);
        assert_eq!(shares(&[(5, 13), (8, 13)], 0), [0, 0]);
        assert_eq!(shares(&[(1, 4), (1, 4), (1, 4)], 4), [2, 1, 1]);
        assert_eq!(shares(&[(2, 0)], 5), [5]);
    }
}
