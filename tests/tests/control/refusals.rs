//! Bad requests: upstream's code and reason for each, and a server that goes on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::companion::{Companion, config_map, eventually, get, post};

/// One request by hand, since no client would make it.
fn raw(address: &str, request: &str, body: &[u8]) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = format!(
        "{request}\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A refused body need not be read to its end.
    _ = stream.write_all(body);
    let mut answer = Vec::new();
    _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (code, serde_json::from_str(body).unwrap_or(Value::Null))
}

/// A case of `cases/control/refusals.txt`.
struct Case<'a> {
    what: &'a str,
    request: String,
    body: &'a str,
    code: u16,
    reason: &'a str,
    message: &'a str,
}

impl<'a> Case<'a> {
    fn read(text: &'a str) -> Self {
        let (what, rest) = text.split_once('\n').unwrap();
        let (request, rest) = rest.split_once('\n').unwrap();
        let (body, answer) = rest.split_once("=> ").unwrap();
        let mut words = answer.trim_end().splitn(3, ' ');
        let request = match request.strip_suffix(']').and_then(|text| text.split_once(" [")) {
            Some((request, form)) => format!("{request} HTTP/1.1\r\nContent-Type: {form}"),
            None => format!("{request} HTTP/1.1"),
        };
        let code = words.next().unwrap().parse().unwrap();
        let (reason, message) = (words.next().unwrap(), words.next().unwrap_or_default());
        Self { what, request, body: body.trim_end(), code, reason, message }
    }

    fn check(&self, address: &str) {
        let Self { what, request, body, .. } = self;
        let (code, status) = raw(address, request, body.as_bytes());
        let reason = status["reason"].as_str();
        assert_eq!((code, reason), (self.code, Some(self.reason)), "{what}: {status}");
        assert_eq!((&status["kind"], &status["code"]), (&json!("Status"), &json!(code)), "{what}");
        let message = status["message"].as_str().unwrap();
        assert!(message.contains(self.message), "{what}: {message}");
    }
}

const CASES: &str = include_str!("../../cases/control/refusals.txt");
const POST: &str =
    "POST /api/v1/namespaces/default/services HTTP/1.1\r\nContent-Type: application/json";

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_as_upstream_refuses_it() {
    let companion = Companion::start(&["--no-controllers"]).await;
    let address = companion.address();
    let cases = CASES.split("\n\n").skip(1).map(Case::read).collect::<Vec<_>>();
    assert!(cases.len() > 50, "{}", cases.len());
    for case in &cases {
        case.check(&address);
    }
    let client = companion.client().await;
    get(&client, "/api/v1/namespaces/default").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_costs_more_than_it_should_is_refused_early() {
    let companion = Companion::start(&["--no-controllers"]).await;
    let address = companion.address();
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let refused = |request: &str, body: &str, code: u16, reason: &str| {
        let (found, status) = raw(&address, request, body.as_bytes());
        assert_eq!((found, status["reason"].as_str()), (code, Some(reason)), "{status}");
    };
    refused(POST, &deep, 400, "BadRequest");
    // Each level names the one before nine times.
    let mut bomb = "a: &a [x,x]\n".to_owned();
    for (from, to) in "abcdefgh".chars().zip("bcdefghi".chars()) {
        let names = vec![format!("*{from}"); 9].join(",");
        bomb += &format!("{to}: &{to} [{names}]\n");
    }
    refused(&POST.replace("json", "yaml"), &bomb, 400, "BadRequest");
    refused(POST, &" ".repeat(4 << 20), 413, "RequestEntityTooLarge");
    let path = format!("GET /api/v1/nodes/{} HTTP/1.1", "x".repeat(60_000));
    assert!(matches!(raw(&address, &path, b"").0, 404 | 414 | 431));
    // Whoever announces more than is read is not waited for.
    let mut announced = TcpStream::connect(&address).unwrap();
    let head = format!("{POST}\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n");
    announced.write_all(head.as_bytes()).unwrap();
    announced.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = [0; 12];
    announced.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    assert!(companion.rss() < 100 << 20, "{}", companion.rss());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_keep_nobody_out_for_long() {
    let companion = Companion::start(&["--no-controllers", "--max-connections", "64"]).await;
    let address = companion.address();
    // More than are served at once, none of which ever finishes its request.
    let silent: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut stream = TcpStream::connect(&address).unwrap();
            stream.write_all(b"GET /version HT").unwrap();
            stream
        })
        .collect();
    let (code, _) = tokio::task::spawn_blocking(move || {
        let mut last = (0, Value::Null);
        for _ in 0..3 {
            last = raw(&address, "GET /version HTTP/1.1", b"");
            if last.0 == 200 {
                break;
            }
        }
        last
    })
    .await
    .unwrap();
    drop(silent);
    assert_eq!(code, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_does_not_read_is_dropped_and_costs_nothing() {
    let flags = ["--no-controllers", "--history", "0", "--history-size", "1"];
    let companion = Companion::start(&flags).await;
    let mut stuck = TcpStream::connect(companion.address()).unwrap();
    stuck
        .write_all(b"GET /api/v1/namespaces/default/configmaps?watch=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let client = companion.client().await;
    let mut large = config_map("large");
    large["data"]["a"] = Value::String("x".repeat(500_000));
    for i in 0..60 {
        large["metadata"]["name"] = Value::String(format!("large-{i}"));
        post(&client, "/api/v1/namespaces/default/configmaps", &large).await.unwrap();
        let path = format!("/api/v1/namespaces/default/configmaps/large-{i}");
        let delete = http::Request::delete(path).body(Vec::new()).unwrap();
        client.request::<Value>(delete).await.unwrap();
    }
    assert!(companion.rss() < 150 << 20, "{}", companion.rss());
}

/// A request on a connection that stays.
fn ask_again(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = vec![0; 4096];
    let n = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..n]).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_half_open_connections_cost_little_and_end() {
    let companion = Companion::start(&["--no-controllers"]).await;
    let address = companion.address();
    let mut known = TcpStream::connect(&address).unwrap();
    known.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert!(ask_again(&mut known).starts_with("HTTP/1.1 200"));
    let begin = |_| {
        let address = address.clone();
        tokio::spawn(async move {
            // Beyond what is served at once, a connection waits in the kernel, or to be made.
            let connecting = tokio::net::TcpStream::connect(address);
            let mut stream =
                tokio::time::timeout(Duration::from_secs(2), connecting).await.ok()?.ok()?;
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET /version HT").await.ok()?;
            Some(stream)
        })
    };
    let mut half_open = Vec::new();
    for waiting in (0..10_000).map(begin).collect::<Vec<_>>() {
        half_open.extend(waiting.await.unwrap());
    }
    assert!(half_open.len() > 4096, "{} are open", half_open.len());
    assert!(ask_again(&mut known).starts_with("HTTP/1.1 200"), "who is in is served");
    assert!(companion.rss() < 200 << 20, "{}", companion.rss());
    // Each is given ten seconds; nobody has to let go.
    eventually("a newcomer is served", || async {
        let address = address.clone();
        let asked =
            tokio::task::spawn_blocking(move || raw(&address, "GET /version HTTP/1.1", b"").0);
        (asked.await.unwrap() == 200).then_some(())
    })
    .await;
    drop(half_open);
}
