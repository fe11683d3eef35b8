//! Job: pods until enough have succeeded, or too many have failed, or time is up.

mod tally;

use std::collections::BTreeSet;
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cache::Key;
use crate::cluster::{Cluster, Happened, Result, now};
use crate::json::{
    annotation, at, controller_of, int_at, is_being_deleted, label, list_at, name, set, str_at, uid,
};
use crate::kinds::{JOB, POD};
use crate::pods::{self, condition, set_condition};
use crate::run::{Again, Context, Controller};
use tally::{HELD, Tally, is_held};

const NAME: &str = "job-controller";

pub(crate) const CONTROLLER: Controller = Controller {
    name: NAME,
    kinds: &[JOB, POD],
    concerns: |caches, change| {
        if change.kind == POD {
            return pods::owners(caches, change, JOB);
        }
        change.object().map(Key::of).into_iter().collect()
    },
    reconcile: |context, key| reconcile(context, key).boxed(),
};

const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";

async fn reconcile(context: Context, key: Key) -> Result<Again> {
    let cluster = &context.cluster;
    let job = cluster.get(JOB, &key.namespace, &key.name).await?;
    let_go_of_others(&context, &key, job.as_ref()).await?;
    let Some(job) = job else { return Ok(None) };
    let pods = pods::controlled(cluster, &job, POD).await?;
    if is_being_deleted(&job) || has_ended(&job) {
        for pod in pods.iter().filter(|pod| is_held(pod)) {
            let_go(cluster, pod).await?;
        }
        return if is_being_deleted(&job) { Ok(None) } else { expire(cluster, &job).await };
    }
    let tally = Tally::new(&job, &pods);
    let seen = Seen::new(&pods, tally);
    let mut conditions = list_at(&job, "status.conditions").to_vec();
    let verdict = verdict(&job, &seen);
    let suspended = at(&job, "spec.suspend") == true;
    match &verdict {
        Some(ended) => {
            for pod in pods.iter().filter(|pod| pods::is_active(pod)) {
                pods::delete(cluster, &job, pod, NAME).await?;
            }
            ended.add_to(&mut conditions, seen.is_settled());
        }
        None if suspended => {
            for pod in pods.iter().filter(|pod| pods::is_active(pod)) {
                pods::delete(cluster, &job, pod, NAME).await?;
            }
            suspend(&mut conditions, "True", "JobSuspended", "Job suspended");
        }
        None => {
            if condition(&job, "Suspended")["status"] == "True" {
                suspend(&mut conditions, "False", "JobResumed", "Job resumed");
            }
            manage(cluster, &job, &pods, &seen).await?;
        }
    }
    report(cluster, &job, &seen, conditions, verdict.as_ref()).await?;
    // Now that the status knows them, they can go.
    for pod in pods.iter().filter(|pod| seen.tally.may_go(pod)) {
        let_go(cluster, pod).await?;
    }
    Ok(next_look(&job))
}

/// Takes the finalizer off a pod.
async fn let_go(cluster: &Cluster, pod: &Value) -> Result<()> {
    let finalizers = list_at(pod, "metadata.finalizers").iter();
    let others: Vec<&Value> = finalizers.filter(|one| *one != HELD).collect();
    let patch = json!({"metadata": {
        "resourceVersion": pod["metadata"]["resourceVersion"], "finalizers": others,
    }});
    cluster.merge(POD, pod, &patch).await.map(|_| ())
}

/// Lets go of pods that a job of this name left behind: nobody else will.
async fn let_go_of_others(context: &Context, key: &Key, job: Option<&Value>) -> Result<()> {
    let left_behind = |pod: &Value| match controller_of(pod) {
        Some(owner) => {
            str_at(owner, "kind") == JOB.kind
                && str_at(owner, "name") == key.name
                && job.is_none_or(|job| uid(job) != str_at(owner, "uid"))
        }
        None => label(pod, JOB_NAME) == key.name && job.is_none(),
    };
    let all = context.caches.list(POD, &key.namespace);
    for pod in all.iter().filter(|pod| is_held(pod) && left_behind(pod)) {
        let_go(&context.cluster, pod).await?;
    }
    Ok(())
}

fn has_ended(job: &Value) -> bool {
    ["Complete", "Failed"].into_iter().any(|form| condition(job, form)["status"] == "True")
}

fn suspend(conditions: &mut Vec<Value>, status: &str, reason: &str, message: &str) {
    let new = json!({"type": "Suspended", "status": status, "reason": reason, "message": message});
    set_condition(conditions, new);
}

/// What its pods have come to, and what they are doing.
struct Seen {
    tally: Tally,
    active: i64,
    terminating: i64,
    ready: i64,
    /// Indices that some pod works on.
    working: BTreeSet<i64>,
}

impl Seen {
    fn new(pods: &[Value], tally: Tally) -> Self {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let active = || pods.iter().filter(|pod| pods::is_active(pod));
        let index = |pod: &Value| annotation(pod, INDEX).parse::<i64>().ok();
        let terminating = |pod: &&Value| is_being_deleted(pod) && !pods::is_finished(pod);
        Self {
            tally,
            active: count(active().count()),
            terminating: count(pods.iter().filter(terminating).count()),
            ready: count(active().filter(|pod| pods::is_ready(pod)).count()),
            working: active().filter_map(index).collect(),
        }
    }

    /// Whether every pod has ended and is counted.
    fn is_settled(&self) -> bool {
        self.active == 0 && self.tally.is_settled()
    }
}

/// How a job has ended.
struct Ended {
    complete: bool,
    reason: String,
    message: String,
}

impl Ended {
    /// What the status says about how it is ending.
    fn begun(job: &Value) -> Option<Self> {
        let forms = [(true, "SuccessCriteriaMet"), (false, "FailureTarget")];
        let (complete, found) = forms.into_iter().find_map(|(complete, form)| {
            let found = condition(job, form);
            (found["status"] == "True").then_some((complete, found))
        })?;
        let text = |field: &str| str_at(found, field).to_owned();
        Some(Self { complete, reason: text("reason"), message: text("message") })
    }

    /// At once what is to be, and what is once every pod has ended and is counted.
    fn add_to(&self, conditions: &mut Vec<Value>, settled: bool) {
        let (first, last) = if self.complete {
            ("SuccessCriteriaMet", "Complete")
        } else {
            ("FailureTarget", "Failed")
        };
        for form in [Some(first), settled.then_some(last)].into_iter().flatten() {
            let new = json!({
                "type": form, "status": "True", "reason": self.reason, "message": self.message,
                "lastProbeTime": now(),
            });
            set_condition(conditions, new);
        }
    }
}

fn verdict(job: &Value, seen: &Seen) -> Option<Ended> {
    if let Some(ended) = Ended::begun(job) {
        return Some(ended);
    }
    let failed = |reason, message: &str| {
        Some(Ended { complete: false, reason: String::from(reason), message: message.to_owned() })
    };
    if seen.tally.failed() > int_at(job, "spec.backoffLimit") {
        return failed("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if deadline_left(job).is_some_and(|left| left <= 0) {
        return failed("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    let enough = match at(job, "spec.completions").as_i64() {
        Some(wanted) => seen.tally.succeeded() >= wanted,
        // A work queue: once one has succeeded, the others only have to end.
        None => seen.tally.succeeded() > 0 && seen.active == 0,
    };
    enough.then(|| Ended {
        complete: true,
        reason: "CompletionsReached".into(),
        message: "Reached expected number of succeeded pods".into(),
    })
}

fn deadline_left(job: &Value) -> Option<i64> {
    let deadline = at(job, "spec.activeDeadlineSeconds").as_i64()?;
    let start: Timestamp = str_at(job, "status.startTime").parse().ok()?;
    Some(deadline - Timestamp::now().duration_since(start).as_secs())
}

/// Makes the pods that are still needed, as many at once as may run; ends those that are not.
async fn manage(cluster: &Cluster, job: &Value, pods: &[Value], seen: &Seen) -> Result<()> {
    let parallelism = int_at(job, "spec.parallelism");
    let completions = at(job, "spec.completions").as_i64();
    let wanted = match completions {
        Some(total) => parallelism.min((total - seen.tally.succeeded()).max(0)),
        None if seen.tally.succeeded() > 0 => seen.active,
        None => parallelism,
    };
    if seen.active > wanted {
        let mut active: Vec<Value> =
            pods.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
        pods::least_useful_first(&mut active);
        let surplus = usize::try_from(seen.active - wanted).unwrap_or(0);
        for pod in active.iter().take(surplus) {
            pods::delete(cluster, job, pod, NAME).await?;
        }
        return Ok(());
    }
    if seen.tally.n_failing() > 0 || !waited_after_failure(pods, seen.tally.failed()) {
        // First the failure is counted and time passes; then another try is made.
        return Ok(());
    }
    let indexed = str_at(job, "spec.completionMode") == "Indexed";
    let mut free = (0..completions.unwrap_or(0))
        .filter(|index| !seen.tally.done.contains(index) && !seen.working.contains(index));
    for _ in 0..(wanted - seen.active) {
        let index = if indexed { free.next() } else { None };
        if indexed && index.is_none() {
            break;
        }
        let pod = make(job, index);
        pods::create(cluster, job, &pod, NAME).await?;
    }
    Ok(())
}

/// Each failure doubles the wait for the next try, from ten seconds to ten minutes.
fn waited_after_failure(pods: &[Value], failed: i64) -> bool {
    failed == 0 || back_off_left(pods, failed).is_none()
}

fn back_off_left(pods: &[Value], failed: i64) -> Option<i64> {
    let ended =
        pods.iter().filter(|pod| str_at(pod, "status.phase") == "Failed").filter_map(|pod| {
            let statuses = list_at(pod, "status.containerStatuses").iter();
            let mut times = statuses.map(|one| str_at(one, "state.terminated.finishedAt"));
            let time = times.find(|time| !time.is_empty());
            let time = time.unwrap_or_else(|| str_at(pod, "metadata.creationTimestamp"));
            time.parse::<Timestamp>().ok()
        });
    let last = ended.max()?;
    let wait = 10_i64.saturating_mul(1 << (failed - 1).clamp(0, 6)).min(600);
    let left = wait - Timestamp::now().duration_since(last).as_secs();
    (left > 0).then_some(left)
}

fn make(job: &Value, index: Option<i64>) -> Value {
    let mut pod = pods::from_template(job, at(job, "spec.template"));
    set(&mut pod, "metadata.finalizers", json!([HELD]));
    let Some(index) = index else { return pod };
    set(&mut pod, "metadata.generateName", json!(format!("{}-{index}-", name(job))));
    if !pod["metadata"]["annotations"].is_object() {
        pod["metadata"]["annotations"] = json!({});
    }
    pod["metadata"]["annotations"][INDEX] = json!(index.to_string());
    pod["metadata"]["labels"][INDEX] = json!(index.to_string());
    pod["spec"]["hostname"] = json!(format!("{}-{index}", name(job)));
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let mut env = list_at(container, "env").to_vec();
            env.push(json!({"name": "JOB_COMPLETION_INDEX", "value": index.to_string()}));
            container["env"] = json!(env);
        }
    }
    pod
}

async fn report(
    cluster: &Cluster,
    job: &Value,
    seen: &Seen,
    conditions: Vec<Value>,
    verdict: Option<&Ended>,
) -> Result<()> {
    let mut status = job["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    let suspended = at(job, "spec.suspend") == true;
    if suspended {
        status["startTime"] = Value::Null;
    } else if status["startTime"].is_null() {
        status["startTime"] = json!(now());
    }
    let active = if verdict.is_some() || suspended { 0 } else { seen.active };
    status["ready"] = json!(if active == 0 { 0 } else { seen.ready });
    for (field, count) in [("active", active), ("terminating", seen.terminating)] {
        status[field] = if count == 0 { Value::Null } else { json!(count) };
    }
    seen.tally.write(&mut status);
    if !conditions.is_empty() {
        status["conditions"] = json!(conditions);
    }
    let verdict = verdict.filter(|_| seen.is_settled());
    if verdict.is_some_and(|ended| ended.complete) {
        status["completionTime"] = json!(now());
    }
    if let Value::Object(map) = &mut status {
        map.retain(|_, value| !value.is_null());
    }
    cluster.replace_status(JOB, job, status).await?;
    if let Some(ended) = verdict {
        let (normal, reason) =
            if ended.complete { (true, "Completed") } else { (false, ended.reason.as_str()) };
        let message = if ended.complete { "Job completed" } else { ended.message.as_str() };
        cluster.event(job, &Happened { from: NAME, normal, reason, message }).await;
    }
    Ok(())
}

fn next_look(job: &Value) -> Again {
    let deadline = deadline_left(job).filter(|left| *left > 0);
    let retry = (int_at(job, "status.failed") > 0).then_some(1);
    pods::seconds(deadline.into_iter().chain(retry).min())
}

/// A job that has ended is deleted after its time to live.
async fn expire(cluster: &Cluster, job: &Value) -> Result<Again> {
    let Some(ttl) = at(job, "spec.ttlSecondsAfterFinished").as_i64() else { return Ok(None) };
    let ended =
        ["Complete", "Failed"].map(|form| str_at(condition(job, form), "lastTransitionTime"));
    let ended = ended.iter().filter_map(|time| time.parse::<Timestamp>().ok()).max();
    let left = ended.map_or(0, |ended| ttl - Timestamp::now().duration_since(ended).as_secs());
    if left <= 0 {
        cluster.delete(JOB, job).await?;
        return Ok(None);
    }
    Ok(Some(Duration::from_secs(u64::try_from(left).unwrap_or(1))))
}

/// `0-2,5` as numbers.
fn parse_indices(text: &str) -> BTreeSet<i64> {
    let ranges = text.split(',').filter_map(|part| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        Some(low.parse::<i64>().ok()?..=high.parse::<i64>().ok()?)
    });
    ranges.flatten().collect()
}

/// Numbers as `0-2,5`.
fn print_indices(indices: &BTreeSet<i64>) -> String {
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for index in indices {
        match ranges.last_mut() {
            Some((_, high)) if *high + 1 == *index => *high = *index,
            _ => ranges.push((*index, *index)),
        }
    }
    let print = |(low, high): &(i64, i64)| match high - low {
        0 => low.to_string(),
        1 => format!("{low},{high}"),
        _ => format!("{low}-{high}"),
    };
    ranges.iter().map(print).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_read_as_they_are_written() {
        for text in ["", "0", "0,1", "0-2", "0-2,5", "1,3,7-9"] {
            assert_eq!(print_indices(&parse_indices(text)), text);
        }
    }

    #[test]
    fn a_job_ends_as_its_limits_say() {
        let seen = |succeeded: i64, failed: i64, active| {
            let job = json!({"status": {"succeeded": succeeded, "failed": failed}});
            let mut seen = Seen::new(&[], Tally::new(&job, &[]));
            seen.active = active;
            seen
        };
        let reason = |job: &Value, seen: &Seen| verdict(job, seen).map(|ended| ended.reason);
        let is = |reason: &str| Some(reason.to_owned());
        let job = json!({"spec": {"completions": 3, "backoffLimit": 1}});
        assert_eq!(reason(&job, &seen(2, 1, 1)), None);
        assert_eq!(reason(&job, &seen(3, 1, 0)), is("CompletionsReached"));
        assert_eq!(reason(&job, &seen(0, 2, 0)), is("BackoffLimitExceeded"));
        let queue = json!({"spec": {"parallelism": 2, "backoffLimit": 1}});
        assert_eq!(reason(&queue, &seen(1, 0, 1)), None);
        assert_eq!(reason(&queue, &seen(1, 0, 0)), is("CompletionsReached"));
        let late = json!({"spec": {"completions": 1, "backoffLimit": 1, "activeDeadlineSeconds": 1},
            "status": {"startTime": "2020-01-01T00:00:00Z"}});
        assert_eq!(reason(&late, &seen(0, 0, 1)), is("DeadlineExceeded"));
    }
}
