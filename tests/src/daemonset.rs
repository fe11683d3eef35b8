//! The manifest of the `DaemonSet`, read as the API server does.

use std::path::Path;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde_json::Value;

/// The objects of a manifest in `deploy/`.
///
/// # Panics
/// It is not there, or no YAML.
pub fn documents(name: &str) -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name);
    let text = std::fs::read_to_string(file).expect("the manifest is there");
    let read = |one| serde_saphyr::from_str(one).expect("it is YAML");
    text.split("\n---\n").map(read).collect()
}

/// What a pod of the `DaemonSet` is made of.
///
/// # Panics
/// There is no such pod.
pub fn pod() -> PodSpec {
    let documents = documents("fairlead-daemonset.yaml");
    let object = documents.into_iter().find(|one| one.get("kind") == Some(&"DaemonSet".into()));
    let set: DaemonSet = serde_json::from_value(object.expect("a DaemonSet")).expect("its fields");
    set.spec.template.spec.expect("a pod")
}

/// Its one container.
///
/// # Panics
/// There is none, or more.
pub fn container() -> Container {
    let [container]: [Container; 1] = pod().containers.try_into().expect("one container");
    container
}

/// Its arguments, with another mode, for a node of that name.
pub fn args(mode: &str, node: &str) -> Vec<String> {
    let args = container().args.unwrap_or_default().into_iter();
    args.map(|arg| match arg.starts_with("--proxy-mode=") {
        true => format!("--proxy-mode={mode}"),
        false => arg.replace("$(NODE_NAME)", node),
    })
    .collect()
}
