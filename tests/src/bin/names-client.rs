//! A crowd of DNS clients: asks for one name at a rate, from sockets of every kind, each question
//! again after 100 ms, until its input ends. Prints what became of them.
//!
//! ```text
//! names-client SERVER NAME ADDRESS RATE
//! ```
#![expect(clippy::unwrap_used, reason = "the test reads why it failed")]

use std::cell::{Cell, RefCell};
use std::env;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tests::crowd::{Crowd, LATE, RETRANSMIT, question, read};
use tokio::io::AsyncReadExt;
use tokio::net::UdpSocket;
use tokio::task::LocalSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// Nobody waits longer for one answer.
const GIVE_UP: Duration = Duration::from_secs(5);
/// Between two bursts of questions.
const TICK: Duration = Duration::from_millis(1);

struct Clients {
    server: SocketAddr,
    name: String,
    address: IpAddr,
    /// Sockets that have asked before, and will again.
    kept: RefCell<Vec<UdpSocket>>,
    next: Cell<u16>,
    crowd: RefCell<Crowd>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let [server, name, address, rate] = args.try_into().unwrap();
    let clients = Rc::new(Clients {
        server: server.parse().unwrap(),
        name,
        address: address.parse().unwrap(),
        kept: RefCell::default(),
        next: Cell::default(),
        crowd: RefCell::default(),
    });
    LocalSet::new().run_until(run(Rc::clone(&clients), rate.parse().unwrap())).await;
    serde_json::to_writer(io::stdout().lock(), &*clients.crowd.borrow()).unwrap();
}

async fn run(clients: Rc<Clients>, rate: u32) {
    let mut tasks = tokio::task::JoinSet::new();
    let (mut stdin, mut input) = (tokio::io::stdin(), [0; 64]);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (started, mut asked) = (Instant::now(), 0);
    loop {
        tokio::select! {
            read = stdin.read(&mut input) => if matches!(read, Ok(0) | Err(_)) { break },
            _ = ticks.tick() => {
                let due = started.elapsed().as_secs_f64() * f64::from(rate);
                while f64::from(asked) < due {
                    asked += 1;
                    tasks.spawn_local(ask(Rc::clone(&clients), asked));
                }
                while tasks.try_join_next().is_some() {}
            }
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// One question in four from a socket that is kept, one from a fresh one that names the server with
/// each datagram, two from fresh ones that are connected, as the C library has them.
async fn ask(clients: Rc<Clients>, n: u32) {
    let id = clients.next.replace(clients.next.get().wrapping_add(1));
    let kind = n % 4;
    let kept = if kind == 0 { clients.kept.borrow_mut().pop() } else { None };
    let begun = Instant::now();
    let mut refused = 0;
    let result = timeout(GIVE_UP, answer(&clients, id, (kind, kept), &mut refused)).await;
    let took = begun.elapsed();
    let mut crowd = clients.crowd.borrow_mut();
    crowd.asked += 1;
    crowd.refused += refused;
    match result {
        Ok(Ok((what, socket))) => {
            *crowd.answers.entry(what).or_default() += 1;
            crowd.worst_ms = crowd.worst_ms.max(took.as_secs_f64() * 1e3);
            crowd.again += u64::from(took >= RETRANSMIT);
            crowd.late += u64::from(took > LATE);
            if kind == 0 {
                clients.kept.borrow_mut().push(socket);
            }
        }
        Ok(Err(error)) => *crowd.answers.entry(format!("failed: {error}")).or_default() += 1,
        Err(_) => *crowd.answers.entry("nothing".to_owned()).or_default() += 1,
    }
}

async fn answer(
    clients: &Clients,
    id: u16,
    (kind, kept): (u32, Option<UdpSocket>),
    refused: &mut u64,
) -> io::Result<(String, UdpSocket)> {
    let any = if clients.server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = match kept {
        Some(socket) => socket,
        None => UdpSocket::bind(any).await?,
    };
    let is_connected = kind > 1;
    if is_connected {
        socket.connect(clients.server).await?;
    }
    let packet = question(id, &clients.name, clients.address.is_ipv4());
    loop {
        let sent = if is_connected {
            socket.send(&packet).await
        } else {
            socket.send_to(&packet, clients.server).await
        };
        if let Err(error) = sent {
            note(error, refused)?;
        }
        let deadline = Instant::now() + RETRANSMIT;
        let mut buffer = [0; 1500];
        while let Ok(received) =
            tokio::time::timeout_at(deadline, socket.recv_from(&mut buffer)).await
        {
            match received {
                Ok((n, from)) => {
                    let what = buffer.get(..n).and_then(|reply| read(reply, id));
                    // An answer to an earlier question of this socket is none to this.
                    let Some(what) = what else { continue };
                    if from != clients.server {
                        return Ok((format!("from {from}"), socket));
                    }
                    let right = what == format!("NOERROR {}", clients.address);
                    let what = if right { "right".to_owned() } else { what };
                    return Ok((what, socket));
                }
                Err(error) => note(error, refused)?,
            }
        }
    }
}

/// A refusal is an ICMP error that came for what was sent before; the C library gives up then.
fn note(error: io::Error, refused: &mut u64) -> io::Result<()> {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        *refused += 1;
        return Ok(());
    }
    Err(error)
}
