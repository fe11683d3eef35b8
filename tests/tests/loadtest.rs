//! `fairlead loadtest` as its users see it, without root: what it says of servers that are known,
//! and of what cannot be measured.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run programs, and what tests share panics as tests do"
)]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use loadtest::fairness::Verdict;
use loadtest::report::Report;
use loadtest::server::{Answering, Delay, Server};
use tests::binary;

/// No run of these takes longer, whatever happens to it.
const SOON: Duration = Duration::from_secs(60);

fn loadtest(words: &[&str]) -> Output {
    let begun = Instant::now();
    let output = Command::new("timeout")
        .args(["--signal=KILL", &SOON.as_secs().to_string()])
        .arg(binary::fairlead())
        .arg("loadtest")
        .args(words)
        .output()
        .unwrap();
    assert!(begun.elapsed() < SOON, "it hung: {output:?}");
    output
}

/// The report of a run that ends well.
fn report(words: &[&str]) -> (Report, String) {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("report.json");
    let output = loadtest(&[words, &["--json", json.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{output:?}");
    let report = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    (report, String::from_utf8(output.stdout).unwrap())
}

/// What a run that is refused says: one line.
fn refusal(words: &[&str]) -> String {
    let output = loadtest(words);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(output.stdout, b"", "{said}");
    said
}

/// A balancer of a fixed habit: connection number n goes to the endpoint that `choose` says, and
/// the answer bears its name.
fn balancer(choose: fn(usize) -> &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // It ends with the test's process.
    thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            // A client that goes away early is none of its business.
            if BufReader::new(&stream).read_line(&mut line).is_ok() {
                drop(writeln!(stream, "{}", choose(n)));
            }
        }
    });
    address
}

fn server(delay: Delay) -> Server {
    Server::start(&Answering {
        name: "web-1".to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        n_threads: 1,
        processors: Vec::new(),
        delay,
    })
    .unwrap()
}

#[test]
fn an_address_is_measured_beside_its_endpoint() {
    let server = server(Delay::default());
    let address = server.address().to_string();
    let (report, table) =
        report(&[&address, "--direct", &address, "--duration", "0.5", "--rounds", "10"]);
    let names: Vec<&str> = report.arms.iter().map(|arm| arm.name.as_str()).collect();
    assert_eq!(names, ["direct", "direct again", address.as_str()]);
    for arm in &report.arms {
        assert!(arm.n_answered > 0 && arm.errors.is_empty(), "{arm:?}");
        assert_eq!(arm.n_rounds, 10);
    }
    let ratio = report.arms[2].ratio.unwrap().rate;
    assert!(ratio.low <= ratio.value && ratio.value <= ratio.high, "{ratio}");
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
}

#[test]
fn three_to_one_is_reported_so() {
    let address = balancer(|n| if n % 4 == 3 { "web-2" } else { "web-1" }).to_string();
    let weights = "web-1=3,web-2=1";
    let words = [&address, "--kind", "tcp", "--weights", weights, "--duration", "1"];
    let (report, _) = report(&words);
    let arm = report.arms.first().unwrap();
    assert_eq!(arm.fairness.unwrap().verdict, Verdict::Fair, "{arm:?}");
    let total: u64 = arm.spread.iter().map(|part| part.n_connections).sum();
    let share = arm.spread[0].n_connections as f64 / total as f64;
    assert!((share - 0.75).abs() < 0.05, "{share}");
}

#[test]
fn a_balancer_that_always_takes_the_first_is_called_unfair() {
    let address = balancer(|_| "web-1").to_string();
    let weights = "web-1=1,web-2=1,web-3=1";
    let words = [&address, "--kind", "tcp", "--weights", weights, "--duration", "1"];
    let (report, table) = report(&words);
    assert_eq!(report.arms[0].fairness.unwrap().verdict, Verdict::Unfair);
    assert!(table.contains("UNFAIR") && table.contains("web-2 0.0 %"), "{table}");
}

#[test]
fn a_refused_port_is_said_before_anything_is_measured() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let said = refusal(&[&closed.to_string()]);
    let ought = format!("fairlead: {closed}: nothing answers at {closed}: connection refused\n");
    assert_eq!(said, ought);
}

#[test]
fn an_endpoint_that_does_not_answer_is_said_by_name() {
    // It listens, and nobody ever reads.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let said = refusal(&[&address, "--timeout", "0.2"]);
    assert!(said.contains(&format!("nothing answers at {address}: timed out")), "{said}");
    // Reserved for documentation (RFC 5737): no route leads there, or nobody answers.
    let said = refusal(&["192.0.2.1:80", "--timeout", "0.2"]);
    assert!(said.contains("nothing answers at 192.0.2.1:80: "), "{said}");
}

#[test]
fn an_unknown_service_is_refused_with_those_that_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let yaml = "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: cart}\n\
                spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], ports: [{port: 80}]}\n";
    std::fs::write(dir.path().join("cart.yaml"), yaml).unwrap();
    let objects = dir.path().to_str().unwrap();
    let said = refusal(&["shop/kart", "--objects", objects]);
    assert_eq!(said, "fairlead: there is no Service shop/kart; there is shop/cart\n");
    let said = refusal(&["shop/cart", "--objects", objects]);
    assert_eq!(said, "fairlead: shop/cart has no ready endpoint for port 80\n");
}

#[test]
fn what_is_no_target_is_refused() {
    let said = refusal(&["nowhere"]);
    assert!(said.contains("neither a folder, nor NS/NAME[:PORT], nor HOST:PORT"), "{said}");
    for flag in [["--compare", "ebpf"], ["--services", "5"], ["--churn", "1"]] {
        let said = refusal(&[&["127.0.0.1:1"], &flag[..]].concat());
        assert!(said.contains(flag[0]) && said.contains("not touched"), "{said}");
    }
    let said = refusal(&["127.0.0.1:1", "--json", "/nonexistent/report.json"]);
    assert!(said.contains("writing to /nonexistent/report.json"), "{said}");
}

#[test]
fn too_few_file_descriptors_are_refused_with_the_limit() {
    let server = server(Delay::default());
    let line = format!(
        "ulimit -n 300; exec {} loadtest {} --concurrency 1000 --duration 1",
        binary::fairlead().display(),
        server.address()
    );
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("file descriptors are needed and 300 allowed"), "{said}");
}

#[test]
fn an_interrupted_run_ends_soon_and_reports_what_it_has() {
    let server = server(Delay::default());
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("report.json");
    let output = Command::new("timeout")
        .args(["--signal=INT", "--kill-after=60", "2"])
        .arg(binary::fairlead())
        .args(["loadtest", &server.address().to_string(), "--duration", "600"])
        .args(["--rounds", "6000", "--json", json.to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("interrupted: what was measured until then is above"), "{said}");
    let report: Report = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert!(report.arms[0].n_answered > 0);
    assert!(report.doubts.iter().any(|it| it.contains("interrupted")), "{:?}", report.doubts);
}

#[test]
fn a_server_that_dies_meanwhile_is_counted_and_ends_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let dying = thread::spawn(move || {
        for stream in listener.incoming().take(200) {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            // A client that goes away early is none of its business.
            if BufReader::new(&stream).read_line(&mut line).is_ok() {
                drop(writeln!(stream, "web-1"));
            }
        }
    });
    let (report, _) =
        report(&[&address, "--kind", "tcp", "--duration", "3", "--rounds", "30", "--warm-up", "0"]);
    dying.join().unwrap();
    let errors = &report.arms[0].errors;
    assert!(errors["connection refused"] > 0, "{errors:?}");
    assert!(report.arms[0].course.last().unwrap().n_failed > 0);
}
