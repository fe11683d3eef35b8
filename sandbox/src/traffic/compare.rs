//! The cost of a way to a server beside another way: short rounds of each in turn, so that both
//! meet the same noise.
//!
//! A closed loop on one blocking socket at a time: what is timed is connect, question, answer and
//! close of one request.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::request::{Protocol, QUESTION};

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Two ways to the same servers.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// [`Protocol::Tcp`] or [`Protocol::Udp`].
    pub protocol: Protocol,
    /// The servers themselves, taken at random, as the Service takes them.
    pub direct: Vec<SocketAddr>,
    /// The Service in front of them.
    pub service: SocketAddr,
    /// Rounds of either.
    pub n_rounds: u32,
    /// Requests in a round.
    pub n_requests: u32,
}

/// What came of it: times in nanoseconds, ratios as service over direct.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// The servers themselves.
    pub direct: Cost,
    /// Through the Service.
    pub service: Cost,
    /// The middle of the rounds' ratios of requests a second.
    pub rate_ratio: f64,
}

/// The time of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Half were faster.
    pub p50_ns: u64,
    /// 99 of 100 were faster.
    pub p99_ns: u64,
}

/// Measures both in turn.
///
/// # Errors
/// When any request fails.
pub fn run(comparison: &Comparison) -> io::Result<Costs> {
    let Comparison { direct, service, n_rounds, .. } = comparison;
    let (mut direct_times, mut service_times, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    // The first round warms up caches, neighbours and the branch predictor.
    round(comparison, direct)?;
    round(comparison, &[*service])?;
    for round_idx in 0..*n_rounds {
        // Who goes first alternates as well.
        let (direct_round, service_round) = if round_idx % 2 == 0 {
            let direct_round = round(comparison, direct)?;
            (direct_round, round(comparison, &[*service])?)
        } else {
            let service_round = round(comparison, &[*service])?;
            (round(comparison, direct)?, service_round)
        };
        ratios.push(total(&direct_round).as_secs_f64() / total(&service_round).as_secs_f64());
        direct_times.extend(direct_round);
        service_times.extend(service_round);
    }
    ratios.sort_by(f64::total_cmp);
    Ok(Costs {
        direct: Cost::of(direct_times),
        service: Cost::of(service_times),
        rate_ratio: ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN),
    })
}

impl Cost {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let percentile = |percent: usize| {
            let time = times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)));
            time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
        };
        Self { p50_ns: percentile(50), p99_ns: percentile(99) }
    }
}

fn total(times: &[Duration]) -> Duration {
    times.iter().sum()
}

fn round(comparison: &Comparison, targets: &[SocketAddr]) -> io::Result<Vec<Duration>> {
    let mut dice = RandomState::new().build_hasher();
    (0..comparison.n_requests)
        .map(|request_idx| {
            // Servers that were asked just now answer faster: neither way may have more of that.
            dice.write_u32(request_idx);
            let target_idx = usize::try_from(dice.finish() >> 32).map_err(io::Error::other)?;
            let target = targets.get(target_idx % targets.len().max(1));
            time(comparison.protocol, *target.ok_or(io::ErrorKind::InvalidInput)?)
        })
        .collect()
}

fn time(protocol: Protocol, target: SocketAddr) -> io::Result<Duration> {
    let started = Instant::now();
    match protocol {
        Protocol::Tcp | Protocol::TcpKept | Protocol::Http | Protocol::HttpSource => {
            ask_tcp(target)?;
        }
        Protocol::Udp | Protocol::UdpConnected | Protocol::UdpUnconnected => ask_udp(target)?,
    }
    Ok(started.elapsed())
}

fn ask_tcp(target: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(QUESTION)?;
    let mut answer = [0; 512];
    if stream.read(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    stream.shutdown(Shutdown::Both)
}

fn ask_udp(target: SocketAddr) -> io::Result<()> {
    let socket = match target {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
    };
    socket.connect(target)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.send(QUESTION)?;
    socket.recv(&mut [0; 512]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let times = (1..=200).rev().map(Duration::from_nanos).collect();
        assert_eq!(Cost::of(times), Cost { p50_ns: 101, p99_ns: 199 });
        assert_eq!(Cost::of(Vec::new()), Cost { p50_ns: 0, p99_ns: 0 });
    }
}
