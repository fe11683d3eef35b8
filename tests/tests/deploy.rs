//! What is in `deploy/` is what the API server and the program take.
#![expect(clippy::unwrap_used, reason = "a test fails loudly")]
#![expect(clippy::disallowed_methods, reason = "it asks the program for what it takes")]

use std::collections::BTreeSet;
use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tests::binary::fairlead;
use tests::daemonset;

const MANIFEST: &str = "fairlead-daemonset.yaml";

/// The object with the fields that its type has.
fn read_back<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
    serde_json::to_value(serde_json::from_value::<T>(object.clone()).unwrap()).unwrap()
}

#[test]
fn every_field_of_the_daemonset_s_manifest_is_one_that_kubernetes_has() {
    let documents = daemonset::documents(MANIFEST);
    for object in &documents {
        let read = match object.get("kind").and_then(Value::as_str).unwrap() {
            "ServiceAccount" => read_back::<ServiceAccount>(object),
            "ClusterRole" => read_back::<ClusterRole>(object),
            "ClusterRoleBinding" => read_back::<ClusterRoleBinding>(object),
            "DaemonSet" => read_back::<DaemonSet>(object),
            other => panic!("{other} is nothing that is needed"),
        };
        assert_eq!(&read, object);
    }
    assert_eq!(documents.len(), 4);
}

#[test]
fn every_argument_of_the_daemonset_is_one_that_the_program_takes() {
    for mode in ["ebpf", "nftables", "iptables", "ipvs", "auto"] {
        let args = daemonset::args(mode, "node-a");
        assert!(args.contains(&format!("--proxy-mode={mode}")), "{args:?}");
        let output = Command::new(fairlead()).args(&args).arg("--help").output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    }
}

#[test]
fn what_the_daemonset_s_arguments_name_is_mounted_and_every_mount_has_a_volume() {
    let (pod, container) = (daemonset::pod(), daemonset::container());
    let volumes: BTreeSet<String> =
        pod.volumes.unwrap().into_iter().map(|volume| volume.name).collect();
    let mounts = container.volume_mounts.unwrap();
    let mounted: BTreeSet<String> = mounts.iter().map(|mount| mount.name.clone()).collect();
    assert_eq!(mounted, volumes);
    for arg in daemonset::args("ebpf", "node-a") {
        let Some((_, path)) = arg.split_once("=/") else { continue };
        let path = format!("/{path}");
        assert!(mounts.iter().any(|mount| path.starts_with(&mount.mount_path)), "{arg}");
    }
    let capabilities = container.security_context.unwrap().capabilities.unwrap();
    for needed in ["BPF", "PERFMON", "NET_ADMIN"] {
        assert!(capabilities.add.as_ref().unwrap().contains(&needed.to_owned()), "{needed}");
    }
}
