//! What a job's pods have come to: each is counted once, whatever becomes of it.
//!
//! A pod is made with a finalizer; once it has ended its uid stands in `uncountedTerminatedPods`;
//! then it is let go, and becomes a number.
//!
//! What has been done is in the job's status before the next step is taken, so a controller may
//! die between any two of them, and a pod may be deleted at any time.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{INDEX, parse_indices, print_indices};
use crate::json::{annotation, at, int_at, is_being_deleted, list_at, str_at, uid};
use crate::pods::condition;

/// The finalizer that holds a pod until it has been counted.
pub(super) const HELD: &str = "batch.kubernetes.io/job-tracking";

/// A job's count of its pods.
#[derive(Debug)]
pub(super) struct Tally {
    indexed: bool,
    /// Indices that have succeeded, of an indexed job.
    pub(super) done: BTreeSet<i64>,
    /// Those that were counted for good.
    counted: Outcome<i64>,
    /// Those that are counted, and still held.
    uncounted: Outcome<BTreeSet<String>>,
    /// Pods that can go once the status has been written.
    free: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Outcome<T> {
    succeeded: T,
    failed: T,
}

impl Tally {
    pub(super) fn new(job: &Value, pods: &[Value]) -> Self {
        let held = || pods.iter().filter(|pod| is_held(pod));
        let holds = |wanted: &str| held().any(|pod| uid(pod) == wanted);
        let split = |field: &str| -> (BTreeSet<String>, BTreeSet<String>) {
            let listed = list_at(at(job, "status.uncountedTerminatedPods"), field).iter();
            listed
                .filter_map(|uid| uid.as_str().map(Into::into))
                .partition(|uid: &String| holds(uid))
        };
        let (succeeded, gone_succeeded) = split("succeeded");
        let (failed, gone_failed) = split("failed");
        let mut tally = Self {
            indexed: str_at(job, "spec.completionMode") == "Indexed",
            done: parse_indices(str_at(job, "status.completedIndexes")),
            counted: Outcome {
                succeeded: int_at(job, "status.succeeded") + number(gone_succeeded.len()),
                failed: int_at(job, "status.failed") + number(gone_failed.len()),
            },
            free: succeeded.union(&failed).cloned().collect(),
            uncounted: Outcome { succeeded, failed },
        };
        for pod in held() {
            if !tally.free.contains(uid(pod)) {
                tally.take_up(job, pod);
            }
        }
        tally
    }

    /// Takes up a pod that the status does not know yet, if it has ended.
    fn take_up(&mut self, job: &Value, pod: &Value) {
        let id = uid(pod).to_owned();
        match str_at(pod, "status.phase") {
            "Succeeded" if self.indexed => {
                // The index itself says that it is counted.
                let all = 0..int_at(job, "spec.completions");
                let index = annotation(pod, INDEX).parse().ok();
                self.done.extend(index.filter(|index| all.contains(index)));
            }
            "Succeeded" => _ = self.uncounted.succeeded.insert(id.clone()),
            "Failed" => _ = self.uncounted.failed.insert(id.clone()),
            _ if !is_being_deleted(pod) => return,
            // Whoever deletes a pod makes it fail, unless nobody needs it any more.
            _ if is_unneeded(job) => {}
            _ => _ = self.uncounted.failed.insert(id.clone()),
        }
        self.free.insert(id);
    }

    pub(super) fn succeeded(&self) -> i64 {
        if self.indexed {
            return number(self.done.len());
        }
        self.counted.succeeded + number(self.uncounted.succeeded.len())
    }

    pub(super) fn failed(&self) -> i64 {
        self.counted.failed + self.n_failing()
    }

    /// Pods that have failed and are not yet counted for good.
    pub(super) fn n_failing(&self) -> i64 {
        number(self.uncounted.failed.len())
    }

    /// Whether every pod that has ended is counted for good and let go.
    pub(super) fn is_settled(&self) -> bool {
        self.free.is_empty()
    }

    pub(super) fn may_go(&self, pod: &Value) -> bool {
        is_held(pod) && self.free.contains(uid(pod))
    }

    /// Writes the count into a job's status.
    pub(super) fn write(&self, status: &mut Value) {
        let succeeded = if self.indexed { self.succeeded() } else { self.counted.succeeded };
        for (field, count) in [("succeeded", succeeded), ("failed", self.counted.failed)] {
            status[field] = if count == 0 { Value::Null } else { json!(count) };
        }
        if self.indexed {
            status["completedIndexes"] = json!(print_indices(&self.done));
        }
        let mut uncounted = json!({});
        for (field, uids) in
            [("succeeded", &self.uncounted.succeeded), ("failed", &self.uncounted.failed)]
        {
            if !uids.is_empty() {
                uncounted[field] = json!(uids);
            }
        }
        status["uncountedTerminatedPods"] = uncounted;
    }
}

pub(super) fn is_held(pod: &Value) -> bool {
    list_at(pod, "metadata.finalizers").iter().any(|one| one == HELD)
}

/// Whether a job that has what it wanted, or is suspended, gives its pods up.
fn is_unneeded(job: &Value) -> bool {
    at(job, "spec.suspend") == true || condition(job, "SuccessCriteriaMet")["status"] == "True"
}

fn number(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(id: &str, phase: &str, finalizers: &[&str]) -> Value {
        json!({"metadata": {"uid": id, "finalizers": finalizers}, "status": {"phase": phase}})
    }

    fn status(job: &mut Value, pods: &[Value]) -> Value {
        let mut status = json!({});
        Tally::new(job, pods).write(&mut status);
        job["status"] = status.clone();
        status
    }

    #[test]
    fn a_pod_is_counted_once_whatever_becomes_of_it() {
        let mut job = json!({"spec": {"completions": 3}});
        let held = [pod("a", "Succeeded", &[HELD]), pod("b", "Failed", &[HELD, "other"])];
        let first = status(&mut job, &held);
        let listed = json!({"succeeded": ["a"], "failed": ["b"]});
        assert_eq!(first["uncountedTerminatedPods"], listed);
        assert_eq!((&first["succeeded"], &first["failed"]), (&Value::Null, &Value::Null));
        // Not yet let go: nothing changes, however often it is looked at.
        assert_eq!(status(&mut job, &held), first);
        // One is let go and still there, the other is gone.
        let then = status(&mut job, &[pod("b", "Failed", &["other"])]);
        assert_eq!(then["uncountedTerminatedPods"], json!({}));
        assert_eq!((&then["succeeded"], &then["failed"]), (&json!(1), &json!(1)));
        assert_eq!(status(&mut job, &[]), then);
    }

    #[test]
    fn a_pod_that_is_deleted_has_failed_unless_nobody_needs_it() {
        let mut deleted = pod("a", "Running", &[HELD]);
        deleted["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
        let pods = [deleted, pod("b", "Running", &[HELD])];
        let tally = Tally::new(&json!({}), &pods);
        assert_eq!((tally.failed(), tally.n_failing(), tally.succeeded()), (1, 1, 0));
        assert!(tally.may_go(&pods[0]) && !tally.may_go(&pods[1]));
        let tally = Tally::new(&json!({"spec": {"suspend": true}}), &pods);
        assert_eq!(tally.failed(), 0);
        assert!(tally.may_go(&pods[0]) && !tally.is_settled());
    }

    #[test]
    fn an_index_is_done_once_and_only_if_it_is_one() {
        let mut job = json!({"spec": {"completionMode": "Indexed", "completions": 3}});
        let indexed = |id: &str, index: &str| {
            let mut pod = pod(id, "Succeeded", &[HELD]);
            pod["metadata"]["annotations"] = json!({INDEX: index});
            pod
        };
        let status = status(&mut job, &[indexed("a", "0"), indexed("b", "0"), indexed("c", "7")]);
        assert_eq!((&status["completedIndexes"], &status["succeeded"]), (&json!("0"), &json!(1)));
    }
}
