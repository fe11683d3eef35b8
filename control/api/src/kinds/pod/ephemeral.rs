//! Containers that are put into a pod that is there, to look into it (`kubectl debug`).

use serde_json::Value;

use super::{CONTAINER_RULES, check_mounts, default_container};
use crate::kinds::fields;
use crate::object::{at, is_zero, list_at, str_at};
use crate::status::FieldError;

const LIST: &str = "spec.ephemeralContainers";
/// What they cannot have: they hold up nobody, and are not started again.
const NOT_THEIRS: [&str; 6] =
    ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resources"];

/// Fills in a pod's ephemeral containers.
pub(crate) fn default(pod: &mut Value) {
    let spec = pod.get_mut("spec");
    let all = spec.and_then(|spec| spec.get_mut("ephemeralContainers"));
    for container in all.and_then(Value::as_array_mut).into_iter().flatten() {
        default_container(container);
    }
}

/// What speaks against a change of them: some may be added, and that is all.
pub(crate) fn check(pod: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let all = list_at(pod, LIST);
    for gone in list_at(old, LIST).iter().filter(|one| !all.contains(one)) {
        let why = format!(
            "existing ephemeral containers \"{}\" may not be removed or changed",
            str_at(gone, "name")
        );
        errors.push(FieldError::forbidden(LIST, &why));
    }
    let others = ["spec.containers", "spec.initContainers"].map(|list| list_at(pod, list));
    let named = |name: &Value| {
        let same = |one: &&Value| one["name"] == *name;
        others.iter().flat_map(|list| list.iter()).chain(all).filter(same).count()
    };
    for (i, container) in all.iter().enumerate() {
        let mut found = Vec::new();
        fields::check(CONTAINER_RULES, "", container, None, &mut found);
        check_mounts(container, at(pod, "spec"), &mut found);
        if named(&container["name"]) > 1 {
            found.push(FieldError::duplicate("name", &container["name"]));
        }
        let target = &container["targetContainerName"];
        let is_other = |one: &Value| one["name"] == *target;
        if !is_zero(target) && !others.iter().any(|list| list.iter().any(is_other)) {
            found.push(FieldError::not_found("targetContainerName", target));
        }
        for field in NOT_THEIRS.into_iter().filter(|field| !is_zero(&container[*field])) {
            let why = "cannot be set for an Ephemeral Container";
            found.push(FieldError::forbidden(field, why));
        }
        errors.extend(
            found
                .into_iter()
                .map(|error| FieldError { field: format!("{LIST}[{i}].{}", error.field), ..error }),
        );
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(ephemeral: &Value) -> Value {
        json!({"spec": {"containers": [{"name": "web"}], "ephemeralContainers": ephemeral}})
    }

    fn told(new: &Value, old: &Value) -> Vec<String> {
        let errors = check(&pod(new), &pod(old));
        errors.into_iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn some_may_be_added_and_none_changed() {
        let (one, two) = (json!({"name": "a", "image": "x"}), json!({"name": "b", "image": "x"}));
        assert!(told(&json!([one]), &json!([])).is_empty());
        assert!(told(&json!([two, one]), &json!([one])).is_empty());
        let gone = told(&json!([two]), &json!([one]));
        assert!(gone[0].contains("may not be removed or changed"), "{gone:?}");
        let other = json!({"name": "a", "image": "y"});
        assert_eq!(told(&json!([other]), &json!([one])).len(), 1);
    }

    #[test]
    fn they_are_containers_of_their_own_and_hold_up_nobody() {
        let twice = told(&json!([{"name": "web", "image": "x"}]), &json!([]));
        assert!(twice[0].starts_with("spec.ephemeralContainers[0].name"), "{twice:?}");
        let probe = json!([{"name": "a", "image": "x", "livenessProbe": {"httpGet": {"port": 1}}}]);
        let probed = told(&probe, &json!([]));
        assert!(probed[0].contains("livenessProbe"), "{probed:?}");
        assert!(!told(&json!([{"name": "a"}]), &json!([])).is_empty(), "without an image");
    }

    #[test]
    fn they_look_into_a_container_that_there_is() {
        let into = |target| json!([{"name": "a", "image": "x", "targetContainerName": target}]);
        assert!(told(&into("web"), &json!([])).is_empty());
        let missing = told(&into("db"), &json!([]));
        assert!(missing[0].contains("targetContainerName"), "{missing:?}");
    }
}
