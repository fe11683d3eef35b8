//! `CronJob`: a job at each time of its schedule.

mod schedule;

use futures::FutureExt;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::cache::Key;
use crate::cluster::{Cluster, Happened, Result, format_time};
use crate::json::{at, int_at, is_being_deleted, name, namespace, owner_reference, str_at, uid};
use crate::kinds::{CRON_JOB, JOB};
use crate::pods::{self, condition};
use crate::run::{Again, Context, Controller};

use schedule::Schedule;

const NAME: &str = "cronjob-controller";

pub(crate) const CONTROLLER: Controller = Controller {
    name: NAME,
    kinds: &[CRON_JOB, JOB],
    concerns: |caches, change| {
        if change.kind == JOB {
            let owned =
                change.object().is_some_and(|job| crate::json::controller_of(job).is_some());
            return if owned { pods::owners(caches, change, CRON_JOB) } else { Vec::new() };
        }
        change.object().map(Key::of).into_iter().collect()
    },
    reconcile: |context, key| reconcile(context, key).boxed(),
};

async fn reconcile(context: Context, key: Key) -> Result<Again> {
    let cluster = &context.cluster;
    let Some(cron) = cluster.get(CRON_JOB, &key.namespace, &key.name).await? else {
        return Ok(None);
    };
    if is_being_deleted(&cron) {
        return Ok(None);
    }
    let mut jobs = cluster.list(JOB, &key.namespace, "").await?;
    jobs.retain(|job| {
        crate::json::controller_of(job).is_some_and(|owner| str_at(owner, "uid") == uid(&cron))
    });
    jobs.sort_by_key(|job| str_at(job, "metadata.creationTimestamp").to_owned());
    clean(cluster, &cron, &jobs).await?;
    let mut status = cron["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    let mut active: Vec<Value> = jobs.iter().filter(|job| !has_ended(job)).cloned().collect();
    let again = match plan(cluster, &cron).await {
        Some(plan) if at(&cron, "spec.suspend") != true => {
            if let Some(due) = plan.due {
                start(cluster, &cron, due, &mut active, &mut status).await?;
            }
            pods::seconds(plan.next.map(|next| Timestamp::now().duration_until(next).as_secs() + 1))
        }
        _ => None,
    };
    let references: Vec<Value> = active.iter().map(reference).collect();
    status["active"] = json!(references);
    let succeeded = jobs.iter().filter(|job| condition(job, "Complete")["status"] == "True");
    let last = succeeded.map(|job| str_at(job, "status.completionTime").to_owned()).max();
    if let Some(last) = last {
        status["lastSuccessfulTime"] = json!(last);
    }
    if references.is_empty()
        && let Value::Object(map) = &mut status
    {
        map.remove("active");
    }
    cluster.replace_status(CRON_JOB, &cron, status).await?;
    Ok(again)
}

/// The run that is due now, if any, and the next one.
struct Plan {
    due: Option<Timestamp>,
    next: Option<Timestamp>,
}

/// More missed runs than this are not made up for one by one; that is said.
const MANY: usize = 100;

async fn plan(cluster: &Cluster, cron: &Value) -> Option<Plan> {
    let schedule = match Schedule::parse(str_at(cron, "spec.schedule")) {
        Ok(schedule) => schedule,
        Err(why) => {
            let message = format!("unparseable schedule: {why}");
            warn(cluster, cron, "UnparseableSchedule", &message).await;
            return None;
        }
    };
    let zone = match str_at(cron, "spec.timeZone") {
        "" => TimeZone::UTC,
        zone => match TimeZone::get(zone) {
            Ok(zone) => zone,
            Err(error) => {
                let message = format!("unknown time zone: {error}");
                warn(cluster, cron, "UnknownTimeZone", &message).await;
                return None;
            }
        },
    };
    let now = Timestamp::now();
    let since =
        [str_at(cron, "status.lastScheduleTime"), str_at(cron, "metadata.creationTimestamp")]
            .into_iter()
            .find_map(|time| time.parse::<Timestamp>().ok())
            .unwrap_or(now);
    let deadline = at(cron, "spec.startingDeadlineSeconds").as_i64();
    let earliest = deadline.map(|seconds| now - SignedDuration::from_secs(seconds));
    let since = earliest.map_or(since, |earliest| since.max(earliest));
    let (due, missed) = latest(&schedule, &zone, since, now);
    if missed > MANY {
        let message = format!(
            "too many missed start times (> {MANY}): set or decrease .spec.startingDeadlineSeconds \
             or check clock skew"
        );
        warn(cluster, cron, "TooManyMissedTimes", &message).await;
    }
    Some(Plan { due, next: schedule.after(&zone, now) })
}

/// The last run between two times, and how many there were (no more than matter are counted).
fn latest(
    schedule: &Schedule,
    zone: &TimeZone,
    since: Timestamp,
    now: Timestamp,
) -> (Option<Timestamp>, usize) {
    let (mut from, mut due, mut missed) = (since, None, 0);
    while let Some(next) = schedule.after(zone, from).filter(|next| *next <= now) {
        missed += 1;
        due = Some(next);
        from = next;
        if missed > MANY {
            // Near the end again: only the last run is made up for.
            let minute = SignedDuration::from_mins(1);
            let close = now - SignedDuration::from_hours(24 * 366 * 5);
            let mut back = now;
            while back > close.max(from) {
                let earlier = back - minute * 60;
                if let Some(found) = schedule.after(zone, earlier).filter(|found| *found <= now) {
                    from = found;
                    due = Some(found);
                    break;
                }
                back = earlier;
            }
            while let Some(next) = schedule.after(zone, from).filter(|next| *next <= now) {
                (due, from) = (Some(next), next);
            }
            break;
        }
    }
    (due, missed)
}

/// Makes the job of a run, unless one is running that it must wait for.
async fn start(
    cluster: &Cluster,
    cron: &Value,
    due: Timestamp,
    active: &mut Vec<Value>,
    status: &mut Value,
) -> Result<()> {
    match str_at(cron, "spec.concurrencyPolicy") {
        "Forbid" if !active.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency \
                           policy is Forbid";
            let what = Happened { from: NAME, normal: true, reason: "JobAlreadyActive", message };
            cluster.event(cron, &what).await;
            return Ok(());
        }
        "Replace" => {
            for job in active.drain(..) {
                cluster.delete(JOB, &job).await?;
            }
        }
        _ => {}
    }
    let job = job(cron, due);
    match cluster.create(JOB, &job).await {
        Ok(made) => {
            let message = format!("Created job {}", name(&made));
            let what = Happened {
                from: NAME,
                normal: true,
                reason: "SuccessfulCreate",
                message: &message,
            };
            cluster.event(cron, &what).await;
            active.push(made);
        }
        // Made already, before this controller last ended.
        Err(error) if error.code() == 409 => {}
        Err(error) => return Err(error),
    }
    status["lastScheduleTime"] = json!(format_time(due));
    Ok(())
}

/// The job of one run; its name says which, so that it is made once.
fn job(cron: &Value, due: Timestamp) -> Value {
    let template = at(cron, "spec.jobTemplate");
    let mut annotations = at(template, "metadata.annotations").clone();
    if !annotations.is_object() {
        annotations = json!({});
    }
    annotations["batch.kubernetes.io/cronjob-scheduled-timestamp"] = json!(format_time(due));
    json!({
        "metadata": {
            "name": format!("{}-{}", name(cron), due.as_second() / 60),
            "namespace": namespace(cron),
            "labels": at(template, "metadata.labels"),
            "annotations": annotations,
            "ownerReferences": [owner_reference(cron)],
        },
        "spec": at(template, "spec"),
    })
}

fn has_ended(job: &Value) -> bool {
    ["Complete", "Failed"].into_iter().any(|form| condition(job, form)["status"] == "True")
}

fn reference(job: &Value) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "name": name(job), "namespace": namespace(job),
        "uid": uid(job), "resourceVersion": job["metadata"]["resourceVersion"],
    })
}

/// Ended jobs are kept, so many of each end, the newest.
async fn clean(cluster: &Cluster, cron: &Value, jobs: &[Value]) -> Result<()> {
    for (form, limit) in
        [("Complete", "spec.successfulJobsHistoryLimit"), ("Failed", "spec.failedJobsHistoryLimit")]
    {
        let ended: Vec<&Value> =
            jobs.iter().filter(|job| condition(job, form)["status"] == "True").collect();
        let limit = usize::try_from(int_at(cron, limit)).unwrap_or(0);
        for job in ended.iter().take(ended.len().saturating_sub(limit)) {
            cluster.delete(JOB, job).await?;
        }
    }
    Ok(())
}

async fn warn(cluster: &Cluster, cron: &Value, reason: &str, message: &str) {
    cluster.event(cron, &Happened { from: NAME, normal: false, reason, message }).await;
}
