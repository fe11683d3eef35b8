//! What the programs tell of drops and sockets, in words. `[pure]`

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use abi::addr::Addr;
use abi::counter::Counter;
use abi::drop::Dropped;
use abi::socket::UdpPeer;

use crate::names::Names;

/// One drop in words: when, who to whom, what became of it and why.
pub fn line(dropped: &Dropped, started: Duration, names: &Names) -> String {
    let at = Duration::from_nanos(dropped.at).saturating_sub(started).as_secs_f64();
    let from = if dropped.src == Addr::default() {
        "a socket".to_owned()
    } else {
        address(dropped.src, dropped.src_port).to_string()
    };
    let to = address(dropped.dst, dropped.dst_port);
    let protocol = match dropped.protocol {
        6 => "tcp",
        17 => "udp",
        132 => "sctp",
        1 | 58 => "icmp",
        _ => "other",
    };
    let what = if dropped.told == 1 { "refused" } else { "dropped" };
    let reason = Counter::at(dropped.reason).map_or("unknown", Counter::name);
    let node_port = || {
        let any = if to.is_ipv4() { "*" } else { "[*]" };
        names.get(&format!("{any}:{}/{protocol}", to.port())).filter(|_| is_to_frontend(dropped))
    };
    let service = names.get(&format!("{to}/{protocol}")).or_else(node_port);
    let service = service.map(|name| format!(" (Service {name})")).unwrap_or_default();
    format!("{at:9.3} {from} → {to}/{protocol}{service}: {what}, {reason}")
}

/// Whether it was on account of a Service port, so that an address that no Service has was the node's.
fn is_to_frontend(dropped: &Dropped) -> bool {
    const BY_FRONTEND: [Counter; 5] = [
        Counter::DroppedNoLocal,
        Counter::DroppedNotAllowed,
        Counter::DroppedNoRoom,
        Counter::DroppedNoPort,
        Counter::DroppedUnsettled,
    ];
    dropped.service != 0
        || Counter::at(dropped.reason).is_some_and(|reason| BY_FRONTEND.contains(&reason))
}

/// A connected socket in words: what it named, and whom it talks to.
pub fn peer_line(cookie: u64, peer: &UdpPeer) -> String {
    let named = address(peer.frontend, peer.frontend_port);
    let used = address(peer.endpoint, peer.endpoint_port);
    let protocol = if peer.protocol == UdpPeer::TCP { " (TCP)" } else { "" };
    format!("socket {cookie} of namespace {}: {named} → {used}{protocol}", peer.netns)
}

fn address(addr: Addr, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from(addr), u16::from_be(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_is_told_with_its_service_and_reason() {
        let dropped = Dropped {
            at: 3_500_000_000,
            dst: Addr::from(IpAddr::from([10, 96, 0, 10])),
            dst_port: 80_u16.to_be(),
            reason: Counter::Refused as u32,
            protocol: 6,
            told: 1,
            ..Dropped::default()
        };
        let names = Names::from([("10.96.0.10:80/tcp".to_owned(), "shop/web".to_owned())]);
        assert_eq!(
            line(&dropped, Duration::from_secs(2), &names),
            "    1.500 a socket → 10.96.0.10:80/tcp (Service shop/web): refused, refused"
        );
    }
    #[test]
    fn what_came_to_a_node_port_is_told_with_its_service() {
        let to_node = |reason: Counter| Dropped {
            src: Addr::from(IpAddr::from([192, 0, 2, 1])),
            src_port: 4711_u16.to_be(),
            dst: Addr::from(IpAddr::from([172, 18, 0, 1])),
            dst_port: 30_080_u16.to_be(),
            reason: reason as u32,
            protocol: 17,
            ..Dropped::default()
        };
        let names = Names::from([("*:30080/udp".to_owned(), "shop/web".to_owned())]);
        let told = |reason| line(&to_node(reason), Duration::ZERO, &names);
        assert_eq!(
            told(Counter::DroppedNoLocal),
            "    0.000 192.0.2.1:4711 → 172.18.0.1:30080/udp (Service shop/web): dropped, \
             drop_no_local_endpoint"
        );
        assert!(!told(Counter::DroppedMartian).contains("shop/web"));
    }
}
