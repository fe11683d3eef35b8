//! Connect, ask, be answered, close: as fast as one thread can, one after another, each timed.
//!
//! The client is a process of its own, so that its sockets belong to its pod's cgroup; it is told
//! what to do over its standard input, a line a round, and answers with a line of times.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use sandbox::{Launch, Process};

/// How a cycle goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cycle {
    /// TCP: connect, one byte there, one byte back, closed by the server.
    Tcp,
    /// The same, closed by the client, to a server that waits for that ([`serve_to_the_end`]).
    TcpLeft,
    /// UDP: connect, one datagram there and one back, close.
    Udp,
    /// UDP: one datagram there and one back by sendto and recvfrom, close.
    UdpUnconnected,
}

impl Cycle {
    /// A word for tables and for the client's input.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::TcpLeft => "tcp-left",
            Self::Udp => "udp",
            Self::UdpUnconnected => "udp-sendto",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [Self::Tcp, Self::TcpLeft, Self::Udp, Self::UdpUnconnected]
            .into_iter()
            .find(|cycle| cycle.name() == word)
    }

    /// The byte that was answered.
    fn once(self, target: SocketAddr) -> io::Result<u8> {
        let mut byte = [0];
        match self {
            Self::Tcp => {
                let mut stream = TcpStream::connect(target)?;
                stream.write_all(b"x")?;
                stream.read_exact(&mut byte)?;
                // The server closes first, so that it is the one that remembers the connection.
                stream.read_to_end(&mut Vec::new())?;
            }
            Self::TcpLeft => {
                let mut stream = TcpStream::connect(target)?;
                stream.write_all(b"x")?;
                stream.read_exact(&mut byte)?;
            }
            Self::Udp => {
                let socket = any_socket(target)?;
                socket.connect(target)?;
                socket.send(b"x")?;
                socket.recv(&mut byte)?;
            }
            Self::UdpUnconnected => {
                let socket = any_socket(target)?;
                socket.send_to(b"x", target)?;
                let (_, from) = socket.recv_from(&mut byte)?;
                if from != target {
                    return Err(io::Error::other("a stranger answered"));
                }
            }
        }
        let [byte] = byte;
        Ok(byte)
    }
}

fn any_socket(target: SocketAddr) -> io::Result<UdpSocket> {
    let socket = match target {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    }?;
    // A datagram may be lost; the bench must not hang on it.
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(socket)
}

/// Keeps this process on one core. Client and server share it: then a cycle costs what it costs,
/// and neither waking the other core nor what runs there is part of it.
///
/// # Errors
/// It may not run there.
pub fn stay_on_one_core() -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(0)?;
    Ok(sched_setaffinity(Pid::this(), &cores)?)
}

/// Answers with a byte on a port over both protocols, until killed.
///
/// # Errors
/// The port is taken.
pub fn serve(port: u16, answer: u8) -> io::Result<()> {
    serve_each(port, answer, |_stream| Ok(()))
}

/// The same, but it is the client that closes, and remembers the connection.
///
/// # Errors
/// As above.
pub fn serve_to_the_end(port: u16, answer: u8) -> io::Result<()> {
    serve_each(port, answer, |stream| stream.read_to_end(&mut Vec::new()).map(drop))
}

fn serve_each(
    port: u16,
    answer: u8,
    end: impl Fn(&mut TcpStream) -> io::Result<()>,
) -> io::Result<()> {
    stay_on_one_core()?;
    let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    let tcp = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    std::thread::Builder::new().name("udp".to_owned()).spawn(move || {
        let mut byte = [0];
        while let Ok((_, from)) = udp.recv_from(&mut byte) {
            // A client that is gone is no reason to stop.
            _ = udp.send_to(&[answer], from);
        }
    })?;
    println_flushed("ready")?;
    for stream in tcp.incoming() {
        let mut byte = [0];
        // As above.
        _ = stream.and_then(|mut stream| {
            stream.read_exact(&mut byte)?;
            stream.write_all(&[answer])?;
            end(&mut stream)
        });
    }
    Ok(())
}

/// Nanoseconds of the clock that all processes share.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Does what standard input says, a line a round. `tcp 10.96.0.10:80 100` does so many cycles and
/// answers with the nanoseconds of each; `tcp 10.96.0.10:80 until 7` goes on until that byte is
/// answered, and tells when that cycle began.
///
/// # Errors
/// A cycle fails, or a line makes no sense.
pub fn obey() -> io::Result<()> {
    stay_on_one_core()?;
    println_flushed("ready")?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.split(' ');
        let nonsense = || io::Error::new(io::ErrorKind::InvalidInput, line.clone());
        let cycle = words.next().and_then(Cycle::parse).ok_or_else(nonsense)?;
        let target = words.next().and_then(|word| word.parse().ok()).ok_or_else(nonsense)?;
        let answer = match (words.next().ok_or_else(nonsense)?, words.next()) {
            ("until", Some(byte)) => {
                until(cycle, target, byte.parse().map_err(|_word| nonsense())?)?
            }
            (n, _) => time(cycle, target, n.parse().map_err(|_word| nonsense())?)?,
        };
        println_flushed(&answer)?;
    }
    Ok(())
}

fn time(cycle: Cycle, target: SocketAddr, n: usize) -> io::Result<String> {
    let mut times = Vec::with_capacity(n);
    for _ in 0..n {
        let started = Instant::now();
        cycle.once(target)?;
        times.push(started.elapsed().as_nanos().to_string());
    }
    Ok(times.join(" "))
}

fn until(cycle: Cycle, target: SocketAddr, byte: u8) -> io::Result<String> {
    let give_up = Instant::now() + Duration::from_secs(30);
    while Instant::now() < give_up {
        let began = now();
        if cycle.once(target)? == byte {
            return Ok(began.to_string());
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("nobody answered with {byte}")))
}

fn println_flushed(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// A process that obeys.
#[derive(Debug)]
pub struct Client {
    process: Process,
    tell: ChildStdin,
    hear: BufReader<ChildStdout>,
}

impl Client {
    /// Starts it, and waits until it listens.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(launch: Launch) -> io::Result<Self> {
        let mut process = launch
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(io::Error::other)?;
        let (Some(tell), Some(hear)) = (process.stdin(), process.stdout()) else {
            return Err(io::Error::other("a process without pipes"));
        };
        let mut hear = BufReader::new(hear);
        hear.read_line(&mut String::new())?;
        Ok(Self { process, tell, hear })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// One round: that many cycles, each in nanoseconds.
    ///
    /// # Errors
    /// The client ended, because a cycle failed.
    pub fn round(&mut self, cycle: Cycle, target: SocketAddr, n: usize) -> io::Result<Vec<f64>> {
        self.begin(&format!("{} {target} {n}", cycle.name()))?;
        let line = self.hear()?;
        let times: Vec<f64> =
            line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        if times.len() == n {
            Ok(times)
        } else {
            Err(io::Error::other(format!("a {} cycle to {target} failed", cycle.name())))
        }
    }

    /// Begins to ask until that byte is answered.
    ///
    /// # Errors
    /// The client ended.
    pub fn begin_until(&mut self, cycle: Cycle, target: SocketAddr, byte: u8) -> io::Result<()> {
        self.begin(&format!("{} {target} until {byte}", cycle.name()))
    }

    /// When, on the clock of [`now`], the cycle began that was answered so.
    ///
    /// # Errors
    /// The client ended, because a cycle failed or the answer never came.
    pub fn end_until(&mut self) -> io::Result<u64> {
        self.hear()?.trim().parse().map_err(|_line| io::Error::other("the answer never came"))
    }

    fn begin(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.tell, "{line}")?;
        self.tell.flush()
    }

    fn hear(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.hear.read_line(&mut line)?;
        Ok(line)
    }
}
