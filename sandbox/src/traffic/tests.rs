//! Clients against the hello server, on the loopback device.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use super::*;
use crate::hello::Hello;

/// Sends a little of `protocol` to a server at `[::]`, as reached by `ip`.
async fn tally(protocol: Protocol, ip: impl Into<IpAddr>) -> Tally {
    let server = Hello::bind("web-1", (Ipv6Addr::UNSPECIFIED, 0).into()).await.unwrap();
    let target = SocketAddr::new(ip.into(), server.local_addr().unwrap().port());
    tally_of(protocol, target, server.serve(std::future::pending())).await
}

async fn tally_of(
    protocol: Protocol,
    target: SocketAddr,
    server: impl Future<Output = io::Result<()>>,
) -> Tally {
    let until = Until::Over(Duration::from_millis(100));
    let load = Load { target, protocol, rate: 500, until, timeout: Duration::from_secs(5) };
    tally_of_load(&load, server).await
}

async fn tally_of_load(load: &Load, server: impl Future<Output = io::Result<()>>) -> Tally {
    let mut last = Tally::default();
    let client = run(load, std::future::pending(), Duration::from_millis(10), |tally| {
        last = tally.clone();
        Ok(())
    });
    tokio::select! {
        ended = server => panic!("the server ended: {ended:?}"),
        sent = client => sent.unwrap(),
    }
    last
}

#[tokio::test]
async fn every_protocol_gets_its_answer_over_both_families() {
    for protocol in Protocol::ALL {
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let tally = tally(protocol, ip).await;
            assert_eq!(tally.failures, BTreeMap::new(), "{protocol} {ip}");
            assert!(tally.done && tally.answered > 10, "{protocol} {ip}: {tally:?}");
            let answer = match protocol {
                Protocol::HttpSource => ip.to_string(),
                _ => "web-1".to_owned(),
            };
            assert_eq!(tally.answers.keys().collect::<Vec<_>>(), [&answer], "{protocol} {ip}");
            let peer = tally.peers.keys().next().unwrap();
            assert_eq!(peer.parse::<SocketAddr>().unwrap().ip(), ip);
        }
    }
}

#[tokio::test]
async fn so_many_requests_are_sent_and_no_more() {
    for protocol in Protocol::ALL {
        let server = Hello::bind("web-1", (Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let (target, rate) = (server.local_addr().unwrap(), 1000);
        let (until, timeout) = (Until::Sent(7), Duration::from_secs(20));
        let load = Load { target, protocol, rate, until, timeout };
        let tally = tally_of_load(&load, server.serve(std::future::pending())).await;
        assert_eq!((tally.requests, tally.answered), (7, 7), "{protocol}: {tally:?}");
    }
}

#[tokio::test]
async fn a_mapped_address_is_sent_to_through_an_ipv6_socket() {
    for protocol in Protocol::ALL {
        let tally = tally(protocol, Ipv4Addr::LOCALHOST.to_ipv6_mapped()).await;
        assert_eq!(tally.failures, BTreeMap::new(), "{protocol}");
        assert!(tally.peers.keys().all(|peer| peer.starts_with("[::ffff:127.0.0.1]")), "{tally:?}");
    }
}

#[tokio::test]
async fn nobody_listening_is_refused_and_named() {
    let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = free.local_addr().unwrap();
    drop(free);
    let tally = tally_of(Protocol::Tcp, target, std::future::pending()).await;
    assert!(tally.failed > 10);
    assert_eq!(tally.failures.keys().collect::<Vec<_>>(), ["connect: ECONNREFUSED"]);
}

#[tokio::test]
async fn a_server_asked_to_end_finishes_open_connections() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let server = Hello::bind("web-1", (Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let address = server.local_addr().unwrap();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let serving = server.serve(async { ended.await.unwrap() });
    let client = async {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"hi\n").await.unwrap();
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).await.unwrap();
        end.send(()).unwrap();
        while tokio::net::TcpStream::connect(address).await.is_ok() {}
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (served, answer) = tokio::join!(serving, client);
    served.unwrap();
    assert!(answer.ends_with("\r\n\r\nweb-1\n"), "{answer}");
}

#[tokio::test]
async fn kept_connections_are_as_many_as_requests_a_second_and_one_that_is_cut_has_failed() {
    use std::cell::Cell;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;

    const N: usize = 20;
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let target = listener.local_addr().unwrap();
    let accepted = Cell::new(0);
    let server = async {
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let is_cut = accepted.replace(accepted.get() + 1) == 0;
            connections.spawn(async move {
                let mut question = [0; request::QUESTION.len()];
                while stream.read_exact(&mut question).await.is_ok() {
                    stream.write_all(b"web-1\n").await.unwrap();
                    if is_cut {
                        return;
                    }
                }
            });
        }
    };
    let (rate, timeout) = (u32::try_from(N).unwrap(), Duration::from_secs(20));
    let load = Load { target, protocol: Protocol::TcpKept, rate, until: Until::Told, timeout };
    let enough = Notify::new();
    let mut last = Tally::default();
    let client = run(&load, enough.notified(), Duration::from_millis(10), |tally| {
        last = tally.clone();
        if tally.requests > 3 * u64::try_from(N).unwrap() {
            enough.notify_one();
        }
        Ok(())
    });
    tokio::select! {
        () = server => {}
        sent = client => sent.unwrap(),
    }
    assert_eq!(last.failed, 1, "{last:?}");
    assert_eq!(accepted.get(), N + 1, "{last:?}");
}
