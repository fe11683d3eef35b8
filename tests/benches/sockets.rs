//! How long does it take to end the UDP sockets of 1,000 pods whose endpoint has gone?
//!
//! One connected socket is to be ended in each of 1,000 network namespaces, and one beside it is not. A
//! round opens them, ends them as the proxy does when an endpoint goes, and makes sure of both.
//!
//! `cargo xtask bench sockets [ROUNDS]`; the aim is 100 ms.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench fails loudly")]

use std::env;
use std::time::Instant;

use loadtest::ratio::quantile;
use proxy::sockets;
use sandbox::Sandbox;
use tests::namespaces::Namespaces;

const NAMESPACES: usize = 1000;
const AIM_MS: f64 = 100.0;

fn main() {
    let words: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
    let rounds = words.first().and_then(|word| word.parse().ok()).unwrap_or(15);
    let sandbox = Sandbox::create("bench-sockets").unwrap();
    let node = sandbox.node("node-a").unwrap();
    let namespaces = Namespaces::create(&sandbox, &node, NAMESPACES);
    let times: Vec<f64> = (0..rounds).map(|_| round(&namespaces)).collect();
    let [p50, p99] = [0.5, 0.99].map(|q| quantile(times.iter().copied(), q));
    let slowest = times.iter().copied().fold(0.0, f64::max);
    println!("one of two sockets in each of {NAMESPACES} namespaces, {rounds} rounds");
    println!("p50 {p50:.1} ms, p99 {p99:.1} ms, max {slowest:.1} ms");
    println!("{AIM_MS} ms: {}", if p99 < AIM_MS { "met" } else { "missed" });
}

/// Milliseconds.
fn round(namespaces: &Namespaces<'_>) -> f64 {
    let sockets = namespaces.connect();
    let stale = sockets.stale.clone();
    let began = Instant::now();
    let n = sockets::destroy(stale);
    let took = began.elapsed().as_secs_f64() * 1e3;
    assert_eq!(n, NAMESPACES);
    sockets.are_ended_where_stale();
    took
}
