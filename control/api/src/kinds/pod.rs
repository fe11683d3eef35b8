//! Pods, the templates they come from, and priority classes.

pub(crate) mod ephemeral;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde_json::{Value, json};

use super::columns::{AGE, Cell, NAME, integer, text, wide};
use super::fields::Check::{
    Immutable, Ip, Labels, Name, NotNegative, OneOf, Port, Quantity, Range, Required, Unique,
};
use super::fields::Literal::{Bool, Number, Object, Text};
use super::fields::{Default, Rule};
use super::life::Life;
use super::{Kind, Subresource, decode, fields, row};
use crate::admission;
use crate::names;
use crate::object::{at, is_zero, list_at, object, str_at};
use crate::status::FieldError;

pub(super) const POD: Kind = Kind {
    short_names: &["po"],
    categories: &["all"],
    subresources: &[
        Subresource::Status,
        Subresource::Binding,
        Subresource::Eviction,
        Subresource::EphemeralContainers,
    ],
    selectable: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ],
    prepare: |pod, old| {
        default_template(pod, "");
        if old.is_none() {
            pod["status"] = json!({"phase": "Pending", "qosClass": qos_class(pod)});
            tolerate_lost_nodes(pod);
        }
    },
    validate: |pod, old, errors| {
        check_template(pod, "", errors);
        if let Some(old) = old {
            check_update(pod, old, errors);
        } else if !is_zero(at(pod, "spec.ephemeralContainers")) {
            errors
                .push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
        }
    },
    columns: &[
        NAME,
        text("Ready", Cell::Of(ready)),
        text("Status", Cell::Of(status)),
        text("Restarts", Cell::Of(restarts)),
        AGE,
        wide(text("IP", Cell::Path("status.podIP"))),
        wide(text("Node", Cell::Path("spec.nodeName"))),
        wide(text("Nominated Node", Cell::Path("status.nominatedNodeName"))),
        wide(text("Readiness Gates", Cell::Of(|_| json!("<none>")))),
    ],
    generation: true,
    life: Life { admit: admission::admit_pod, grace, ..Life::PLAIN },
    ..row("", "Pod", "pods", decode::<core::Pod>)
};

/// Only a pod that runs on a node is given time to end.
fn grace(pod: &Value, asked: Option<i64>) -> i64 {
    let ended = matches!(str_at(pod, "status.phase"), "Succeeded" | "Failed");
    if ended || str_at(pod, "spec.nodeName").is_empty() {
        return 0;
    }
    let own = at(pod, "spec.terminationGracePeriodSeconds").as_i64();
    asked.or(own).unwrap_or(30).max(0)
}

pub(super) const PRIORITY_CLASS: Kind = Kind {
    short_names: &["pc"],
    namespaced: false,
    defaults: &[("preemptionPolicy", Text("PreemptLowerPriority"))],
    rules: &[
        ("value", Immutable),
        ("preemptionPolicy", Immutable),
        ("preemptionPolicy", OneOf(&["Never", "PreemptLowerPriority"])),
    ],
    validate: |class, _, errors| {
        let system = str_at(class, "metadata.name").starts_with("system-");
        if !system && class["value"].as_i64().is_some_and(|value| value > 1_000_000_000) {
            let why = "maximum allowed value of a user defined priority is 1000000000";
            errors.push(FieldError::forbidden("value", why));
        }
    },
    columns: &[
        NAME,
        integer("Value", Cell::Path("value")),
        text("Global-Default", Cell::Of(|class| json!(class["globalDefault"] == true))),
        AGE,
        text("PreemptionPolicy", Cell::Path("preemptionPolicy")),
    ],
    ..row("scheduling.k8s.io", "PriorityClass", "priorityclasses", decode::<PriorityClass>)
};

const SPEC_DEFAULTS: &[Default] = &[
    ("restartPolicy", Text("Always")),
    ("dnsPolicy", Text("ClusterFirst")),
    ("terminationGracePeriodSeconds", Number(30)),
    ("schedulerName", Text("default-scheduler")),
    ("securityContext", Object),
    ("enableServiceLinks", Bool(true)),
    ("volumes[].configMap.defaultMode", Number(420)),
    ("volumes[].secret.defaultMode", Number(420)),
    ("volumes[].projected.defaultMode", Number(420)),
    ("volumes[].downwardAPI.defaultMode", Number(420)),
    ("topologySpreadConstraints[].whenUnsatisfiable", Text("DoNotSchedule")),
];

const CONTAINER_DEFAULTS: &[Default] = &[
    ("terminationMessagePath", Text("/dev/termination-log")),
    ("terminationMessagePolicy", Text("File")),
    ("resources", Object),
    ("ports[].protocol", Text("TCP")),
    ("env[].valueFrom.fieldRef.apiVersion", Text("v1")),
];

const PROBE_DEFAULTS: &[Default] = &[
    ("timeoutSeconds", Number(1)),
    ("periodSeconds", Number(10)),
    ("successThreshold", Number(1)),
    ("failureThreshold", Number(3)),
    ("httpGet.path", Text("/")),
    ("httpGet.scheme", Text("HTTP")),
    ("grpc.service", Text("")),
];

const SPEC_RULES: &[Rule] = &[
    ("containers", Required),
    ("containers", Unique("name")),
    ("restartPolicy", OneOf(&["Always", "OnFailure", "Never"])),
    ("dnsPolicy", OneOf(&["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"])),
    ("terminationGracePeriodSeconds", NotNegative),
    ("nodeSelector", Labels),
    ("hostname", Name(names::dns_label)),
    ("subdomain", Name(names::dns_label)),
    ("serviceAccountName", Name(names::dns_subdomain)),
    ("volumes", Unique("name")),
    ("volumes[].name", Required),
    ("volumes[].name", Name(names::dns_label)),
    ("hostAliases[].ip", Ip),
    ("tolerations[].operator", OneOf(&["Equal", "Exists", "Lt", "Gt"])),
    ("tolerations[].effect", OneOf(&["NoSchedule", "PreferNoSchedule", "NoExecute"])),
    ("topologySpreadConstraints[].topologyKey", Required),
    ("topologySpreadConstraints[].whenUnsatisfiable", OneOf(&["DoNotSchedule", "ScheduleAnyway"])),
];

const CONTAINER_RULES: &[Rule] = &[
    ("name", Required),
    ("name", Name(names::dns_label)),
    ("image", Required),
    ("imagePullPolicy", OneOf(&["Always", "IfNotPresent", "Never"])),
    ("ports[].containerPort", Required),
    ("ports[].containerPort", Port),
    ("ports[].hostPort", Range(0, 65_535)),
    ("ports[].name", Name(names::port_name)),
    ("ports[].protocol", OneOf(&["SCTP", "TCP", "UDP"])),
    ("env[].name", Required),
    ("volumeMounts[].name", Required),
    ("volumeMounts[].mountPath", Required),
    ("resources.requests{}", Quantity),
    ("resources.limits{}", Quantity),
];

/// Fills in a pod, or the pod template below `prefix`.
pub(super) fn default_template(value: &mut Value, prefix: &str) {
    let Some(template) = below(value, prefix) else { return };
    let Some(spec) = template.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    fields::apply(SPEC_DEFAULTS, "", spec);
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            default_container(container);
        }
    }
    if spec["initContainers"].is_null() {
        object(spec).remove("initContainers");
    }
    let account = str_at(spec, "serviceAccountName").to_owned();
    if !account.is_empty() {
        spec["serviceAccount"] = json!(account);
    } else if !is_zero(&spec["serviceAccount"]) {
        spec["serviceAccountName"] = spec["serviceAccount"].clone();
    }
    if spec["serviceAccount"].is_null() {
        object(spec).remove("serviceAccount");
    }
}

fn below<'a>(value: &'a mut Value, prefix: &str) -> Option<&'a mut Value> {
    prefix.split('.').filter(|part| !part.is_empty()).try_fold(value, |v, part| v.get_mut(part))
}

fn default_container(container: &mut Value) {
    fields::apply(CONTAINER_DEFAULTS, "", container);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        fields::apply(PROBE_DEFAULTS, probe, container);
    }
    if is_zero(&container["imagePullPolicy"]) {
        let image = str_at(container, "image");
        let name = image.rsplit('/').next().unwrap_or_default();
        let latest =
            !name.contains('@') && name.split_once(':').is_none_or(|(_, tag)| tag == "latest");
        container["imagePullPolicy"] = json!(if latest { "Always" } else { "IfNotPresent" });
    }
    let Some(limits) = at(container, "resources.limits").as_object().cloned() else { return };
    let requests = object(&mut container["resources"]).entry("requests").or_insert(json!({}));
    for (resource, limit) in limits {
        object(requests).entry(resource).or_insert(limit);
    }
}

/// Upstream's admission adds these: a pod leaves a lost node after five minutes.
fn tolerate_lost_nodes(pod: &mut Value) {
    if !pod["spec"].is_object() {
        return;
    }
    let tolerations = object(&mut pod["spec"]).entry("tolerations").or_insert(json!([]));
    let Some(list) = tolerations.as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = list.iter().any(|one| {
            matches!(str_at(one, "key"), "" | "node.kubernetes.io/") || str_at(one, "key") == key
        });
        if !tolerated {
            list.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300,
            }));
        }
    }
}

fn qos_class(pod: &Value) -> &'static str {
    let containers = list_at(pod, "spec.containers");
    let none = |container: &Value| {
        is_zero(at(container, "resources.requests")) && is_zero(at(container, "resources.limits"))
    };
    let full = |container: &Value| {
        ["cpu", "memory"].into_iter().all(|resource| {
            let limit = at(container, "resources.limits").get(resource);
            limit.is_some() && limit == at(container, "resources.requests").get(resource)
        })
    };
    if containers.iter().all(none) {
        "BestEffort"
    } else if containers.iter().all(full) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// Checks a pod, or the pod template below `prefix`.
pub(super) fn check_template(value: &Value, prefix: &str, errors: &mut Vec<FieldError>) {
    let path = if prefix.is_empty() { "spec".to_owned() } else { format!("{prefix}.spec") };
    fields::check(SPEC_RULES, &path, value, None, errors);
    if !prefix.is_empty() {
        fields::check(&[("metadata.labels", Labels)], prefix, value, None, errors);
    }
    for list in ["containers", "initContainers"] {
        for (i, container) in list_at(at(value, &path), list).iter().enumerate() {
            let mut found = Vec::new();
            fields::check(CONTAINER_RULES, "", container, None, &mut found);
            check_mounts(container, at(value, &path), &mut found);
            errors.extend(found.into_iter().map(|error| FieldError {
                field: format!("{path}.{list}[{i}].{}", error.field),
                ..error
            }));
        }
    }
}

fn check_mounts(container: &Value, spec: &Value, errors: &mut Vec<FieldError>) {
    for (i, mount) in list_at(container, "volumeMounts").iter().enumerate() {
        let known = list_at(spec, "volumes").iter().any(|volume| volume["name"] == mount["name"]);
        if !known && !is_zero(&mount["name"]) {
            let message = format!("Not found: {}", mount["name"]);
            let field = format!("volumeMounts[{i}].name");
            errors.push(FieldError { reason: "FieldValueNotFound", field, message });
        }
    }
}

/// Of a pod's spec only images, the deadline, the grace period and added tolerations may change.
fn check_update(pod: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let mut masked = pod["spec"].clone();
    let old_spec = &old["spec"];
    for list in ["containers", "initContainers"] {
        let olds = list_at(old_spec, list);
        for (i, container) in masked[list].as_array_mut().into_iter().flatten().enumerate() {
            if let Some(old) = olds.get(i) {
                container["image"] = old["image"].clone();
            }
        }
        if masked[list].is_null() {
            object(&mut masked).remove(list);
        }
    }
    let kept = list_at(old_spec, "tolerations");
    if kept.iter().all(|toleration| list_at(&pod["spec"], "tolerations").contains(toleration)) {
        restore(&mut masked, old_spec, "tolerations");
    }
    for field in ["activeDeadlineSeconds", "terminationGracePeriodSeconds"] {
        restore(&mut masked, old_spec, field);
    }
    if masked != *old_spec {
        let why = "pod updates may not change fields other than \
            `spec.containers[*].image`,`spec.initContainers[*].image`,\
            `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
            tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
            previously negative)";
        errors.push(FieldError::forbidden("spec", why));
    }
}

fn restore(masked: &mut Value, old: &Value, field: &str) {
    match old.get(field) {
        Some(value) => masked[field] = value.clone(),
        None => {
            object(masked).remove(field);
        }
    }
}

fn ready(pod: &Value) -> Value {
    let all = || statuses(pod, "containerStatuses").chain(sidecars(pod));
    let ready = all().filter(|one| one["ready"] == true).count();
    let specs = list_at(pod, "spec.initContainers").iter().filter(|one| is_sidecar(one));
    json!(format!("{ready}/{}", list_at(pod, "spec.containers").len() + specs.count()))
}

fn statuses<'a>(pod: &'a Value, list: &str) -> std::slice::Iter<'a, Value> {
    list_at(&pod["status"], list).iter()
}

/// An init container that goes on running beside the others (KEP-753).
fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

/// The statuses of a pod's sidecars.
fn sidecars(pod: &Value) -> impl Iterator<Item = &Value> {
    let specs = list_at(pod, "spec.initContainers");
    let named = |name: &Value| specs.iter().find(|one| one["name"] == *name);
    statuses(pod, "initContainerStatuses")
        .filter(move |one| named(&one["name"]).is_some_and(is_sidecar))
}

/// As upstream's printer has it: what containers wait for or ended with says more than the phase.
fn status(pod: &Value) -> Value {
    let phase = str_at(pod, "status.phase");
    let is_going = !str_at(pod, "metadata.deletionTimestamp").is_empty();
    if is_going && !matches!(phase, "Succeeded" | "Failed") {
        return json!("Terminating");
    }
    let init = init_status(pod);
    let is_initialized = init.is_none() || holds(pod, "Initialized");
    let own = str_at(pod, "status.reason");
    let mut text = init.unwrap_or_else(|| if own.is_empty() { phase } else { own }.to_owned());
    let mut is_running = false;
    for one in statuses(pod, "containerStatuses").rev().filter(|_| is_initialized) {
        is_running |= one["ready"] == true && !one["state"]["running"].is_null();
        let waiting = str_at(one, "state.waiting.reason");
        if !waiting.is_empty() {
            waiting.clone_into(&mut text);
        } else if let Some(ended) = ended(one) {
            text = ended;
        }
    }
    if text == "Completed" && is_running {
        text = if holds(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
    }
    json!(text)
}

/// How far a pod's init containers are, unless they have done all.
fn init_status(pod: &Value) -> Option<String> {
    let n = list_at(pod, "spec.initContainers").len();
    let is_done = |one: &Value| {
        let is_sidecar = sidecars(pod).any(|side| side["name"] == one["name"]);
        one["state"]["terminated"]["exitCode"] == 0 || (is_sidecar && one["started"] == true)
    };
    let mut all = statuses(pod, "initContainerStatuses").enumerate();
    let (idx, one) = all.find(|(_, one)| !is_done(one))?;
    let waiting = str_at(one, "state.waiting.reason");
    Some(match ended(one) {
        Some(ended) => format!("Init:{ended}"),
        None if !matches!(waiting, "" | "PodInitializing") => format!("Init:{waiting}"),
        None => format!("Init:{idx}/{n}"),
    })
}

/// What a container has come to, if it has ended.
fn ended(status: &Value) -> Option<String> {
    let terminated = status["state"]["terminated"].as_object()?;
    let number = |name: &str| terminated.get(name).and_then(Value::as_i64).unwrap_or(0);
    Some(match terminated.get("reason").and_then(Value::as_str) {
        Some(reason) if !reason.is_empty() => reason.to_owned(),
        _ if number("signal") != 0 => format!("Signal:{}", number("signal")),
        _ => format!("ExitCode:{}", number("exitCode")),
    })
}

fn holds(pod: &Value, condition: &str) -> bool {
    let mut all = list_at(pod, "status.conditions").iter();
    all.any(|one| one["type"] == condition && one["status"] == "True")
}

fn restarts(pod: &Value) -> Value {
    let all = statuses(pod, "containerStatuses").chain(sidecars(pod));
    json!(all.filter_map(|one| one["restartCount"].as_i64()).sum::<i64>().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_column_tells_how_far_it_is() {
        let pod = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
        let spec = r#""spec": {"initContainers": [{"name": "a"}, {"name": "b", "restartPolicy":
            "Always"}], "containers": [{"name": "c"}]}"#;
        let tell = |status: &str| {
            let pod = pod(&format!(r#"{{{spec}, "status": {{"phase": "Pending", {status}}}}}"#));
            [status_text(&pod), ready(&pod).as_str().unwrap().to_owned()].join(" ")
        };
        let waits = r#"{"name": "c", "state": {"waiting": {"reason": "PodInitializing"}}}"#;
        let begun = |inits: &str| {
            tell(&format!(r#""initContainerStatuses": [{inits}], "containerStatuses": [{waits}]"#))
        };
        let (runs, done) = (r#"{"running": {}}"#, r#"{"terminated": {"exitCode": 0}}"#);
        let later = r#"{"name": "b", "state": {"waiting": {"reason": "PodInitializing"}}}"#;
        let first = |state: &str| begun(&format!(r#"{{"name": "a", "state": {state}}}, {later}"#));
        assert_eq!(first(runs), "Init:0/2 0/2");
        assert_eq!(first(r#"{"waiting": {"reason": "ErrImagePull"}}"#), "Init:ErrImagePull 0/2");
        assert_eq!(first(r#"{"terminated": {"exitCode": 3}}"#), "Init:ExitCode:3 0/2");
        assert_eq!(first(done), "Init:1/2 0/2");
        let side = format!(r#"{{"name": "b", "started": true, "ready": true, "state": {runs}}}"#);
        let both = format!(r#"{{"name": "a", "state": {done}}}, {side}"#);
        assert_eq!(begun(&both), "PodInitializing 1/2");
        let runs = format!(r#"{{"name": "c", "ready": true, "state": {runs}}}"#);
        let well = format!(r#""initContainerStatuses": [{both}], "containerStatuses": [{runs}]"#);
        assert_eq!(tell(&well), "Pending 2/2");
    }

    fn status_text(pod: &Value) -> String {
        status(pod).as_str().unwrap().to_owned()
    }
}
