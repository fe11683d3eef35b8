//! Answers by ARP and neighbour discovery for addresses that no device has.

use std::collections::BTreeSet;
use std::io::{self, IoSliceMut, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::num::NonZeroU32;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessageOwned, LinkAddr, MsgFlags, SockaddrIn6, bind, recvmsg, sendto,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::message::{
    self, HOPS, Mac, advertisement, arp_reply, gratuitous_arp, read_arp, read_solicitation,
};
use crate::network;

const ETH_P_ARP: u16 = 0x0806;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// No question is longer, in bytes.
const LONGEST: usize = 256;
/// An address that has moved is told of so often, and as far apart.
const TOLD: u32 = 4;
const APART: Duration = Duration::from_secs(1);

/// Answers for what `mine` says, for ever.
pub(super) async fn keep(addresses: &[IpAddr], mine: watch::Receiver<BTreeSet<IpAddr>>) {
    let v4 = addresses.iter().copied().find(IpAddr::is_ipv4);
    let v6 = addresses.iter().copied().find(IpAddr::is_ipv6);
    tokio::join!(family::<Arp>(v4, mine.clone()), family::<Neighbours>(v6, mine));
}

/// How one family's addresses are asked after.
trait Protocols: Sized {
    /// An address of the family.
    type Address: Copy + Ord;

    fn open(device: LinkAddr) -> io::Result<Self>;
    fn of(address: IpAddr) -> Option<Self::Address>;
    /// Hears questions after an address from now on, or no more.
    fn listen(&self, address: Self::Address, listen: bool) -> io::Result<()>;
    /// Tells everybody where an address is.
    fn tell(&self, address: Self::Address) -> io::Result<()>;
    fn socket(&self) -> &AsyncFd<Socket>;
    fn receive(socket: &Socket) -> io::Result<Heard>;
    /// Answers one question, if it is one and after one of these.
    fn answer(&self, question: &Heard, mine: &BTreeSet<Self::Address>) -> io::Result<()>;
}

/// A message, and of neighbour discovery who sent it and with how many hops left.
struct Heard {
    bytes: Vec<u8>,
    from: Ipv6Addr,
    hops: u32,
}

async fn family<P: Protocols>(own: Option<IpAddr>, mut mine: watch::Receiver<BTreeSet<IpAddr>>) {
    let Some(own) = own else { return std::future::pending().await };
    // Most clusters have no such addresses, and need no sockets.
    while !mine.borrow_and_update().iter().any(|one| P::of(*one).is_some()) {
        if mine.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
    let opened = network::device_of(own).and_then(P::open);
    match opened {
        Ok(protocols) => serve(&protocols, mine).await,
        Err(error) => {
            tracing::warn!(%own, %error, "load balancers' addresses are not answered for");
            std::future::pending::<()>().await;
        }
    }
}

async fn serve<P: Protocols>(protocols: &P, mut mine: watch::Receiver<BTreeSet<IpAddr>>) {
    let mut led: BTreeSet<P::Address> = BTreeSet::new();
    let mut new: BTreeSet<P::Address> = BTreeSet::new();
    let mut untold = 0;
    let mut ticks = tokio::time::interval(APART);
    mine.mark_changed();
    loop {
        tokio::select! {
            changed = mine.changed() => {
                if changed.is_err() {
                    return;
                }
                let now: BTreeSet<P::Address> =
                    mine.borrow_and_update().iter().filter_map(|one| P::of(*one)).collect();
                for gone in led.difference(&now) {
                    note(protocols.listen(*gone, false));
                }
                // All of them, because one that has gone may have shared its group with another.
                now.iter().for_each(|one| note(protocols.listen(*one, true)));
                for come in now.difference(&led) {
                    note(protocols.tell(*come));
                    new.insert(*come);
                }
                new.retain(|one| now.contains(one));
                (led, untold) = (now, TOLD);
            }
            // Who has not heard of it the first time may hear of it the next.
            _ = ticks.tick(), if untold > 0 => {
                new.iter().for_each(|one| note(protocols.tell(*one)));
                untold -= 1;
                if untold == 0 {
                    new.clear();
                }
            }
            question = hear::<P>(protocols.socket()) => match question {
                Ok(question) => note(protocols.answer(&question, &led)),
                Err(error) => {
                    tracing::debug!(%error, "hearing of neighbours failed");
                    tokio::time::sleep(APART).await;
                }
            },
        }
    }
}

fn note(done: io::Result<()>) {
    if let Err(error) = done {
        tracing::debug!(%error, "telling neighbours failed");
    }
}

async fn hear<P: Protocols>(socket: &AsyncFd<Socket>) -> io::Result<Heard> {
    loop {
        let mut ready = socket.readable().await?;
        let heard = ready.try_io(|socket| P::receive(socket.get_ref()));
        if let Ok(heard) = heard {
            return heard;
        }
    }
}

/// ARP on one device.
struct Arp {
    socket: AsyncFd<Socket>,
    device: LinkAddr,
    mac: Mac,
}

impl Protocols for Arp {
    type Address = Ipv4Addr;

    fn open(device: LinkAddr) -> io::Result<Self> {
        let protocol = Protocol::from(i32::from(ETH_P_ARP.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        bind(socket.as_raw_fd(), &device)?;
        let mac = mac(&device)?;
        Ok(Self { socket: registered(socket)?, device, mac })
    }

    fn of(address: IpAddr) -> Option<Ipv4Addr> {
        match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    }

    fn listen(&self, _: Ipv4Addr, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn tell(&self, address: Ipv4Addr) -> io::Result<()> {
        gratuitous_arp(self.mac, address).iter().try_for_each(|frame| self.send(frame))
    }

    fn socket(&self) -> &AsyncFd<Socket> {
        &self.socket
    }

    fn receive(mut socket: &Socket) -> io::Result<Heard> {
        let mut bytes = vec![0; LONGEST];
        let n = socket.read(&mut bytes)?;
        bytes.truncate(n);
        Ok(Heard { bytes, from: Ipv6Addr::UNSPECIFIED, hops: 0 })
    }

    fn answer(&self, question: &Heard, mine: &BTreeSet<Ipv4Addr>) -> io::Result<()> {
        match read_arp(&question.bytes) {
            Some(asked) if mine.contains(&asked.after) && asked.by.0 != self.mac => {
                self.send(&arp_reply(self.mac, &asked))
            }
            _ => Ok(()),
        }
    }
}

impl Arp {
    fn send(&self, frame: &[u8]) -> io::Result<()> {
        let fd = self.socket.get_ref().as_raw_fd();
        sendto(fd, frame, &self.device, MsgFlags::empty())?;
        Ok(())
    }
}

/// Neighbour discovery on one device.
struct Neighbours {
    socket: AsyncFd<Socket>,
    idx: u32,
    mac: Mac,
}

impl Protocols for Neighbours {
    type Address = Ipv6Addr;

    fn open(device: LinkAddr) -> io::Result<Self> {
        let idx = u32::try_from(device.ifindex()).map_err(io::Error::other)?;
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        socket.set_nonblocking(true)?;
        socket.set_unicast_hops_v6(HOPS)?;
        socket.set_multicast_hops_v6(HOPS)?;
        // What is asked on other links is no question to this node's end of this one.
        socket.bind_device_by_index_v6(NonZeroU32::new(idx))?;
        socket.set_recv_hoplimit_v6(true)?;
        socket.set_multicast_if_v6(idx)?;
        socket.set_multicast_loop_v6(false)?;
        let mac = mac(&device)?;
        Ok(Self { socket: registered(socket)?, idx, mac })
    }

    fn of(address: IpAddr) -> Option<Ipv6Addr> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address),
        }
    }

    fn listen(&self, address: Ipv6Addr, listen: bool) -> io::Result<()> {
        let group = message::solicited_node(address);
        let socket = self.socket.get_ref();
        let changed = if listen {
            socket.join_multicast_v6(&group, self.idx)
        } else {
            socket.leave_multicast_v6(&group, self.idx)
        };
        match changed {
            // It is heard already: another address of the same last bytes has the same group.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(()),
            other => other,
        }
    }

    fn tell(&self, address: Ipv6Addr) -> io::Result<()> {
        self.send(&advertisement(self.mac, address, false), ALL_NODES)
    }

    fn socket(&self) -> &AsyncFd<Socket> {
        &self.socket
    }

    fn receive(socket: &Socket) -> io::Result<Heard> {
        let mut bytes = vec![0; LONGEST];
        let mut control = cmsg_space!(i32);
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        let fd = socket.as_raw_fd();
        let received =
            recvmsg::<SockaddrIn6>(fd, &mut buffers, Some(&mut control), MsgFlags::empty())?;
        let from = received.address.map_or(Ipv6Addr::UNSPECIFIED, |from| from.ip());
        let hops = received.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv6HopLimit(hops) => u32::try_from(hops).ok(),
            _ => None,
        });
        let n = received.bytes;
        bytes.truncate(n);
        Ok(Heard { bytes, from, hops: hops.unwrap_or(0) })
    }

    fn answer(&self, question: &Heard, mine: &BTreeSet<Ipv6Addr>) -> io::Result<()> {
        let asked = read_solicitation(&question.bytes, question.hops);
        let Some(address) = asked.filter(|address| mine.contains(address)) else { return Ok(()) };
        // Who has no address yet asks whether somebody has the one that it wants.
        if question.from.is_unspecified() {
            return self.tell(address);
        }
        self.send(&advertisement(self.mac, address, true), question.from)
    }
}

impl Neighbours {
    fn send(&self, message: &[u8], to: Ipv6Addr) -> io::Result<()> {
        let to = SocketAddrV6::new(to, 0, 0, self.idx);
        self.socket.get_ref().send_to(message, &to.into()).map(|_| ())
    }
}

fn registered(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    #[expect(deprecated, reason = "its successor is unsafe; a socket is what it asks for")]
    AsyncFd::with_interest(socket, Interest::READABLE)
}

fn mac(device: &LinkAddr) -> io::Result<Mac> {
    let none = || io::Error::other("the device of the node's address has no address on its link");
    device.addr().filter(|mac| *mac != [0; 6]).ok_or_else(none)
}
