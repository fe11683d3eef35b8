//! How long it takes to end the sockets of a node full of pods.

use std::time::Instant;

use proxy::sockets;
use sandbox::Sandbox;
use tests::namespaces::Namespaces;

const N: usize = 1000;

#[test]
fn stale_sockets_of_a_thousand_namespaces_are_ended_and_no_others() {
    let sandbox = Sandbox::create("udp-destroy").unwrap();
    let node = sandbox.node("node-a").unwrap();
    let namespaces = Namespaces::create(&sandbox, &node, N);
    let sockets = namespaces.connect();
    let stale = sockets.stale.clone();
    let started = Instant::now();
    let n = sockets::destroy(stale);
    println!("{n} sockets in {N} namespaces: {:.0} ms", started.elapsed().as_secs_f64() * 1e3);
    assert_eq!(n, N);
    sockets.are_ended_where_stale();
}
