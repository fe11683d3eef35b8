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
    let service = names.get(&format!("{to}/{protocol}"));
    let service = service.map(|name| format!(" (Service {name})")).unwrap_or_default();
    format!("{at:9.3} {from} → {to}/{protocol}{service}: {what}, {reason}")
}

/// A connected UDP socket in words: what it named, and whom it talks to.
pub fn peer_line(cookie: u64, peer: &UdpPeer) -> String {
    let named = address(peer.frontend, peer.frontend_port);
    let used = address(peer.endpoint, peer.endpoint_port);
    format!("socket {cookie} of namespace {}: {named} → {used}", peer.netns)
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
}
