//! An actor of the packet cases: sends what it is told on standard input, and tells on standard
//! output what arrives in its namespace and what it hears of what it sent.
#![expect(clippy::unwrap_used, reason = "the test reads why it failed")]

use std::io::{self, IoSliceMut, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use nix::libc::in6_pktinfo;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt, sockopt::Ipv6RecvPacketInfo,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tests::actor::{Answer, Arrival, Probe, Report, Request, Transport, ipv4, sctp_init};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    for transport in [Transport::Tcp, Transport::Udp, Transport::Sctp] {
        let v4 = raw(Domain::IPV4, transport).unwrap();
        thread::spawn(move || receive_v4(&v4, transport));
        let v6 = raw(Domain::IPV6, transport).unwrap();
        setsockopt(&v6, Ipv6RecvPacketInfo, &true).unwrap();
        thread::spawn(move || receive_v6(&v6, transport));
    }
    tell(&Report::Ready);
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut under_way = JoinSet::new();
    // The end of the input is the end of the one who listens.
    while let Some(line) = lines.next_line().await.unwrap() {
        match serde_json::from_str(&line).unwrap() {
            Request::Send(probes) => {
                for probe in probes {
                    under_way.spawn(async move {
                        let answer = match send(&probe).await {
                            Ok(answer) => answer,
                            Err(error) if is_silence(&error, probe.protocol) => return,
                            Err(error) => heard(&error),
                        };
                        tell(&Report::Answer { id: probe.id, answer });
                    });
                }
            }
            Request::Close => {
                under_way.shutdown().await;
                tell(&Report::Closed);
            }
        }
    }
}

/// Whether an error is what a program hears in the end whose packets are dropped, or of UDP what it
/// hears when a rule on their way out drops them.
fn is_silence(error: &io::Error, protocol: Transport) -> bool {
    match protocol {
        Transport::Tcp => error.kind() == io::ErrorKind::TimedOut,
        Transport::Udp => error.kind() == io::ErrorKind::PermissionDenied,
        Transport::Sctp => false,
    }
}

fn heard(error: &io::Error) -> Answer {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Answer::Refused,
        _ => Answer::Failed(error.to_string()),
    }
}

fn tell(report: &Report) {
    let mut line = serde_json::to_vec(report).unwrap();
    line.push(b'\n');
    // A line is written whole: the receivers are threads.
    io::stdout().lock().write_all(&line).unwrap();
}

async fn send(probe: &Probe) -> io::Result<Answer> {
    let domain = Domain::for_address(probe.to);
    match probe.protocol {
        Transport::Tcp => {
            let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_tcp_mss(probe.id.into())?;
            socket.set_reuse_address(true)?;
            bind(&socket, probe.from)?;
            TcpSocket::from_std_stream(socket.into()).connect(probe.to).await?;
            Ok(Answer::Accepted)
        }
        Transport::Udp => {
            let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
            bind(&socket, probe.from)?;
            let socket = UdpSocket::from_std(socket.into())?;
            socket.connect(probe.to).await?;
            match socket.send(probe.id.to_string().as_bytes()).await {
                // Refused by a rule on its way out: the reason comes as an answer, if any does.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                sent => drop(sent?),
            }
            socket.recv(&mut [0; 16]).await?;
            Ok(Answer::Accepted)
        }
        Transport::Sctp => {
            let socket = raw(domain, probe.protocol)?;
            socket.bind(&SocketAddr::new(probe.from.ip(), 0).into())?;
            socket.connect(&SockAddr::from(SocketAddr::new(probe.to.ip(), 0)))?;
            socket.send(&sctp_init(probe.id, probe.from.port(), probe.to.port()))?;
            let (tell, heard) = oneshot::channel();
            thread::spawn(move || tell.send(refusal(&socket)));
            Err(heard.await.map_err(io::Error::other)?)
        }
    }
}

/// Waits for an error: packets that are others' come here as well.
fn refusal(socket: &Socket) -> io::Error {
    loop {
        if let Err(error) = io::Read::read(&mut &*socket, &mut [0; 2048]) {
            return error;
        }
    }
}

fn bind(socket: &Socket, from: SocketAddr) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.bind(&from.into())
}

fn raw(domain: Domain, transport: Transport) -> io::Result<Arc<Socket>> {
    let socket = Socket::new(domain, Type::RAW, Some(i32::from(transport.number()).into()))?;
    socket.set_recv_buffer_size(4 << 20)?;
    Ok(Arc::new(socket))
}

fn receive_v4(socket: &Socket, transport: Transport) {
    let mut buffer = [0; 2048];
    loop {
        let n = io::Read::read(&mut &*socket, &mut buffer).unwrap();
        if let Some((from, to, segment)) = buffer.get(..n).and_then(ipv4) {
            arrived(transport, from, to, segment);
        }
    }
}

fn receive_v6(socket: &Socket, transport: Transport) {
    let mut buffer = [0; 2048];
    let mut space = nix::cmsg_space!(in6_pktinfo);
    loop {
        let mut segment = [IoSliceMut::new(&mut buffer)];
        let received = recvmsg::<SockaddrIn6>(
            socket.as_raw_fd(),
            &mut segment,
            Some(&mut space),
            MsgFlags::empty(),
        )
        .unwrap();
        let from = received.address.unwrap().ip();
        let to = received.cmsgs().unwrap().find_map(|message| match message {
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(info.ipi6_addr.s6_addr),
            _ => None,
        });
        let n = received.bytes;
        if let Some(segment) = buffer.get(..n) {
            arrived(transport, from.into(), IpAddr::from(to.unwrap()), segment);
        }
    }
}

fn arrived(protocol: Transport, from: IpAddr, to: IpAddr, segment: &[u8]) {
    if let Some((id, from_port, to_port)) = protocol.first_of(segment) {
        let (from, to) = (SocketAddr::new(from, from_port), SocketAddr::new(to, to_port));
        tell(&Report::Arrival(Arrival { id, protocol, from, to }));
    }
}
