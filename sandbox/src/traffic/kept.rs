//! Requests on TCP connections that are kept, as a pool of a database's clients sends them.

use std::{iter, sync::Arc, time::Duration};

use tokio::{
    net::TcpStream,
    sync::Mutex,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    Counter, Load, at_rate,
    request::{self, Answer, Failure},
};

/// A connection, once it is open.
type Kept = Arc<Mutex<Option<TcpStream>>>;

/// Sends `load` on as many connections as it has requests a second, on each in its turn. One that
/// fails has failed once; a new one takes its place.
pub(super) async fn send_on_kept(load: &Load, stop: impl Future<Output = ()>, counter: &Counter) {
    let connections = usize::try_from(load.rate.max(1)).unwrap_or(usize::MAX);
    let connections: Vec<Kept> = iter::repeat_with(Kept::default).take(connections).collect();
    let mut turns = connections.iter().cycle();
    let mut requests = JoinSet::new();
    at_rate(load, stop, async || {
        while requests.try_join_next().is_some() {}
        let Some(kept) = turns.next().cloned() else { return };
        let (load, counter) = (load.clone(), counter.clone());
        requests.spawn(async move {
            // One that is slow is not asked again meanwhile.
            let mut kept = kept.lock().await;
            let (outcome, took) = send(&load, &mut kept).await;
            if outcome.is_err() {
                *kept = None;
            }
            counter.add(&outcome, took);
        });
    })
    .await;
    while requests.join_next().await.is_some() {}
}

async fn send(load: &Load, kept: &mut Option<TcpStream>) -> (Result<Answer, Failure>, Duration) {
    let started = Instant::now();
    let asked = async {
        let stream = match kept {
            Some(stream) => stream,
            None => kept.insert(request::opened(load.target).await?),
        };
        request::send_kept(stream).await
    };
    let outcome = timeout(load.timeout, asked).await;
    let outcome = outcome.unwrap_or_else(|_| Err(Failure::new("answer", "timeout")));
    (outcome, started.elapsed())
}
