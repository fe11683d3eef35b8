//! Requests one after the other on one UDP socket, as a resolver or a game client sends them.

use tokio::{
    net::UdpSocket,
    time::{Instant, timeout},
};

use super::{
    Counter, Load, Protocol, at_rate,
    request::{self, Answer, Failure},
};

/// Sends `load` on one socket. After an error, not after a lost answer, a new one takes its place.
pub(super) async fn send_on_one(load: &Load, stop: impl Future<Output = ()>, counter: &Counter) {
    let mut socket: Option<UdpSocket> = None;
    at_rate(load, stop, async || {
        let started = Instant::now();
        let outcome = match timeout(load.timeout, ask(load, &mut socket)).await {
            Ok(outcome) => {
                if outcome.is_err() {
                    socket = None;
                }
                outcome
            }
            Err(_) => Err(Failure::new("recv", "timeout")),
        };
        counter.add(&outcome, started.elapsed());
    })
    .await;
}

async fn ask(load: &Load, socket: &mut Option<UdpSocket>) -> Result<Answer, Failure> {
    let is_connected = load.protocol == Protocol::UdpConnected;
    let socket = match socket {
        Some(socket) => socket,
        None if is_connected => socket.insert(request::connected(load.target).await?),
        None => socket.insert(request::unconnected(load.target).await?),
    };
    if is_connected {
        request::send_connected(socket).await
    } else {
        request::send_unconnected(socket, load.target).await
    }
}
