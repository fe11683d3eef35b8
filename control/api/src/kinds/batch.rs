//! Jobs and the schedules that make them.

use k8s_openapi::api::batch::v1 as batch;
use serde_json::{Value, json};

use super::columns::{
    AGE, Cell, NAME, container_images, container_names, integer, selector, text, wide,
};
use super::fields::Check::{Immutable, NotNegative, OneOf, Required};
use super::fields::Literal::{Bool, Number, Text};
use super::{Kind, Subresource, decode, pod, row};
use crate::object::{at, is_zero, list_at, object, set, str_at};
use crate::selector::LabelSelector;
use crate::status::FieldError;

const GROUP: &str = "batch";

pub(super) const JOB: Kind = Kind {
    categories: &["all"],
    subresources: &[Subresource::Status],
    selectable: &["status.successful"],
    defaults: &[
        ("spec.backoffLimit", Number(6)),
        ("spec.completionMode", Text("NonIndexed")),
        ("spec.suspend", Bool(false)),
        ("spec.podReplacementPolicy", Text("TerminatingOrFailed")),
    ],
    prepare: |job, old| {
        pod::default_template(job, "spec.template");
        if !job["spec"].is_object() {
            return;
        }
        if is_zero(&job["spec"]["completions"]) && is_zero(&job["spec"]["parallelism"]) {
            job["spec"]["completions"] = json!(1);
        }
        if job["spec"]["parallelism"].is_null() {
            job["spec"]["parallelism"] = json!(1);
        }
        if old.is_none() && job["spec"]["manualSelector"] != true {
            select_own_pods(job);
        }
    },
    rules: &[
        ("spec.parallelism", NotNegative),
        ("spec.completions", NotNegative),
        ("spec.backoffLimit", NotNegative),
        ("spec.activeDeadlineSeconds", NotNegative),
        ("spec.ttlSecondsAfterFinished", NotNegative),
        ("spec.completionMode", OneOf(&["Indexed", "NonIndexed"])),
        ("spec.completionMode", Immutable),
        ("spec.selector", Required),
        ("spec.selector", Immutable),
        ("spec.template", Immutable),
    ],
    validate: |job, old, errors| {
        pod::check_template(job, "spec.template", errors);
        check_restart_policy(job, "spec.template", errors);
        let chosen = LabelSelector::from_value(at(job, "spec.selector"));
        let labels = at(job, "spec.template.metadata.labels");
        if !chosen.matches_value(labels) {
            let why = "`selector` does not match template `labels`";
            errors.push(FieldError::invalid("spec.template.metadata.labels", labels, why));
        }
        let completions = |job: &Value| at(job, "spec.completions").clone();
        let indexed = str_at(job, "spec.completionMode") == "Indexed";
        if let Some(old) = old
            && !indexed
            && completions(old) != completions(job)
        {
            let value = completions(job);
            errors.push(FieldError::invalid("spec.completions", &value, "field is immutable"));
        }
    },
    columns: &[
        NAME,
        text("Status", Cell::Of(status)),
        text(
            "Completions",
            Cell::Of(|job| {
                let done = at(job, "status.succeeded").as_i64().unwrap_or(0);
                match at(job, "spec.completions").as_i64() {
                    Some(wanted) => json!(format!("{done}/{wanted}")),
                    None => json!(format!("{done}/1 of {}", at(job, "spec.parallelism"))),
                }
            }),
        ),
        text("Duration", Cell::Of(duration)),
        AGE,
        wide(text("Containers", Cell::Of(|job| container_names(job, "spec.template.spec")))),
        wide(text("Images", Cell::Of(|job| container_images(job, "spec.template.spec")))),
        wide(text("Selector", Cell::Of(|job| selector(at(job, "spec.selector"))))),
    ],
    generation: true,
    ..row(GROUP, "Job", "jobs", decode::<batch::Job>)
};

pub(super) const CRON_JOB: Kind = Kind {
    short_names: &["cj"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    defaults: &[
        ("spec.concurrencyPolicy", Text("Allow")),
        ("spec.suspend", Bool(false)),
        ("spec.successfulJobsHistoryLimit", Number(3)),
        ("spec.failedJobsHistoryLimit", Number(1)),
    ],
    prepare: |cron_job, _| pod::default_template(cron_job, "spec.jobTemplate.spec.template"),
    rules: &[
        ("spec.schedule", Required),
        ("spec.concurrencyPolicy", OneOf(&["Allow", "Forbid", "Replace"])),
        ("spec.startingDeadlineSeconds", NotNegative),
        ("spec.successfulJobsHistoryLimit", NotNegative),
        ("spec.failedJobsHistoryLimit", NotNegative),
    ],
    validate: |cron_job, _, errors| {
        pod::check_template(cron_job, "spec.jobTemplate.spec.template", errors);
        check_restart_policy(cron_job, "spec.jobTemplate.spec.template", errors);
        let schedule = at(cron_job, "spec.schedule");
        let five = schedule
            .as_str()
            .is_some_and(|text| text.starts_with('@') || text.split_whitespace().count() == 5);
        if !five && !is_zero(schedule) {
            let why = "expected exactly 5 fields, or a descriptor such as @hourly";
            errors.push(FieldError::invalid("spec.schedule", schedule, why));
        }
    },
    columns: &[
        NAME,
        text("Schedule", Cell::Path("spec.schedule")),
        text("Timezone", Cell::Path("spec.timeZone")),
        text("Suspend", Cell::Of(|one| json!(at(one, "spec.suspend") == true).to_string().into())),
        integer("Active", Cell::Of(|one| json!(list_at(one, "status.active").len()))),
        text(
            "Last Schedule",
            Cell::Of(|one| match str_at(one, "status.lastScheduleTime") {
                "" => json!("<none>"),
                time => json!(super::columns::since(time, jiff::Timestamp::now())),
            }),
        ),
        AGE,
    ],
    generation: true,
    ..row(GROUP, "CronJob", "cronjobs", decode::<batch::CronJob>)
};

/// A job finds its pods by its own uid.
fn select_own_pods(job: &mut Value) {
    let uid = at(job, "metadata.uid").clone();
    let name = at(job, "metadata.name").clone();
    job["spec"]["selector"] =
        json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid.clone()}});
    if !at(job, "spec.template.metadata.labels").is_object() {
        set(job, "spec.template.metadata.labels", json!({}));
    }
    let labels = object(&mut job["spec"]["template"]["metadata"]["labels"]);
    for (label, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("job-name", &name),
    ] {
        labels.insert(label.into(), value.clone());
    }
}

fn check_restart_policy(value: &Value, template: &str, errors: &mut Vec<FieldError>) {
    let policy = at(at(value, template), "spec.restartPolicy");
    if !matches!(policy.as_str(), Some("OnFailure" | "Never")) {
        let field = format!("{template}.spec.restartPolicy");
        errors.push(FieldError::not_supported(field, policy, &["OnFailure", "Never"]));
    }
}

fn status(job: &Value) -> Value {
    let holds = |form: &str| {
        let conditions = list_at(job, "status.conditions").iter();
        conditions.clone().any(|one| one["type"] == form && one["status"] == "True")
    };
    json!(
        ["Complete", "Failed", "Suspended", "FailureTarget"]
            .into_iter()
            .find(|form| holds(form))
            .unwrap_or("Running")
    )
}

fn duration(job: &Value) -> Value {
    let start = str_at(job, "status.startTime");
    let end =
        str_at(job, "status.completionTime").parse().unwrap_or_else(|_| jiff::Timestamp::now());
    if start.is_empty() { json!("") } else { json!(super::columns::since(start, end)) }
}
