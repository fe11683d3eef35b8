//! HTTPS, tokens and rights; and that nothing is served in the clear beyond this machine.

use std::process::{Command, Stdio};

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;

use crate::companion::{Companion, get, post};

async fn with_token(companion: &Companion, token: &str) -> Client {
    let mut kubeconfig = Kubeconfig::read_from(companion.kubeconfig()).unwrap();
    let user = kubeconfig.auth_infos[0].auth_info.as_mut().unwrap();
    user.token = Some(token.to_owned().into());
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    Client::try_from(config).unwrap()
}

fn code(result: kube::Result<serde_json::Value>) -> u16 {
    match result {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_roles_decide_over_https() {
    let companion = Companion::start(&["--no-controllers", "--secure"]).await;
    let admin = companion.client().await;
    get(&admin, "/api/v1/nodes").await.unwrap();
    for token in ["", "x", "a.b.c"] {
        let nobody = with_token(&companion, token).await;
        assert_eq!(code(get(&nobody, "/api/v1/nodes").await), 401, "{token:?}");
    }

    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let bob = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bob"}});
    post(&admin, accounts, &bob).await.unwrap();
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let token = post(&admin, &format!("{accounts}/bob/token"), &request).await.unwrap();
    let bob = with_token(&companion, token["status"]["token"].as_str().unwrap()).await;
    let pods = "/api/v1/namespaces/default/pods";
    assert_eq!(code(get(&bob, pods).await), 403);

    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "read"},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "read"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "read"},
        "subjects": [{"kind": "ServiceAccount", "name": "bob", "namespace": "default"}],
    });
    post(&admin, &format!("{rbac}/roles"), &role).await.unwrap();
    post(&admin, &format!("{rbac}/rolebindings"), &binding).await.unwrap();
    assert_eq!(code(get(&bob, pods).await), 200);
    assert_eq!(code(get(&bob, &format!("{pods}?watch=1")).await), 403);
    assert_eq!(code(get(&bob, "/api/v1/namespaces/kube-system/pods").await), 403);
    assert_eq!(code(get(&bob, "/api/v1/namespaces/default/secrets").await), 403);

    // A token dies with its account.
    let delete = http::Request::delete(format!("{accounts}/bob")).body(Vec::new()).unwrap();
    admin.request::<serde_json::Value>(delete).await.unwrap();
    assert_eq!(code(get(&bob, pods).await), 401);
}

#[test]
fn plain_http_beyond_loopback_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(tests::binary::fairlead())
        .args(["control", "--listen", "0.0.0.0:0", "--data"])
        .arg(dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("not loopback") && error.contains("--secure"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_listens_beyond_loopback() {
    let companion = Companion::start(&[]).await;
    let process = format!("/proc/{}", companion.pid());
    let open = std::fs::read_dir(format!("{process}/fd")).unwrap().filter_map(|file| {
        let target = std::fs::read_link(file.ok()?.path()).ok()?;
        Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
    });
    let open: Vec<String> = open.collect();
    let mut listening = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = std::fs::read_to_string(format!("{process}/net/{table}")).unwrap();
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            // 0A: listening; 07: a UDP socket that is bound.
            if open.iter().any(|inode| inode == words[9]) && matches!(words[3], "0A" | "07") {
                listening.push(words[1].split(':').next().unwrap().to_owned());
            }
        }
    }
    // 127.0.0.1, as the kernel prints it.
    assert_eq!(listening, ["0100007F"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_grants_what_they_do_not_hold() {
    const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let companion = Companion::start(&["--no-controllers", "--secure"]).await;
    let admin = companion.client().await;
    let role = |name: &str, resource: &str, verbs: &[&str]| {
        let group = if resource == "pods" { "" } else { "rbac.authorization.k8s.io" };
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name},
            "rules": [{"apiGroups": [group], "resources": [resource], "verbs": verbs}],
        })
    };
    let binding = |role: &str, account: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": format!("{role}-{account}")},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "default"}],
        })
    };
    let (roles, bindings) = (format!("{RBAC}/roles"), format!("{RBAC}/rolebindings"));
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let bob = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bob"}});
    post(&admin, accounts, &bob).await.unwrap();
    for held in [
        role("reader", "pods", &["get", "list"]),
        role("deleter", "pods", &["delete"]),
        role("rolemaker", "roles", &["create", "get"]),
        role("binder", "rolebindings", &["create"]),
    ] {
        post(&admin, &roles, &held).await.unwrap();
    }
    for held in ["reader", "rolemaker", "binder"] {
        post(&admin, &bindings, &binding(held, "bob")).await.unwrap();
    }
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let token = post(&admin, &format!("{accounts}/bob/token"), &request).await.unwrap();
    let bob = with_token(&companion, token["status"]["token"].as_str().unwrap()).await;

    assert_eq!(code(post(&bob, &roles, &role("a", "pods", &["get"])).await), 200);
    assert_eq!(code(post(&bob, &roles, &role("b", "pods", &["get", "delete"])).await), 403);
    assert_eq!(code(post(&bob, &roles, &role("c", "pods", &["*"])).await), 403);
    assert_eq!(code(post(&bob, &bindings, &binding("reader", "alice")).await), 200);
    assert_eq!(code(post(&bob, &bindings, &binding("deleter", "alice")).await), 403);

    post(&admin, &roles, &role("escalator", "roles", &["escalate", "bind"])).await.unwrap();
    post(&admin, &bindings, &binding("escalator", "bob")).await.unwrap();
    assert_eq!(code(post(&bob, &roles, &role("b", "pods", &["get", "delete"])).await), 200);
    assert_eq!(code(post(&bob, &bindings, &binding("deleter", "alice")).await), 200);
}
