//! Rules for the arrows between crates: who may depend on whom, and on which libraries.

use anyhow::Context as _;
use serde_json::Value;

use super::Finding;

/// Each room of the house and the rooms it may depend on. Arrows point one way.
const ROOMS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("abi", &[]),
    ("packet", &["abi"]),
    ("prog", &["abi", "packet"]),
    ("load", &["abi"]),
    ("pages", &[]),
    ("proxy", &["model", "abi", "load", "pages"]),
    ("dns", &["model", "pages"]),
    ("api", &[]),
    ("controllers", &[]),
    ("node", &["sandbox"]),
    ("sandbox", &[]),
    ("loadtest", &[]),
    (
        "fairlead",
        &[
            "model",
            "proxy",
            "dns",
            "api",
            "controllers",
            "node",
            "load",
            "sandbox",
            "loadtest",
            "pages",
        ],
    ),
    (
        "tests",
        &[
            "model", "abi", "load", "packet", "proxy", "dns", "sandbox", "loadtest", "pages",
            "fairlead",
        ],
    ),
    ("xtask", &[]),
];

/// Libraries that only some rooms may know.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("kube", &["model", "controllers", "node"]),
    ("axum", &["api"]),
    ("rusqlite", &["api"]),
    // `abi` promises it, behind a feature, that keys and values are plain bytes.
    ("aya", &["load", "abi"]),
    ("aya-log", &["load"]),
    ("aya-ebpf", &["prog"]),
];

/// Checks what `cargo metadata --no-deps` says.
pub(super) fn check(metadata: &str) -> anyhow::Result<Vec<Finding>> {
    let metadata: Value = serde_json::from_str(metadata).context("reading cargo metadata")?;
    let packages = metadata.get("packages").and_then(Value::as_array);
    let packages = packages.context("cargo metadata lists no packages")?;
    Ok(packages.iter().flat_map(check_package).collect())
}

fn check_package(package: &Value) -> Vec<Finding> {
    let name = text(package, "name");
    let Some((_, allowed)) = ROOMS.iter().find(|(room, _)| *room == name) else {
        let rule = "is a new room: draw its arrows in xtask/src/tidy/arrows.rs";
        return vec![Finding::new(name, rule)];
    };
    let dependencies = package.get("dependencies").and_then(Value::as_array);
    let dependencies = dependencies.into_iter().flatten();
    // What only tests use follows no arrow.
    let built = dependencies.filter(|it| it.get("kind").and_then(Value::as_str) != Some("dev"));
    built.filter_map(|it| broken(name, allowed, text(it, "name"))).collect()
}

fn broken(name: &str, allowed: &[&str], dependency: &str) -> Option<Finding> {
    let room = ROOMS.iter().any(|(room, _)| *room == dependency);
    if room && !allowed.contains(&dependency) {
        return Some(Finding::new(name, format!("must not depend on {dependency}")));
    }
    let (library, knowers) = LIBRARIES.iter().find(|(library, _)| *library == dependency)?;
    (!knowers.contains(&name)).then(|| {
        Finding::new(name, format!("must not know {library}; may: {}", knowers.join(", ")))
    })
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::check;

    fn findings(name: &str, dependency: &str, kind: Option<&str>) -> Vec<String> {
        let dependencies = json!([{ "name": dependency, "kind": kind }]);
        let metadata = json!({ "packages": [{ "name": name, "dependencies": dependencies }] });
        check(&metadata.to_string()).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn arrows_point_one_way() {
        assert!(findings("proxy", "model", None).is_empty());
        assert_eq!(findings("model", "proxy", None), ["model: must not depend on proxy"]);
        assert_eq!(findings("load", "xtask", Some("build")), ["load: must not depend on xtask"]);
    }

    #[test]
    fn tests_may_reach_further() {
        assert!(findings("load", "sandbox", Some("dev")).is_empty());
    }

    #[test]
    fn kube_and_aya_stay_in_their_rooms() {
        assert!(findings("model", "kube", None).is_empty());
        assert_eq!(
            findings("proxy", "kube", None),
            ["proxy: must not know kube; may: model, controllers, node"]
        );
        assert_eq!(findings("proxy", "aya", None), ["proxy: must not know aya; may: load, abi"]);
    }

    #[test]
    fn new_rooms_are_found() {
        assert_eq!(findings("extra", "serde", None).len(), 1);
    }
}
