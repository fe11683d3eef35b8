//! A fake API server on loopback. The test answers every call about Services and Events itself;
//! the other kinds list what the test put there and are quiet from then on.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

type Body = BoxBody<Bytes, std::io::Error>;

const SCRIPTED: [&str; 2] = ["services", "events"];

pub(crate) struct Server {
    port: u16,
    scripted: mpsc::Receiver<Call>,
    shared: Arc<Shared>,
    quiet: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

struct Shared {
    scripted: mpsc::Sender<Call>,
    calls: Mutex<Vec<Seen>>,
    objects: Mutex<BTreeMap<String, Value>>,
    /// Until it is true the quiet kinds wait for their objects.
    quiet: watch::Receiver<bool>,
}

/// A call as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) accept: String,
    query: String,
    method: String,
    body: Bytes,
}

/// A call that waits for its answer.
pub(crate) struct Call {
    seen: Seen,
    answer: oneshot::Sender<Response<Body>>,
}

/// An open watch.
pub(crate) struct Stream {
    events: mpsc::Sender<Result<Bytes, std::io::Error>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, scripted) = mpsc::channel(16);
        let (quiet, is_quiet) = watch::channel(false);
        let shared = Arc::new(Shared {
            scripted: sender,
            calls: Mutex::default(),
            objects: Mutex::default(),
            quiet: is_quiet,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&shared)));
        Self { port, scripted, shared, quiet, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The next call about a scripted kind, which must be this one. From the first call on, the
    /// other kinds answer.
    pub(crate) async fn next(&mut self, kind: &str) -> Call {
        self.answer_quietly();
        let next = timeout(Duration::from_secs(20), self.scripted.recv()).await;
        let next = next.expect("a call in time").unwrap();
        assert!(next.seen.is_about(kind), "about {kind}: {:?}", next.seen);
        next
    }

    /// An object of another kind, or the Status that is all the answer.
    pub(crate) fn have(&self, kind: &str, object: Value) {
        self.shared.objects.lock().unwrap().insert(kind.to_owned(), object);
    }

    pub(crate) fn answer_quietly(&self) {
        self.quiet.send_replace(true);
    }

    /// What was asked about the other kinds so far.
    pub(crate) fn quiet_calls(&self) -> Vec<Seen> {
        self.shared.calls.lock().unwrap().clone()
    }
}

impl Seen {
    fn is_about(&self, kind: &str) -> bool {
        self.path.split('/').rev().take(2).any(|part| part == kind)
    }

    /// A parameter, decoded as far as selectors need it; empty when absent.
    pub(crate) fn query(&self, key: &str) -> String {
        let mut pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        let value = pairs.find(|(name, _)| *name == key).map_or("", |(_, value)| value);
        value.replace("%21", "!").replace("%2F", "/").replace("%3D", "=")
    }
}

impl Call {
    pub(crate) fn path(&self) -> &str {
        &self.seen.path
    }

    pub(crate) fn method(&self) -> &str {
        &self.seen.method
    }

    pub(crate) fn body(&self) -> Value {
        serde_json::from_slice(&self.seen.body).unwrap()
    }

    pub(crate) fn query(&self, key: &str) -> String {
        self.seen.query(key)
    }

    pub(crate) fn json(self, code: u16, body: &Value) {
        drop(self.answer.send(json_response(code, body)));
    }

    pub(crate) fn stream(self) -> Stream {
        assert_eq!(self.query("watch"), "true", "a watch: {:?}", self.seen);
        let (events, receiver) = mpsc::channel(16);
        drop(self.answer.send(stream_response(receiver)));
        Stream { events }
    }
}

impl Stream {
    pub(crate) async fn say(&self, event: &Value) {
        self.events.send(Ok(format!("{event}\n").into())).await.unwrap();
    }

    /// Half an event, and the connection is reset.
    pub(crate) async fn break_off(self) {
        self.events.send(Ok(Bytes::from_static(b"{\"type\": \"ADD"))).await.unwrap();
        self.events.send(Err(std::io::Error::other("as scripted"))).await.unwrap();
    }

    /// Leaves it open for as long as the server lives.
    pub(crate) fn keep(self) {
        std::mem::forget(self.events);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, Arc::clone(&shared)));
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(request, &shared).await) }
    });
    let server = hyper::server::conn::http1::Builder::new();
    // A client that goes away is no failure.
    drop(server.serve_connection(TokioIo::new(stream), service).await);
}

async fn answer(request: Request<Incoming>, shared: &Shared) -> Response<Body> {
    let (head, body) = request.into_parts();
    let accept = head.headers.get("accept").and_then(|value| value.to_str().ok());
    let seen = Seen {
        path: head.uri.path().to_owned(),
        accept: accept.unwrap_or_default().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        method: head.method.to_string(),
        body: body.collect().await.unwrap().to_bytes(),
    };
    let kind = seen.path.rsplit('/').next().unwrap().to_owned();
    if SCRIPTED.iter().any(|scripted| seen.is_about(scripted)) {
        let (sender, receiver) = oneshot::channel();
        shared.scripted.send(Call { seen, answer: sender }).await.unwrap();
        return receiver.await.unwrap_or_else(|_| json_response(500, &json!({})));
    }
    shared.calls.lock().unwrap().push(seen.clone());
    if seen.query("watch") == "true" {
        let (events, receiver) = mpsc::channel(1);
        std::mem::forget(events);
        return stream_response(receiver);
    }
    shared.quiet.clone().wait_for(|quiet| *quiet).await.unwrap();
    let objects = shared.objects.lock().unwrap();
    let items: Vec<_> = objects.get(&kind).into_iter().collect();
    if let [refusal] = items.as_slice()
        && let Some(code) = refusal.get("code").and_then(Value::as_u64)
    {
        return json_response(code.try_into().unwrap(), refusal);
    }
    let list = json!({
        "apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "2"}, "items": items,
    });
    json_response(200, &list)
}

fn json_response(code: u16, body: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_string()));
    let body = body.map_err(|never| match never {}).boxed();
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}

fn stream_response(mut events: mpsc::Receiver<Result<Bytes, std::io::Error>>) -> Response<Body> {
    let frames = futures::stream::poll_fn(move |context| {
        events.poll_recv(context).map(|event| event.map(|bytes| bytes.map(Frame::data)))
    });
    Response::builder()
        .header("content-type", "application/json")
        .body(BodyExt::boxed(StreamBody::new(frames)))
        .unwrap()
}
