//! `DaemonSet`: one pod on each node that suits.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use serde_json::{Value, json};

use crate::cache::{Caches, Key};
use crate::cluster::{Cluster, Result};
use crate::json::{at, int_at, is_being_deleted, list_at, name, scaled, set, str_at};
use crate::kinds::{DAEMON_SET, NODE, POD};
use crate::pods::{self, is_available, is_finished};
use crate::revisions::{self, HASH, revision_of};
use crate::run::{Again, Context, Controller};
use crate::scheduler::{is_selected, tolerates};

const NAME: &str = "daemonset-controller";

pub(crate) const CONTROLLER: Controller = Controller {
    name: NAME,
    kinds: &[DAEMON_SET, POD, NODE],
    concerns: |caches, change| match change.kind {
        POD => pods::owners(caches, change, DAEMON_SET),
        NODE => all(caches),
        _ => change.object().map(Key::of).into_iter().collect(),
    },
    reconcile: |context, key| reconcile(context, key).boxed(),
};

fn all(caches: &Caches) -> Vec<Key> {
    caches.list(DAEMON_SET, "").iter().map(|set| Key::of(set)).collect()
}

async fn reconcile(context: Context, key: Key) -> Result<Again> {
    let cluster = &context.cluster;
    let Some(owner) = cluster.get(DAEMON_SET, &key.namespace, &key.name).await? else {
        return Ok(None);
    };
    if is_being_deleted(&owner) {
        return Ok(None);
    }
    let revisions = revisions::ensure(cluster, &owner).await?;
    let pods = pods::controlled(cluster, &owner, POD).await?;
    let mut of_node: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for pod in &pods {
        of_node.entry(node_of(pod)).or_default().push(pod);
    }
    let nodes = context.caches.list(NODE, "");
    let template = pods::from_template(&owner, at(&owner, "spec.template"));
    let on = nodes.iter().map(|node| (node, suits(&template, node)));
    let on: Vec<(&Arc<Value>, bool)> = on.collect();
    let desired = i64::try_from(on.iter().filter(|(_, suits)| *suits).count()).unwrap_or(i64::MAX);
    let mut counts = Counts { desired, ..Counts::default() };
    let surge = surge(&owner, desired);
    let mut update = Update { surging: 0, old: Vec::new() };
    for (node, suits) in on {
        let here = of_node.remove(name(node)).unwrap_or_default();
        let mut live: Vec<&Value> = Vec::new();
        for pod in here {
            if is_being_deleted(pod) {
                counts.going += 1;
            } else if is_finished(pod) || !suits {
                counts.misplaced += i64::from(!suits);
                pods::delete(cluster, &owner, pod, NAME).await?;
            } else {
                live.push(pod);
            }
        }
        if !suits {
            continue;
        }
        let here = Here::sort(&owner, live, &revisions.current, surge > 0);
        for pod in here.surplus {
            pods::delete(cluster, &owner, pod, NAME).await?;
        }
        match (here.old.or(here.new), here.old, here.new) {
            (Some(pod), old, new) => {
                counts.add(&owner, pod, &revisions.current);
                update.surging += i64::from(old.is_some() && new.is_some());
                update.old.extend(old.filter(|_| new.is_none()));
            }
            (None, ..) => {
                let pod = pod_on(name(node), &template, &revisions.current);
                pods::create(cluster, &owner, &pod, NAME).await?;
            }
        }
    }
    // Pods of nodes that are no more.
    for pod in of_node.into_values().flatten().filter(|pod| !is_being_deleted(pod)) {
        pods::delete(cluster, &owner, pod, NAME).await?;
    }
    if str_at(&owner, "spec.updateStrategy.type") != "OnDelete" {
        if surge > 0 {
            update.surge(cluster, &owner, &template, (&revisions.current, surge)).await?;
        } else {
            update.replace(cluster, &owner, counts).await?;
        }
    }
    cluster.replace_status(DAEMON_SET, &owner, counts.status(&owner)).await?;
    revisions::forget(cluster, &owner, &revisions, &pods).await?;
    Ok(pods::seconds(counts.next_in))
}

/// How many nodes may have a pod of the new revision beside the old one.
fn surge(owner: &Value, desired: i64) -> i64 {
    scaled(at(owner, "spec.updateStrategy.rollingUpdate.maxSurge"), desired, true)
}

/// The pods of one node: one, or during an update that surges one of each revision.
struct Here<'a> {
    old: Option<&'a Value>,
    new: Option<&'a Value>,
    surplus: Vec<&'a Value>,
}

impl<'a> Here<'a> {
    fn sort(owner: &Value, mut live: Vec<&'a Value>, current: &str, surges: bool) -> Self {
        live.sort_by_key(|pod| !pods::is_ready(pod));
        let (new, old): (Vec<_>, Vec<_>) =
            live.iter().copied().partition(|pod| revision_of(pod) == current);
        let (new, old) = (new.first().copied(), old.first().copied());
        let available = |pod| is_available(pod, int_at(owner, "spec.minReadySeconds")).is_ok();
        let (new, old) = match (new, old) {
            (Some(new), Some(_)) if surges && available(new) => (Some(new), None),
            (Some(new), Some(old)) if !surges => {
                let first = live.first().copied();
                (Some(new).filter(|_| first == Some(new)), Some(old).filter(|_| first == Some(old)))
            }
            both => both,
        };
        live.retain(|pod| Some(*pod) != new && Some(*pod) != old);
        Self { old, new, surplus: live }
    }
}

/// What is still to be updated.
struct Update<'a> {
    /// Nodes on which a new pod stands beside the old one.
    surging: i64,
    /// Pods of an old revision with no new one beside them.
    old: Vec<&'a Value>,
}

impl Update<'_> {
    /// Those that are available, and those that are no loss.
    fn well_and_ill(&self, owner: &Value) -> (Vec<&Value>, Vec<&Value>) {
        let least = int_at(owner, "spec.minReadySeconds");
        self.old.iter().partition(|pod| is_available(pod, least).is_ok())
    }

    /// Deletes old pods, as many at once as may be unavailable.
    async fn replace(&self, cluster: &Cluster, owner: &Value, counts: Counts) -> Result<()> {
        let most = at(owner, "spec.updateStrategy.rollingUpdate.maxUnavailable");
        let most = scaled(most, counts.desired, true).max(1);
        let may_go = most - (counts.desired - counts.available);
        let (well, ill) = self.well_and_ill(owner);
        let may_go = usize::try_from(may_go).unwrap_or(0);
        for pod in ill.into_iter().chain(well.into_iter().take(may_go)) {
            pods::delete(cluster, owner, pod, NAME).await?;
        }
        Ok(())
    }

    /// Makes new pods beside the old ones, on as many nodes at once as may have two.
    async fn surge(
        &self,
        cluster: &Cluster,
        owner: &Value,
        template: &Value,
        (current, most): (&str, i64),
    ) -> Result<()> {
        let (well, ill) = self.well_and_ill(owner);
        let room = usize::try_from(most - self.surging).unwrap_or(0);
        for old in ill.into_iter().chain(well.into_iter().take(room)) {
            let pod = pod_on(node_of(old), template, current);
            pods::create(cluster, owner, &pod, NAME).await?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    desired: i64,
    current: i64,
    ready: i64,
    available: i64,
    updated: i64,
    misplaced: i64,
    going: i64,
    next_in: Option<i64>,
}

impl Counts {
    fn add(&mut self, owner: &Value, pod: &Value, revision: &str) {
        self.current += 1;
        let one = pods::count(std::iter::once(pod), owner);
        self.ready += one.ready;
        self.available += one.available;
        self.updated += i64::from(revision_of(pod) == revision);
        self.next_in = self.next_in.into_iter().chain(one.next_in).min();
    }

    fn status(&self, owner: &Value) -> Value {
        let mut status = json!({
            "observedGeneration": at(owner, "metadata.generation"),
            "desiredNumberScheduled": self.desired,
            "currentNumberScheduled": self.current,
            "numberReady": self.ready,
            "numberMisscheduled": self.misplaced,
        });
        let missing = self.desired - self.available;
        for (field, count) in [
            ("numberAvailable", self.available),
            ("numberUnavailable", missing),
            ("updatedNumberScheduled", self.updated),
        ] {
            if count != 0 {
                status[field] = json!(count);
            }
        }
        status
    }
}

/// What a daemon's pod tolerates beyond its template: it belongs to the node, well or not.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

fn with_tolerations(template: &Value) -> Value {
    let mut pod = template.clone();
    let mut all = list_at(&pod, "spec.tolerations").to_vec();
    for (key, effect) in TOLERATED {
        all.push(json!({"key": key, "operator": "Exists", "effect": effect}));
    }
    set(&mut pod, "spec.tolerations", json!(all));
    pod
}

fn suits(template: &Value, node: &Value) -> bool {
    let pod = with_tolerations(template);
    let wanted = str_at(&pod, "spec.nodeName");
    let taints = list_at(node, "spec.taints").iter();
    // That a node is not ready yet keeps nobody's daemon away.
    let lifecycle = |taint: &Value| {
        matches!(
            str_at(taint, "key"),
            "node.kubernetes.io/not-ready" | "node.kubernetes.io/unreachable"
        )
    };
    let mut hard =
        taints.filter(|taint| taint["effect"] != "PreferNoSchedule" && !lifecycle(taint));
    (wanted.is_empty() || wanted == name(node))
        && is_selected(&pod, node)
        && hard.all(|taint| tolerates(&pod, taint))
}

/// A pod that only one node suits; the scheduler puts it there.
fn pod_on(node: &str, template: &Value, revision: &str) -> Value {
    let mut pod = with_tolerations(template);
    let mut all = list_at(&pod, "spec.tolerations").to_vec();
    for (key, _) in TOLERATED.iter().take(2) {
        all.push(json!({"key": key, "operator": "Exists", "effect": "NoSchedule"}));
    }
    set(&mut pod, "spec.tolerations", json!(all));
    pod["metadata"]["labels"][HASH] = json!(revision);
    let only = json!([{
        "matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}],
    }]);
    let path = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution";
    let own = list_at(at(&pod, path), "nodeSelectorTerms").to_vec();
    // The template's own terms have been found to suit; each is narrowed to this node.
    let narrowed: Vec<Value> = own
        .into_iter()
        .map(|mut term| {
            term["matchFields"] = only[0]["matchFields"].clone();
            term
        })
        .collect();
    let terms = if narrowed.is_empty() { only } else { json!(narrowed) };
    set(&mut pod, path, json!({"nodeSelectorTerms": terms}));
    pod
}

/// The node a pod is on, or is meant for.
fn node_of(pod: &Value) -> &str {
    let on = str_at(pod, "spec.nodeName");
    if !on.is_empty() {
        return on;
    }
    let path = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution";
    let terms = list_at(at(pod, path), "nodeSelectorTerms").iter();
    let mut fields = terms.flat_map(|term| list_at(term, "matchFields"));
    let field = fields.find(|field| str_at(field, "key") == "metadata.name");
    let value = field.and_then(|field| list_at(field, "values").first());
    value.and_then(Value::as_str).unwrap_or_default()
}
