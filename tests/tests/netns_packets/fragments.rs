//! Datagrams that are longer than a packet.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};

use sandbox::netns::Netns;
use sandbox::wait;

use crate::scene::{SOON, Scene, datagram_round_trip, of, udp};
use crate::wire::{Wire, fragments};

/// The next datagram's identification: two within seconds have different ones.
static NEXT_ID: AtomicU16 = AtomicU16::new(1);

/// Puts fragments in some order.
type Order = fn(&mut Vec<Vec<u8>>);

const ORDERS: [(&str, Order); 4] = [
    ("in order", |_| {}),
    ("last first", |all| all.rotate_right(1)),
    ("reversed", |all| all.reverse()),
    ("mixed", |all| {
        all.sort_by_key(|fragment| fragment.iter().map(|byte| usize::from(*byte)).sum::<usize>());
    }),
];

/// Sends datagrams of many sizes in fragments of any order, each of which must come back.
fn come_back(netns: &Netns, from: std::net::IpAddr, to: SocketAddr) {
    let socket = udp(netns, to.is_ipv6());
    let src = SocketAddr::new(from, socket.local_addr().unwrap().port());
    let wire = Wire::new(netns);
    // A pod that has just come is served as soon as the proxy has heard of its device.
    let first = udp(netns, to.is_ipv6());
    first.set_read_timeout(Some(SOON / 20)).unwrap();
    let is_served = wait::until(SOON, || datagram_round_trip(&first, to, b"first"));
    assert!(is_served, "not even whole ones by {to}");
    let mut room = vec![0; 1 << 16];
    for len in [1_500, 3_000, 8_000, 20_000, 23_000] {
        for (name, order) in ORDERS {
            let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
            let payload: Vec<u8> =
                (0..len).map(|i: u32| (i * 7 + u32::from(id)).to_le_bytes()[0]).collect();
            let mut parts = fragments(id, src, to, &payload);
            order(&mut parts);
            for part in &parts {
                wire.send(part);
            }
            let (got, answered) = socket
                .recv_from(&mut room)
                .unwrap_or_else(|error| panic!("{len} bytes, {name}, to {to}: {error}"));
            assert_eq!(answered, to, "{len} bytes, {name}");
            assert!(room[..got] == payload[..], "{len} bytes, {name}, to {to}: {got} others");
        }
    }
}

#[test]
fn datagrams_in_fragments_of_any_order_come_back_whole() {
    let scene = Scene::new(&[]);
    for v6 in [false, true] {
        let client = of(scene.client.addresses().both(), v6);
        for is_far in [false, true] {
            for frontend in scene.frontends(is_far, v6) {
                come_back(scene.client.netns(), client, frontend);
            }
        }
    }
}

#[test]
fn a_pods_own_datagrams_in_fragments_come_back_whole() {
    let scene = Scene::new(&[]);
    let pod = scene.proxied.pod("client-pod");
    for v6 in [false, true] {
        let own = of(pod.addresses().both(), v6);
        for is_far in [false, true] {
            for frontend in scene.frontends(is_far, v6) {
                come_back(pod.netns(), own, frontend);
            }
        }
    }
}
