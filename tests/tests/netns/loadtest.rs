//! `fairlead loadtest` with a Service that it brings up itself.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use loadtest::fairness::Verdict;
use loadtest::report::Report;
use tests::binary;

fn run(words: &[&str], dir: &Path) -> Output {
    let name = format!("load-{}", std::process::id());
    #[expect(clippy::disallowed_methods, reason = "the program is what is tested")]
    let mut command = Command::new(binary::fairlead());
    command.arg("loadtest").args(["--sandbox", &name, "--threads", "1"]).args(words);
    command.arg("--json").arg(dir.join("report.json"));
    command.arg("--html").arg(dir.join("report.html"));
    command.output().unwrap()
}

fn report(words: &[&str]) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let output = run(words, dir.path());
    assert!(output.status.success(), "{output:?}");
    let page = fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    serde_json::from_slice(&fs::read(dir.path().join("report.json")).unwrap()).unwrap()
}

#[test]
fn a_service_is_measured_beside_its_endpoints_in_one_command() {
    for kind in ["connect", "tcp", "http", "udp", "dns"] {
        let words = ["--kind", kind, "--duration", "0.4", "--rounds", "8", "--services", "20"];
        let report = report(&words);
        let names: Vec<&str> = report.arms.iter().map(|arm| arm.name.as_str()).collect();
        assert_eq!(names, ["direct", "direct again", "ebpf"], "{kind}");
        for arm in &report.arms {
            assert!(arm.n_answered > 0 && arm.errors.is_empty(), "{kind}: {arm:?}");
        }
        let ebpf = report.arms.last().unwrap();
        assert!(ebpf.ratio.is_some() && ebpf.cpu.server.is_some());
        if matches!(kind, "tcp" | "udp") {
            assert_ne!(ebpf.fairness.unwrap().verdict, Verdict::Unfair, "{kind}: {ebpf:?}");
            assert_eq!(ebpf.spread.len(), 3);
        }
    }
}

#[test]
fn what_clients_notice_of_endpoints_that_come_and_go_is_reported() {
    let report = report(&["--churn", "4", "--duration", "4", "--kind", "tcp"]);
    let ebpf = report.arms.last().unwrap();
    assert!(ebpf.errors.is_empty(), "no connection is cut: {ebpf:?}");
    let n_removed = report.changes.iter().filter(|it| !it.change.is_added).count();
    assert!(n_removed >= 3, "{:?}", report.changes);
    let n_added = report.changes.iter().filter(|it| it.change.is_added && it.took.is_some());
    assert!(n_added.count() >= 2, "{:?}", report.changes);
    assert_eq!(report.marks.len(), report.changes.len());
}

#[test]
fn a_folder_is_brought_up_with_the_names_of_its_endpoints() {
    let folder = tempfile::tempdir().unwrap();
    let yaml = "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: cart}\n\
                spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], ports: [{port: 90}]}\n\
                ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                metadata: {namespace: shop, name: cart-1, \
                labels: {kubernetes.io/service-name: cart}}\naddressType: IPv4\n\
                ports: [{name: '', port: 1234}]\nendpoints:\n\
                - {addresses: [10.0.0.1], targetRef: {kind: Pod, name: cart-a}}\n\
                - {addresses: [10.0.0.2], targetRef: {kind: Pod, name: cart-b}}\n";
    fs::write(folder.path().join("cart.yaml"), yaml).unwrap();
    let folder = folder.path().to_str().unwrap();
    let report = report(&[folder, "--duration", "0.4", "--rounds", "8"]);
    assert_eq!(report.target, "shop/cart:90");
    let spread = &report.arms.last().unwrap().spread;
    let names: Vec<&str> = spread.iter().map(|part| part.name.as_str()).collect();
    assert_eq!(names, ["cart-a", "cart-b"]);
}

#[test]
fn a_mode_that_this_build_lacks_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(&["--compare", "ebpf,ipvs,direct"], dir.path());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ipvs cannot be compared") && said.contains("--proxy-mode"), "{said}");
    let output = run(&["--compare", "userspace"], dir.path());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("is no mode"), "{said}");
}
