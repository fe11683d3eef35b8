//! What upstream's admission plugins decide that every cluster has: namespaces that are going,
//! the service account of a pod, its priority.

use serde_json::{Value, json};

use crate::kinds::{self, Kind};
use crate::object::{Key, at, is_zero, str_at};
use crate::status::{FieldError, Result, Status};
use crate::store::Txn;

/// Nothing is created in a namespace that is not there, or that is going.
pub(crate) fn check_namespace(
    txn: &Txn<'_>,
    kind: &Kind,
    namespace: &str,
    name: &str,
) -> Result<()> {
    if !kind.namespaced {
        return Ok(());
    }
    let number = kinds::number("namespaces");
    let namespaces = kinds::KINDS.get(number).ok_or_else(Status::no_such_path)?;
    let found = txn.get(&Key::new(number, "", namespace));
    let found = found.ok_or_else(|| Status::not_found(namespaces, namespace))?.value();
    if str_at(&found, "metadata.deletionTimestamp").is_empty() {
        return Ok(());
    }
    let why = format!(
        "unable to create new content in namespace {namespace} because it is being terminated"
    );
    let mut status = Status::forbidden(kind, name, &why);
    status.add_causes(&[FieldError {
        reason: "NamespaceTerminating",
        field: "metadata.namespace".into(),
        message: format!("namespace {namespace} is being terminated"),
    }]);
    Err(status)
}

/// Gives a new pod a service account and its priority.
pub(crate) fn admit_pod(txn: &Txn<'_>, kind: &Kind, pod: &mut Value) -> Result<()> {
    if !pod["spec"].is_object() {
        return Ok(());
    }
    if is_zero(at(pod, "spec.serviceAccountName")) {
        pod["spec"]["serviceAccountName"] = json!("default");
    }
    set_priority(txn, kind, pod)
}

fn set_priority(txn: &Txn<'_>, kind: &Kind, pod: &mut Value) -> Result<()> {
    let classes = kinds::number("priorityclasses");
    let wanted = str_at(pod, "spec.priorityClassName").to_owned();
    let class = if wanted.is_empty() {
        let all = txn.list(classes, None).into_iter().map(|(_, object)| object.value());
        all.filter(|class| class["globalDefault"] == true).max_by_key(|c| c["value"].as_i64())
    } else {
        let found = txn.get(&Key::new(classes, "", &wanted)).map(|object| object.value());
        let name = str_at(pod, "metadata.name");
        let why = format!("no PriorityClass with name {wanted} was found");
        Some(found.ok_or_else(|| Status::forbidden(kind, name, &why))?)
    };
    let Some(class) = class else {
        pod["spec"]["priority"] = json!(0);
        pod["spec"]["preemptionPolicy"] = json!("PreemptLowerPriority");
        return Ok(());
    };
    pod["spec"]["priorityClassName"] = at(&class, "metadata.name").clone();
    pod["spec"]["priority"] = json!(class["value"].as_i64().unwrap_or(0));
    pod["spec"]["preemptionPolicy"] = class["preemptionPolicy"].clone();
    Ok(())
}
