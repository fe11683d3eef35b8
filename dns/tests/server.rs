//! The server over real sockets on loopback.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::unreachable,
    reason = "a harness fails loudly"
)]

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dns::config::Options;
use dns::server::{Admin, Listen, Ports, Server, Sources, follow, saved};
use dns::zone::{Origin, ZoneView};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use model::applied::{Applied, Routed, applied};
use model::cluster::{Change, Dirty, Snapshot};
use model::name::Protocol;
use model::watch;
use tokio::task::JoinSet;

const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: []
endpoints:
";
const SOON: Duration = Duration::from_secs(10);

/// `web`, and `db` with this many endpoints.
async fn snapshot(n_endpoints: usize) -> Snapshot {
    let mut objects = OBJECTS.to_owned();
    for n in 0..n_endpoints {
        let address = format!("10.1.{}.{}", n / 200, n % 200);
        writeln!(objects, "- {{addresses: [{address}], hostname: db-{n}}}").unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("objects.yaml"), objects).unwrap();
    let mut watch = watch::files(dir.path(), "node-a").unwrap();
    tokio::select! {
        update = watch.feed.next() => update.unwrap().snapshot,
        () = watch.task => unreachable!("the watch ended"),
    }
}

async fn start(listen: &str) -> Server {
    let options = Arc::new(Options::default());
    let view = ZoneView::build(options, &snapshot(80).await, Origin::Watch, 1);
    let addresses = vec![listen.parse().unwrap()];
    Server::start(&Listen { addresses, n_workers: 2, sources: Sources::Any, led: Vec::new() }, view)
        .unwrap()
}

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

fn client(server: SocketAddr) -> UdpSocket {
    let own = if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let socket = UdpSocket::bind(own).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn receive(socket: &UdpSocket) -> Message {
    let mut buffer = [0; 4096];
    let len = socket.recv(&mut buffer).unwrap();
    Message::from_vec(&buffer[..len]).unwrap()
}

fn read_frame(stream: &mut TcpStream) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).unwrap();
    Message::from_vec(&message).unwrap()
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
}

/// On more than one thread, so that a test may block.
fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

#[test]
fn udp_is_answered_over_both_families() {
    block_on(async {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let server = start(listen).await;
            let socket = client(server.addresses()[0]);
            socket.send(&query(7, "web.shop.svc.cluster.local")).unwrap();
            let answer = receive(&socket);
            assert_eq!((answer.metadata.id, answer.answers.len()), (7, 1));
            server.stop().await;
        }
    });
}

#[test]
fn bound_to_every_address_it_answers_from_the_one_that_was_asked() {
    block_on(async {
        // The kernel would choose 127.0.0.1 as the source; a connected client hears nobody else.
        for (listen, asked) in
            [("0.0.0.0:0", "127.9.8.7"), ("[::]:0", "127.9.8.7"), ("[::]:0", "::1")]
        {
            let server = start(listen).await;
            let port = server.addresses()[0].port();
            let socket = client(SocketAddr::new(asked.parse().unwrap(), port));
            socket.send(&query(7, "web.shop.svc.cluster.local")).unwrap();
            assert_eq!(receive(&socket).answers.len(), 1, "{listen} {asked}");
            server.stop().await;
        }
    });
}

#[test]
fn a_burst_is_answered_whole_among_garbage() {
    block_on(async {
        let server = start("127.0.0.1:0").await;
        let socket = client(server.addresses()[0]);
        for id in 0..100 {
            socket.send(&query(id, "web.shop.svc.cluster.local")).unwrap();
            socket.send(&[]).unwrap();
            socket.send(&[0x80; 40]).unwrap();
            socket.send(b"garbage").unwrap();
        }
        let mut ids: Vec<u16> = (0..100).map(|_| receive(&socket).metadata.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..100).collect::<Vec<_>>());
        let dropped = |page: &str, reason: &str| {
            page.contains(&format!("fairlead_dns_dropped_total{{reason=\"{reason}\"}} 100\n"))
        };
        let deadline = Instant::now() + SOON;
        let names = server.names();
        while !dropped(&names.metrics(), "response") || !dropped(&names.metrics(), "short") {
            assert!(Instant::now() < deadline, "{}", names.metrics());
            std::thread::yield_now();
        }
        server.stop().await;
    });
}

#[test]
fn what_is_cut_over_udp_is_whole_over_tcp() {
    block_on(async {
        let server = start("127.0.0.1:0").await;
        let address = server.addresses()[0];
        let socket = client(address);
        socket.send(&query(1, "db.shop.svc.cluster.local")).unwrap();
        let cut = receive(&socket);
        assert!(cut.metadata.truncation && cut.answers.len() < 80);
        let mut stream = connect(address);
        stream.write_all(&framed(&query(1, "db.shop.svc.cluster.local"))).unwrap();
        let whole = read_frame(&mut stream);
        assert!(!whole.metadata.truncation);
        assert_eq!(whole.answers.len(), 80);
        server.stop().await;
    });
}

#[test]
fn each_question_begins_with_another_endpoint() {
    block_on(async {
        let server = start("127.0.0.1:0").await;
        let socket = client(server.addresses()[0]);
        let first = || {
            socket.send(&query(1, "db.shop.svc.cluster.local")).unwrap();
            receive(&socket).answers[0].clone()
        };
        assert_ne!(first(), first());
        server.stop().await;
    });
}

#[test]
fn tcp_questions_may_follow_each_other_and_come_in_pieces() {
    block_on(async {
        let server = start("127.0.0.1:0").await;
        let mut stream = connect(server.addresses()[0]);
        stream.set_nodelay(true).unwrap();
        let all: Vec<u8> =
            (0..50).flat_map(|id| framed(&query(id, "nope.shop.svc.cluster.local"))).collect();
        for piece in all.chunks(13) {
            stream.write_all(piece).unwrap();
        }
        for id in 0..50 {
            let answer = read_frame(&mut stream);
            assert_eq!(answer.metadata.id, id);
            assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        }
        // Garbage ends the conversation.
        stream.write_all(&framed(&[0x80; 20])).unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
        server.stop().await;
    });
}

#[test]
fn one_client_cannot_take_all_connections() {
    block_on(async {
        let server = start("127.0.0.1:0").await;
        let address = server.addresses()[0];
        let mut held: Vec<TcpStream> = (0..80).map(|_| connect(address)).collect();
        let question = framed(&query(1, "web.shop.svc.cluster.local"));
        let served = held.iter_mut().filter_map(|stream| {
            stream.write_all(&question).ok()?;
            stream.read(&mut [0; 512]).ok().filter(|n| *n > 0)
        });
        assert_eq!(served.count(), 64);
        drop(held);
        server.stop().await;
    });
}

#[test]
fn a_change_is_answered_from_the_next_question_on() {
    block_on(async {
        let server = start("127.0.0.1:0").await;
        let socket = client(server.addresses()[0]);
        let names = server.names();
        for n in 1..20 {
            let after = snapshot(n).await;
            names.publish(names.view().update(&after, &Dirty::everything(), Origin::Watch, 2));
            socket.send(&query(1, "db.shop.svc.cluster.local")).unwrap();
            assert_eq!(receive(&socket).answers.len(), n);
        }
        server.stop().await;
    });
}

#[test]
fn two_servers_share_an_address_so_that_one_can_follow_the_other() {
    block_on(async {
        let first = start("127.0.0.1:0").await;
        let address = first.addresses()[0];
        let second = start(&address.to_string()).await;
        first.stop().await;
        for id in 0..50 {
            let socket = client(address);
            socket.send(&query(id, "web.shop.svc.cluster.local")).unwrap();
            assert_eq!(receive(&socket).metadata.id, id);
        }
        second.stop().await;
    });
}

fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = connect(address);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap();
    (code.parse().unwrap(), body.to_owned())
}

#[test]
fn pages_say_what_those_of_coredns_say() {
    block_on(async {
        let view = ZoneView::empty(Arc::new(Options::default()));
        let addresses = vec!["127.0.0.1:0".parse().unwrap()];
        let listen = Listen { addresses, n_workers: 1, sources: Sources::Any, led: Vec::new() };
        let server = Server::start(&listen, view).unwrap();
        let any = Some("127.0.0.1:0".parse().unwrap());
        let ports = Ports { health: any, ready: any, metrics: any };
        let admin = Admin::start(ports, &server.names()).unwrap();
        let [health, ready, metrics] = admin.addresses() else { unreachable!("three pages") };
        assert_eq!(get(*health, "/health"), (200, "OK".to_owned()));
        assert_eq!(get(*ready, "/ready"), (503, "kubernetes\n".to_owned()));
        assert_eq!(get(*ready, "/metrics").0, 404);
        let socket = client(server.addresses()[0]);
        socket.send(&query(1, "web.shop.svc.cluster.local")).unwrap();
        assert_eq!(receive(&socket).metadata.response_code, ResponseCode::ServFail);
        let names = server.names();
        let listed = snapshot(3).await;
        names.publish(names.view().update(&listed, &Dirty::everything(), Origin::Watch, 2));
        assert_eq!(get(*ready, "/ready"), (200, "OK".to_owned()));
        let (_, page) = get(*metrics, "/metrics");
        assert!(page.contains("rcode=\"SERVFAIL\",plugin=\"kubernetes\"} 1\n"), "{page}");
        assert!(page.contains("proto=\"udp\",family=\"1\",type=\"A\"} 1\n"), "{page}");
        assert!(page.contains("fairlead_dns_views_total 1\n"), "{page}");
        admin.retire();
        assert_eq!(get(*ready, "/ready"), (503, "lameduck\n".to_owned()));
        admin.stop().await;
        server.stop().await;
    });
}

#[test]
fn what_is_saved_is_read_as_it_was() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("deep/names.json");
        let before = snapshot(80).await;
        saved::write(&file, &before).unwrap();
        let after = saved::read(&file).unwrap();
        let view = |snapshot| ZoneView::build(Arc::default(), snapshot, Origin::Saved, 1);
        let (a, b) = (view(&before), view(&after));
        assert_eq!((a.n_services(), b.n_services()), (2, 2));
        let v4 = |view: &ZoneView, key| view.service(dns::query::Key(key)).unwrap().v4().to_vec();
        for key in [&b"\x03web\x04shop"[..], b"\x02db\x04shop"] {
            assert_eq!(v4(&a, key), v4(&b, key));
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let half: String = text.lines().take(2).map(|line| format!("{line}\n")).collect();
        std::fs::write(&file, half).unwrap();
        assert!(matches!(saved::read(&file), Err(saved::SavedError::Foreign { .. })));
        let old = text.replacen("\"written\":", "\"written\":1,\"was\":", 1);
        std::fs::write(&file, old).unwrap();
        assert!(matches!(saved::read(&file), Err(saved::SavedError::Old { .. })));
    });
}

#[test]
fn a_server_stops_at_once_whoever_is_connected() {
    block_on(async {
        let server = start("127.0.0.1:0").await;
        let held = connect(server.addresses()[0]);
        let started = Instant::now();
        server.stop().await;
        assert!(started.elapsed() < Duration::from_secs(5));
        drop(held);
    });
}

/// What is said to a question for the address of `web`: asks until it is something else than SERVFAIL.
fn first_word(socket: &UdpSocket) -> ResponseCode {
    let asked = Instant::now();
    loop {
        socket.send(&query(1, "web.shop.svc.cluster.local")).unwrap();
        let code = receive(socket).metadata.response_code;
        if code != ResponseCode::ServFail {
            return code;
        }
        assert!(asked.elapsed() < SOON, "SERVFAIL for too long");
    }
}

#[test]
fn a_name_is_told_once_its_address_is_routed_or_after_a_second() {
    block_on(async {
        let empty = ZoneView::empty(Arc::new(Options::default()));
        let addresses = vec!["127.0.0.1:0".parse().unwrap()];
        let listen = Listen { addresses, n_workers: 1, sources: Sources::Any, led: Vec::new() };
        let server = Server::start(&listen, empty).unwrap();
        let socket = client(server.addresses()[0]);
        let (script, watch) = watch::script("node-a");
        let (teller, reader) = applied();
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(watch.feed, server.names(), Some(reader)));
        tasks.spawn(watch.task);
        let state = snapshot(1).await;
        let web = &state.services.iter().find(|(name, _)| &*name.name == "web").unwrap().1;
        let web = web.service.clone().unwrap();
        script.list([]).await.unwrap();

        let (teller, routed) = (
            Arc::new(teller),
            Routed { address: "10.96.0.10".parse().unwrap(), port: 80, protocol: Protocol::Tcp },
        );
        let until = |metric: &str| {
            let from = Instant::now();
            while !server.names().metrics().contains(metric) {
                assert!(from.elapsed() < SOON, "{metric} is not said");
            }
        };
        // Waits, and is told when the proxy has written it.
        script.say([Change::Service(Arc::clone(&web))]).await.unwrap();
        until("fairlead_dns_names_held_total 1");
        socket.send(&query(1, "web.shop.svc.cluster.local")).unwrap();
        assert_eq!(receive(&socket).metadata.response_code, ResponseCode::ServFail);
        teller.publish(Applied { routed: [routed].into_iter().collect() });
        assert_eq!(first_word(&socket), ResponseCode::NoError);
        // It was told by the proxy, and not by the clock.
        assert!(server.names().metrics().contains("fairlead_dns_names_overdue_total 0"));

        // Goes, and comes back while the proxy is stuck.
        script.say([Change::ServiceGone(web.name.clone())]).await.unwrap();
        teller.publish(Applied::default());
        let gone = Instant::now();
        while first_word(&socket) != ResponseCode::NXDomain {
            assert!(gone.elapsed() < SOON);
        }
        script.say([Change::Service(web)]).await.unwrap();
        until("fairlead_dns_names_held_total 2");
        assert_eq!(first_word(&socket), ResponseCode::NoError);
        until("fairlead_dns_names_overdue_total 1");
        tasks.shutdown().await;
        server.stop().await;
    });
}
