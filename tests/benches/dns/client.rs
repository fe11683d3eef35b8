//! Asks and waits for the answers: closed loops, so that a slow server is asked less.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use loadtest::ratio::quantile;

use super::SERVICES;

/// Questions that wait for their answers.
const WINDOW: usize = 64;
/// An answer that took longer is lost.
const LOST_AFTER: Duration = Duration::from_millis(200);

/// Questions on the wire, to be asked one after the other and again.
pub(crate) struct Questions {
    packets: Vec<Vec<u8>>,
}

/// What became of the questions of one window.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    pub(crate) n_answers: usize,
    pub(crate) n_lost: usize,
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
}

impl Load {
    pub(crate) fn rate(&self) -> f64 {
        self.n_answers as f64 / self.wall.as_secs_f64()
    }
}

impl Questions {
    /// So many known names to so many unknown ones, in an order without neighbours.
    pub(crate) fn new(known: u32, unknown: u32) -> Self {
        let packets = (0..SERVICES).map(|idx| {
            let number = idx * 7919 % SERVICES;
            let is_known = idx % (known + unknown) < known;
            let label = if is_known { format!("s{number}") } else { format!("no-{number}") };
            packet(&[&label, "bench", "svc", "cluster", "local"])
        });
        Self { packets: packets.collect() }
    }

    /// One for a name that exists.
    pub(crate) fn known(&self) -> &[u8] {
        self.packets.first().unwrap()
    }
}

/// A question for the address of a name.
pub(crate) fn packet(labels: &[&str]) -> Vec<u8> {
    let mut packet = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in labels {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend_from_slice(label.as_bytes());
    }
    packet.extend_from_slice(&[0, 0, 1, 0, 1]);
    packet
}

fn connect(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(LOST_AFTER)).unwrap();
    socket
}

/// Keeps a window of questions open for a while.
pub(crate) fn window(server: SocketAddr, questions: &Questions, during: Duration) -> Load {
    let socket = connect(server);
    let mut next = questions.packets.iter().cycle();
    let mut answer = [0; 1500];
    let mut load = Load::default();
    let mut n_open = 0;
    let started = Instant::now();
    while started.elapsed() < during {
        while n_open < WINDOW {
            socket.send(next.next().unwrap()).unwrap();
            n_open += 1;
        }
        // Half the window is taken before it is filled again, as bursts of clients would.
        while n_open > WINDOW / 2 {
            if socket.recv(&mut answer).is_err() {
                load.n_lost += n_open;
                n_open = 0;
                break;
            }
            n_open -= 1;
            load.n_answers += 1;
        }
    }
    load.wall = started.elapsed();
    while n_open > 0 && socket.recv(&mut answer).is_ok() {
        n_open -= 1;
        load.n_answers += 1;
    }
    load
}

/// The median and the 99th percentile of questions that wait for each other, in microseconds.
pub(crate) fn one_at_a_time(server: SocketAddr, questions: &Questions, n: usize) -> [f64; 2] {
    let socket = connect(server);
    let mut answer = [0; 1500];
    let times: Vec<f64> = questions
        .packets
        .iter()
        .cycle()
        .take(n)
        .map(|question| {
            let asked = Instant::now();
            socket.send(question).unwrap();
            socket.recv(&mut answer).unwrap();
            asked.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    [quantile(times.iter().copied(), 0.5), quantile(times, 0.99)]
}
