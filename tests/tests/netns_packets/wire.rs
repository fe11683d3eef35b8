//! Packets as they are: sent from anybody to anybody, cut into fragments, and ICMP errors read.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use packet::checksum::{both, finish};
use sandbox::netns::Netns;
use sandbox::wait;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tests::packet::frame::{frame, pseudo, sum};

/// Protocol 255: the packets have their IP headers.
const RAW: i32 = 255;

/// Sends packets that have their IP headers.
pub(crate) struct Wire {
    v4: Socket,
    v6: Socket,
}

impl Wire {
    /// From a namespace.
    pub(crate) fn new(netns: &Netns) -> Self {
        let raw = |domain| Socket::new(domain, Type::RAW, Some(Protocol::from(RAW))).unwrap();
        let (v4, v6) = netns.run(|| (raw(Domain::IPV4), raw(Domain::IPV6))).unwrap();
        for socket in [&v4, &v6] {
            socket.set_send_buffer_size(1 << 22).unwrap();
        }
        Self { v4, v6 }
    }

    /// Sends a packet where it says.
    pub(crate) fn send(&self, packet: &[u8]) {
        let (socket, to) = match packet[0] >> 4 {
            4 => (&self.v4, IpAddr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap())),
            _ => (&self.v6, IpAddr::from(<[u8; 16]>::try_from(&packet[24..40]).unwrap())),
        };
        let to = SockAddr::from(SocketAddr::new(to, 0));
        socket.send_to(packet, &to).unwrap_or_else(|error| panic!("to {to:?}: {error}"));
    }

    /// Sends a packet in the words of the cases.
    pub(crate) fn say(&self, text: &str) {
        self.send(&frame(text)[14..]);
    }
}

/// A UDP datagram in fragments of 1,400 bytes, in order.
pub(crate) fn fragments(id: u16, src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<Vec<u8>> {
    const PIECE: usize = 1400;
    let len = u16::try_from(payload.len() + 8).unwrap();
    let ports = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
    let mut segment = [ports, len.to_be_bytes().to_vec(), vec![0, 0], payload.to_vec()].concat();
    let check = finish(both(pseudo(17, src.ip(), dst.ip(), segment.len()), sum(&segment)));
    segment[6..8].copy_from_slice(&check.to_ne_bytes());
    let n = segment.len().div_ceil(PIECE);
    let part = |(i, piece): (usize, &[u8])| {
        let more = i + 1 < n;
        let offset = u16::try_from(i * PIECE).unwrap();
        match (src.ip(), dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let total = u16::try_from(20 + piece.len()).unwrap().to_be_bytes();
                let field = ((offset / 8) | if more { 0x2000 } else { 0 }).to_be_bytes();
                let id = id.to_be_bytes();
                let mut packet = vec![0x45, 0, total[0], total[1], id[0], id[1]];
                packet.extend([field[0], field[1], 64, 17, 0, 0]);
                packet.extend(src.octets().into_iter().chain(dst.octets()));
                packet.extend(piece);
                packet
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let len = u16::try_from(8 + piece.len()).unwrap().to_be_bytes();
                let field = (offset | u16::from(more)).to_be_bytes();
                let mut packet = vec![0x60, 0, 0, 0, len[0], len[1], 44, 64];
                packet.extend(src.octets().into_iter().chain(dst.octets()));
                packet.extend([17, 0, field[0], field[1], 0, 0]);
                packet.extend(id.to_be_bytes());
                packet.extend(piece);
                packet
            }
            _ => panic!("two families"),
        }
    };
    segment.chunks(PIECE).enumerate().map(part).collect()
}

/// An ICMP message that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    /// From whom.
    pub(crate) from: IpAddr,
    /// Type and code.
    pub(crate) kind: (u8, u8),
    /// The MTU that it tells, if it is about one.
    pub(crate) mtu: u32,
    /// Where the packet went that it quotes, as its sender named it.
    pub(crate) about: Option<SocketAddr>,
}

/// Hears the ICMP messages of a family.
pub(crate) struct Ear {
    socket: UdpSocket,
    v6: bool,
}

impl Ear {
    /// In a namespace.
    pub(crate) fn new(netns: &Netns, v6: bool) -> Self {
        let (domain, protocol) =
            if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let socket = netns.run(|| Socket::new(domain, Type::RAW, Some(protocol))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        // Another name for the same descriptor: it receives as any socket does.
        Self { socket: socket.into(), v6 }
    }

    /// Says something until a message is heard of which that holds.
    pub(crate) fn hear(&self, say: impl Fn(), is: impl Fn(&Heard) -> bool) -> Heard {
        let mut others = Vec::new();
        let heard = wait::value(Duration::from_secs(10), || {
            say();
            let heard = self.next()?;
            others.push(heard);
            is(&heard).then_some(heard)
        });
        heard.unwrap_or_else(|| panic!("only {others:?}"))
    }

    /// The next one, if one comes soon.
    fn next(&self) -> Option<Heard> {
        let mut room = [0; 2048];
        let (n, from) = self.socket.recv_from(&mut room).ok()?;
        // IPv4's come with their header.
        let header = if self.v6 { 0 } else { usize::from(room[0] & 15) * 4 };
        let message = &room[header..n];
        let mtu = if self.v6 {
            u32::from_be_bytes(message[4..8].try_into().unwrap())
        } else {
            u32::from(u16::from_be_bytes([message[6], message[7]]))
        };
        let kind = (message[0], message[1]);
        Some(Heard { from: from.ip(), kind, mtu, about: quoted(&message[8..], self.v6) })
    }
}

/// Where a quoted packet goes.
fn quoted(packet: &[u8], v6: bool) -> Option<SocketAddr> {
    let (dst, header) = if v6 {
        (IpAddr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?), 40)
    } else {
        let dst = <[u8; 4]>::try_from(packet.get(16..20)?).ok()?;
        (IpAddr::from(dst), usize::from(packet[0] & 15) * 4)
    };
    let port = packet.get(header + 2..header + 4)?;
    Some(SocketAddr::new(dst, u16::from_be_bytes([port[0], port[1]])))
}
