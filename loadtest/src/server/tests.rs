//! A server and a generator face to face, over loopback. Where a time is checked, it is one that
//! the machine's noise does not reach.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::clock::{MILLISECOND, SECOND};
use crate::generator::{Generator, Hand, Slice, Threads};
use crate::histogram::Latencies;
use crate::kind::{Kind, Load};
use crate::tally::Tally;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn server(name: &str, delay: Delay) -> Server {
    let listen = (LOOPBACK, 0).into();
    let (name, processors) = (name.to_owned(), Vec::new());
    Server::start(&Answering { name, listen, n_threads: 1, processors, delay }).unwrap()
}

fn load(kind: Kind, targets: Vec<SocketAddr>) -> Load {
    Load {
        kind,
        targets,
        concurrency: 4,
        rate: None,
        payload: 10,
        requests_per_connection: kind.requests_per_connection(),
        sources: Vec::new(),
        timeout: 10 * SECOND,
        name: "web.default.svc.cluster.local".to_owned(),
        path: "/".to_owned(),
    }
}

fn generator() -> Generator {
    Generator::start(&Threads { n_threads: 2, ..Threads::default() }).unwrap()
}

fn run(load: &Load, nanos: u64) -> Tally {
    let mut generator = generator();
    let arm = generator.prepare(load).unwrap();
    generator.run(arm, Slice { nanos, keeps_hits: false }).unwrap()
}

/// As many slices as it takes until `n` requests have ended: the machine may be busy.
fn run_until(generator: &mut Generator, arm: usize, n: u64) -> Tally {
    let slice = Slice { nanos: 20 * MILLISECOND, keeps_hits: true };
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut sum = Tally::default();
    while sum.n_answered + sum.n_failed() < n {
        assert!(Instant::now() < deadline, "{sum:?}");
        sum.add(generator.run(arm, slice).unwrap());
    }
    sum
}

#[test]
fn every_kind_of_request_is_answered_by_name() {
    let server = server("web-1", Delay::default());
    for kind in Kind::ALL {
        for bound in [0, 1, 3] {
            let mut load = load(kind, vec![server.address()]);
            load.requests_per_connection = bound;
            let mut generator = generator();
            let arm = generator.prepare(&load).unwrap();
            let tally = run_until(&mut generator, arm, 100);
            assert_eq!(tally.errors.len(), 0, "{kind}: {tally:?}");
            if !matches!(kind, Kind::Connect | Kind::Dns) {
                let hits = tally.endpoints["web-1"];
                assert_eq!(hits.n_requests, tally.n_answered);
                let n = hits.n_connections;
                match bound {
                    0 => assert_eq!(n, 4),
                    1 => assert_eq!(n, hits.n_requests),
                    _ => assert!(n.abs_diff(hits.n_requests / 3) <= 4, "{kind}: {hits:?}"),
                }
            }
        }
    }
}

#[test]
fn percentiles_of_a_known_delay_are_right_within_two_percent() {
    // Half of the answers after 300 ms, 30 % after 600, 15 % after 1200, 5 % after 2400: in turn, so
    // that there is no chance in it, and long enough for 2 % of it to be more than a busy machine's
    // noise.
    let in_turn = [
        300, 600, 300, 1200, 300, 600, 300, 600, 300, 1200, //
        300, 600, 300, 1200, 300, 600, 300, 600, 300, 2400,
    ];
    let in_turn = in_turn.into_iter().map(Duration::from_millis).collect();
    let server = server("slow", Delay { in_turn, stall: None });
    let mut load = load(Kind::Http, vec![server.address()]);
    load.concurrency = 200;
    load.rate = Some(100);
    let tally = run(&load, 2 * SECOND);
    assert_eq!(tally.n_answered, 200);
    let mut latencies = Latencies::new();
    latencies.add(&tally.latencies);
    // Near the lower end of each step, because a busy machine only ever adds.
    for (q, millis) in [(0.05, 300), (0.53, 600), (0.82, 1200), (0.96, 2400)] {
        let ought = (millis * MILLISECOND) as f64;
        let is = latencies.quantile(q) as f64;
        assert!((is / ought - 1.0).abs() < 0.02, "p{}: {is} and not {ought}", q * 100.0);
    }
}

#[test]
fn a_stalled_second_shows_in_the_open_loop_and_hides_in_the_closed_one() {
    let stall = Some((Duration::from_millis(500), Duration::from_secs(1)));
    let p999 = |rate| {
        let server = server("stalls", Delay { in_turn: Vec::new(), stall });
        let mut load = load(Kind::Rr, vec![server.address()]);
        load.rate = rate;
        let mut latencies = Latencies::new();
        latencies.add(&run(&load, 2 * SECOND).latencies);
        latencies.quantile(0.999) as f64 / SECOND as f64
    };
    let open = p999(Some(1000));
    assert!((0.9..3.0).contains(&open), "{open} s");
    let closed = p999(None);
    assert!(closed < 0.5, "{closed} s");
}

#[test]
fn a_closed_port_is_refused_and_a_silent_one_times_out() {
    let closed = TcpListener::bind((LOOPBACK, 0)).unwrap().local_addr().unwrap();
    let mut generator = generator();
    let arm = generator.prepare(&load(Kind::Tcp, vec![closed])).unwrap();
    let tally = run_until(&mut generator, arm, 1);
    assert_eq!((tally.n_answered, tally.errors["connection refused"]), (0, tally.n_failed()));

    let silent = TcpListener::bind((LOOPBACK, 0)).unwrap();
    let mut load = load(Kind::Http, vec![silent.local_addr().unwrap()]);
    load.timeout = 50 * MILLISECOND;
    let arm = generator.prepare(&load).unwrap();
    let tally = run_until(&mut generator, arm, 1);
    assert_eq!(tally.errors["timed out"], tally.n_failed());
    // What was given up has waited as long as it was given.
    let least = tally.latencies.0.first().unwrap().0;
    assert!(least >= load.timeout, "{tally:?}");
}

#[test]
fn a_server_that_goes_is_seen_and_one_that_comes_back_is_found() {
    let listener = TcpListener::bind((LOOPBACK, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let mut generator = generator();
    let arm = generator.prepare(&load(Kind::Rr, vec![address])).unwrap();
    drop(listener);
    assert_eq!(run_until(&mut generator, arm, 1).n_answered, 0);
    let answering = Answering {
        name: "back".to_owned(),
        listen: address,
        n_threads: 1,
        processors: Vec::new(),
        delay: Delay::default(),
    };
    let server = Server::start(&answering).unwrap();
    // Those that were refused are resting, and nobody else is.
    assert!(run_until(&mut generator, arm, 1).errors.is_empty());
    drop(server);
    assert_eq!(run_until(&mut generator, arm, 1).n_answered, 0);
}

#[test]
fn sources_are_taken_in_turn() {
    let server = server("web-1", Delay::default());
    let mut load = load(Kind::Tcp, vec![server.address()]);
    load.sources = vec!["127.0.0.2".parse().unwrap(), "127.0.0.3".parse().unwrap()];
    let mut generator = generator();
    let arm = generator.prepare(&load).unwrap();
    assert!(run_until(&mut generator, arm, 10).errors.is_empty());
    load.sources = vec!["192.0.2.77".parse().unwrap()];
    let arm = generator.prepare(&load).unwrap();
    let tally = run_until(&mut generator, arm, 1);
    assert_eq!(tally.errors["no free local port or address"], tally.n_failed());
}

#[test]
fn the_times_of_hits_are_kept_if_asked_for() {
    let server = server("web-1", Delay::default());
    let mut generator = generator();
    let arm = generator.prepare(&load(Kind::Tcp, vec![server.address()])).unwrap();
    let tally = run_until(&mut generator, arm, 10);
    let n: u64 = tally.hits.iter().map(|(_, _, n)| n).sum();
    assert_eq!(n, tally.n_answered);
    let begins = tally.begin - MILLISECOND;
    assert!(tally.hits.iter().all(|(at, name, _)| *at >= begins && name == "web-1"));
}
