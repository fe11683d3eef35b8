//! What leads: the eBPF programs, or rules of nftables; each knows by a socket whether to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::Context;
use ipnet::IpNet;
use load::dns::{Addr, N_FAMILIES, OwnDns, OwnServer, family_index};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Led, Server};

/// How questions are led.
pub(super) enum By {
    /// By the programs, while this socket is in their map.
    Programs { own: Box<OwnDns>, alive: UdpSocket },
    /// By rules that look for sockets at the Service's addresses.
    Rules { stand_ins: Vec<StandIn> },
}

/// Sockets at a Service's address, which is nobody's: they receive nothing, and are found.
pub(super) struct StandIn {
    service: SocketAddr,
    _udp: UdpSocket,
    _tcp: TcpListener,
}

impl By {
    /// The programs where there are any. Leads nothing yet.
    pub(super) fn new(own: Option<OwnDns>) -> anyhow::Result<Self> {
        let Some(own) = own else { return Ok(Self::Rules { stand_ins: Vec::new() }) };
        let alive = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("opening a socket")?;
        Ok(Self::Programs { own: Box::new(own), alive })
    }

    /// Whether it is rules that lead.
    pub(super) const fn needs_rules(&self) -> bool {
        matches!(self, Self::Rules { .. })
    }

    /// Goes on leading what a former process led to the same servers.
    pub(super) fn resume(&mut self, servers: &[Server]) -> anyhow::Result<()> {
        let Self::Programs { own, alive } = self else { return Ok(()) };
        let mut held = own.servers()?;
        let mut is_same = false;
        for held in held.iter_mut().filter(|held| held.service_port != 0) {
            let address = SocketAddr::new(held.server.into(), u16::from_be(held.server_port));
            let known = servers.iter().find(|server| server.address == address);
            let Some(server) = known else { return Ok(()) };
            // Each process has another.
            held.packet_port = server.packet_port.to_be();
            is_same = true;
        }
        if is_same {
            own.dead();
            own.set_servers(held)?;
            own.alive(alive)?;
        }
        Ok(())
    }

    /// Leads these questions of these clients, and no others.
    pub(super) fn lead(&mut self, led: &[Led], clients: &[IpNet]) -> anyhow::Result<()> {
        match self {
            Self::Programs { own, alive } => {
                let ranges: Vec<(IpAddr, u8)> =
                    clients.iter().map(|range| (range.addr(), range.prefix_len())).collect();
                own.set_clients(&ranges)?;
                let desired = elements(led);
                if own.servers()? != desired {
                    own.dead();
                    own.set_servers(desired)?;
                }
                if led.is_empty() {
                    own.dead();
                    return Ok(());
                }
                Ok(own.alive(alive)?)
            }
            Self::Rules { stand_ins } => {
                stand_ins.retain(|it| led.iter().any(|led| led.service == it.service));
                for Led { service, .. } in led {
                    if !stand_ins.iter().any(|it| it.service == *service) {
                        stand_ins.push(StandIn::open(*service)?);
                    }
                }
                Ok(())
            }
        }
    }
}

impl Drop for By {
    fn drop(&mut self) {
        if let Self::Programs { own, .. } = self {
            own.dead();
        }
    }
}

impl StandIn {
    fn open(service: SocketAddr) -> anyhow::Result<Self> {
        let open = |kind, protocol| {
            let socket = Socket::new(Domain::for_address(service), kind, Some(protocol))?;
            if service.is_ipv4() {
                socket.set_freebind_v4(true)?;
            } else {
                socket.set_freebind_v6(true)?;
            }
            socket.set_reuse_address(true)?;
            socket.bind(&service.into())?;
            Ok::<_, std::io::Error>(socket)
        };
        let tell = || format!("opening a socket at {service}");
        let udp = open(Type::DGRAM, Protocol::UDP).with_context(tell)?;
        let tcp = open(Type::STREAM, Protocol::TCP).with_context(tell)?;
        tcp.listen(1).with_context(tell)?;
        Ok(Self { service, _udp: udp.into(), _tcp: tcp.into() })
    }
}

/// What the programs read, by family.
fn elements(led: &[Led]) -> [OwnServer; N_FAMILIES] {
    let mut elements = [OwnServer::default(); N_FAMILIES];
    for (idx, element) in (0..).zip(&mut elements) {
        let of_family = |led: &&Led| family_index(Addr::from(led.service.ip())) == idx;
        let Some(Led { service, server }) = led.iter().find(of_family) else { continue };
        *element = OwnServer {
            service: Addr::from(service.ip()),
            server: Addr::from(server.address.ip()),
            service_port: service.port().to_be(),
            server_port: server.address.port().to_be(),
            packet_port: server.packet_port.to_be(),
            fails_over: u16::from(server.fails_over),
        };
    }
    elements
}
