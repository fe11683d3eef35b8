//! `DaemonSet`: one pod on each node that suits.

use std::collections::BTreeMap;

use futures::FutureExt;
use serde_json::{Value, json};

use crate::cache::{Caches, Key};
use crate::cluster::Result;
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
    let mut counts = Counts::default();
    for node in &nodes {
        let here = of_node.remove(name(node)).unwrap_or_default();
        let suits = suits(&template, node);
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
        counts.desired += 1;
        live.sort_by_key(|pod| !pods::is_ready(pod));
        for pod in live.iter().skip(1) {
            pods::delete(cluster, &owner, pod, NAME).await?;
        }
        match live.first() {
            Some(pod) => counts.add(&owner, pod, &revisions.current),
            None => {
                let pod = pod_on(name(node), &template, &revisions.current);
                pods::create(cluster, &owner, &pod, NAME).await?;
            }
        }
    }
    // Pods of nodes that are no more.
    for pod in of_node.into_values().flatten().filter(|pod| !is_being_deleted(pod)) {
        pods::delete(cluster, &owner, pod, NAME).await?;
    }
    update(&context, &owner, &pods, &revisions.current, counts).await?;
    cluster.replace_status(DAEMON_SET, &owner, counts.status(&owner)).await?;
    revisions::forget(cluster, &owner, &revisions, &pods).await?;
    Ok(pods::seconds(counts.next_in))
}

/// Replaces pods of an old revision, as many at once as may be unavailable.
async fn update(
    context: &Context,
    owner: &Value,
    pods: &[Value],
    current: &str,
    counts: Counts,
) -> Result<()> {
    if str_at(owner, "spec.updateStrategy.type") == "OnDelete" {
        return Ok(());
    }
    let most = at(owner, "spec.updateStrategy.rollingUpdate.maxUnavailable");
    let most = scaled(most, counts.desired, true).max(1);
    let old = |pod: &&Value| revision_of(pod) != current && !is_being_deleted(pod);
    let mut may_go = most - (counts.desired - counts.available);
    let (well, ill): (Vec<&Value>, Vec<&Value>) = pods
        .iter()
        .filter(old)
        .partition(|pod| is_available(pod, int_at(owner, "spec.minReadySeconds")).is_ok());
    for pod in ill {
        pods::delete(&context.cluster, owner, pod, NAME).await?;
    }
    for pod in well {
        if may_go <= 0 {
            break;
        }
        may_go -= 1;
        pods::delete(&context.cluster, owner, pod, NAME).await?;
    }
    Ok(())
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
