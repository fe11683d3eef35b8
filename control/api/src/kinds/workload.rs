//! The kinds that keep pods running: controllers' desired states and their histories.

use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use super::columns::{
    AGE, Cell, Column, NAME, container_images, container_names, integer, labels, ratio, selector,
    text, wide,
};
use super::fields::Check::{Immutable, NotNegative, OneOf, Required};
use super::fields::Default;
use super::fields::Literal::{Number, Object, Text};
use super::fields::Rule;
use super::{Kind, Subresource, decode, fields, pod, row};
use crate::names;
use crate::object::{at, is_zero, str_at};
use crate::selector::LabelSelector;
use crate::status::FieldError;

const GROUP: &str = "apps";
const TEMPLATE: &str = "spec.template";
const SCALED: &[Subresource] = &[Subresource::Status, Subresource::Scale];

pub(super) const REPLICATION_CONTROLLER: Kind = Kind {
    short_names: &["rc"],
    categories: &["all"],
    subresources: SCALED,
    selectable: &["status.replicas"],
    defaults: &[("spec.replicas", Number(1)), ("spec.template", Object)],
    prepare: |rc, _| {
        pod::default_template(rc, TEMPLATE);
        let template_labels = at(rc, "spec.template.metadata.labels").clone();
        if rc["spec"].is_object() && is_zero(&rc["spec"]["selector"]) {
            rc["spec"]["selector"] = template_labels;
        }
    },
    rules: &[("spec.selector", Required), ("spec.replicas", NotNegative), MIN_READY],
    validate: |rc, _, errors| {
        check_template(
            rc,
            LabelSelector::from_value(&json!({"matchLabels": rc["spec"]["selector"]})),
            errors,
        );
    },
    columns: &[
        NAME,
        integer("Desired", Cell::Path("spec.replicas")),
        integer("Current", Cell::Path("status.replicas")),
        integer("Ready", Cell::Path("status.readyReplicas")),
        AGE,
        CONTAINERS,
        IMAGES,
        wide(text("Selector", Cell::Of(|rc| json!(labels(&rc["spec"]["selector"]))))),
    ],
    generation: true,
    ..row(
        "",
        "ReplicationController",
        "replicationcontrollers",
        decode::<core::ReplicationController>,
    )
};

pub(super) const REPLICA_SET: Kind = Kind {
    short_names: &["rs"],
    categories: &["all"],
    subresources: SCALED,
    selectable: &["status.replicas"],
    defaults: &[("spec.replicas", Number(1))],
    prepare: |set, old| prepare(set, old),
    rules: WORKLOAD_RULES,
    validate: check_workload,
    columns: &[
        NAME,
        integer("Desired", Cell::Path("spec.replicas")),
        integer("Current", Cell::Path("status.replicas")),
        integer("Ready", Cell::Path("status.readyReplicas")),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    generation: true,
    ..row(GROUP, "ReplicaSet", "replicasets", decode::<apps::ReplicaSet>)
};

pub(super) const DEPLOYMENT: Kind = Kind {
    short_names: &["deploy"],
    categories: &["all"],
    subresources: SCALED,
    defaults: &[
        ("spec.replicas", Number(1)),
        ("spec.strategy", Object),
        ("spec.strategy.type", Text("RollingUpdate")),
        ("spec.revisionHistoryLimit", Number(10)),
        ("spec.progressDeadlineSeconds", Number(600)),
    ],
    prepare: |deployment, old| {
        prepare(deployment, old);
        if str_at(deployment, "spec.strategy.type") == "RollingUpdate" {
            fields::apply(ROLLING, "spec.strategy", deployment);
        }
    },
    rules: WORKLOAD_RULES,
    validate: |deployment, old, errors| {
        check_workload(deployment, old, errors);
        check_strategy(deployment, errors);
    },
    columns: &[
        NAME,
        text(
            "Ready",
            Cell::Of(|one| ratio(at(one, "status.readyReplicas"), at(one, "spec.replicas"))),
        ),
        integer("Up-to-date", Cell::Path("status.updatedReplicas")),
        integer("Available", Cell::Path("status.availableReplicas")),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    generation: true,
    ..row(GROUP, "Deployment", "deployments", decode::<apps::Deployment>)
};

pub(super) const STATEFUL_SET: Kind = Kind {
    short_names: &["sts"],
    categories: &["all"],
    subresources: SCALED,
    defaults: &[
        ("spec.replicas", Number(1)),
        ("spec.podManagementPolicy", Text("OrderedReady")),
        ("spec.updateStrategy", Object),
        ("spec.updateStrategy.type", Text("RollingUpdate")),
        ("spec.revisionHistoryLimit", Number(10)),
    ],
    prepare: |set, old| {
        prepare(set, old);
        if str_at(set, "spec.updateStrategy.type") == "RollingUpdate" {
            let partition: &[Default] =
                &[("rollingUpdate", Object), ("rollingUpdate.partition", Number(0))];
            fields::apply(partition, "spec.updateStrategy", set);
        }
    },
    rules: &[
        ("spec.selector", Required),
        ("spec.selector", Immutable),
        ("spec.replicas", NotNegative),
        ("spec.serviceName", Immutable),
        ("spec.podManagementPolicy", OneOf(&["OrderedReady", "Parallel"])),
        ("spec.updateStrategy.type", OneOf(&["OnDelete", "RollingUpdate"])),
        ("spec.updateStrategy.rollingUpdate.partition", NotNegative),
        ("spec.volumeClaimTemplates", Immutable),
        ("spec.podManagementPolicy", Immutable),
        MIN_READY,
    ],
    validate: check_workload,
    columns: &[
        NAME,
        text(
            "Ready",
            Cell::Of(|one| ratio(at(one, "status.readyReplicas"), at(one, "spec.replicas"))),
        ),
        AGE,
        CONTAINERS,
        IMAGES,
    ],
    generation: true,
    ..row(GROUP, "StatefulSet", "statefulsets", decode::<apps::StatefulSet>)
};

pub(super) const DAEMON_SET: Kind = Kind {
    short_names: &["ds"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    defaults: &[
        ("spec.updateStrategy", Object),
        ("spec.updateStrategy.type", Text("RollingUpdate")),
        ("spec.revisionHistoryLimit", Number(10)),
    ],
    prepare: |set, old| {
        prepare(set, old);
        if str_at(set, "spec.updateStrategy.type") == "RollingUpdate" {
            let steps: &[Default] = &[
                ("rollingUpdate", Object),
                ("rollingUpdate.maxUnavailable", Number(1)),
                ("rollingUpdate.maxSurge", Number(0)),
            ];
            fields::apply(steps, "spec.updateStrategy", set);
        }
    },
    rules: &[
        ("spec.selector", Required),
        ("spec.selector", Immutable),
        ("spec.updateStrategy.type", OneOf(&["OnDelete", "RollingUpdate"])),
        MIN_READY,
    ],
    validate: check_workload,
    columns: &[
        NAME,
        integer("Desired", Cell::Path("status.desiredNumberScheduled")),
        integer("Current", Cell::Path("status.currentNumberScheduled")),
        integer("Ready", Cell::Path("status.numberReady")),
        integer("Up-to-date", Cell::Path("status.updatedNumberScheduled")),
        integer("Available", Cell::Path("status.numberAvailable")),
        text(
            "Node Selector",
            Cell::Of(|set| json!(labels(at(set, "spec.template.spec.nodeSelector")))),
        ),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    generation: true,
    ..row(GROUP, "DaemonSet", "daemonsets", decode::<apps::DaemonSet>)
};

pub(super) const CONTROLLER_REVISION: Kind = Kind {
    name_rule: names::dns_subdomain,
    rules: &[("data", Immutable), ("revision", NotNegative)],
    columns: &[
        NAME,
        text("Controller", Cell::Of(controller)),
        integer("Revision", Cell::Path("revision")),
        AGE,
    ],
    ..row(GROUP, "ControllerRevision", "controllerrevisions", decode::<apps::ControllerRevision>)
};

const ROLLING: &[Default] = &[
    ("rollingUpdate", Object),
    ("rollingUpdate.maxSurge", Text("25%")),
    ("rollingUpdate.maxUnavailable", Text("25%")),
];

const MIN_READY: Rule = ("spec.minReadySeconds", NotNegative);

const WORKLOAD_RULES: &[Rule] = &[
    ("spec.selector", Required),
    ("spec.selector", Immutable),
    ("spec.replicas", NotNegative),
    ("spec.strategy.type", OneOf(&["Recreate", "RollingUpdate"])),
    ("spec.revisionHistoryLimit", NotNegative),
    MIN_READY,
];

const CONTAINERS: Column =
    wide(text("Containers", Cell::Of(|one| container_names(one, "spec.template.spec"))));
const IMAGES: Column =
    wide(text("Images", Cell::Of(|one| container_images(one, "spec.template.spec"))));
const SELECTOR: Column = wide(text("Selector", Cell::Of(|one| selector(at(one, "spec.selector")))));

fn prepare(workload: &mut Value, _old: Option<&Value>) {
    pod::default_template(workload, TEMPLATE);
}

fn check_workload(workload: &Value, _old: Option<&Value>, errors: &mut Vec<FieldError>) {
    check_template(workload, LabelSelector::from_value(at(workload, "spec.selector")), errors);
}

/// The template makes pods that the selector finds, and that never come to an end.
#[expect(clippy::needless_pass_by_value, reason = "made for this call")]
fn check_template(workload: &Value, selector: LabelSelector, errors: &mut Vec<FieldError>) {
    pod::check_template(workload, TEMPLATE, errors);
    let labels = at(workload, "spec.template.metadata.labels");
    if !selector.is_empty() && !selector.matches_value(labels) {
        let why = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid("spec.template.metadata.labels", labels, why));
    }
    let policy = at(workload, "spec.template.spec.restartPolicy");
    if !matches!(policy.as_str(), None | Some("Always")) {
        let field = "spec.template.spec.restartPolicy";
        errors.push(FieldError::not_supported(field, policy, &["Always"]));
    }
}

fn check_strategy(deployment: &Value, errors: &mut Vec<FieldError>) {
    let strategy = at(deployment, "spec.strategy");
    let rolling = &strategy["rollingUpdate"];
    if str_at(strategy, "type") == "Recreate" && !rolling.is_null() {
        let why = "may not be specified when strategy `type` is 'Recreate'";
        errors.push(FieldError::forbidden("spec.strategy.rollingUpdate", why));
    }
    for field in ["maxSurge", "maxUnavailable"] {
        let value = &rolling[field];
        let percent = value.as_str().is_some_and(|text| {
            text.strip_suffix('%').is_some_and(|number| number.parse::<u32>().is_ok())
        });
        if !(value.is_null() || percent || value.as_i64().is_some_and(|n| n >= 0)) {
            let field = format!("spec.strategy.rollingUpdate.{field}");
            let why = "must be an integer or percentage (e.g '5%')";
            errors.push(FieldError::invalid(field, value, why));
        }
    }
    let zero = |value: &Value| value.as_i64() == Some(0) || value.as_str() == Some("0%");
    if zero(&rolling["maxSurge"]) && zero(&rolling["maxUnavailable"]) {
        let field = "spec.strategy.rollingUpdate.maxUnavailable";
        let why = "may not be 0 when `maxSurge` is 0";
        errors.push(FieldError::invalid(field, &rolling["maxUnavailable"], why));
    }
}

fn controller(revision: &Value) -> Value {
    let owners = crate::object::list_at(revision, "metadata.ownerReferences");
    let owner = owners.iter().find(|owner| owner["controller"] == true);
    json!(owner.map_or_else(
        || "<none>".into(),
        |owner| format!("{}/{}", str_at(owner, "kind").to_lowercase(), str_at(owner, "name"))
    ))
}
