//! What a client in a pod sends: requests at an open rate, counted by who answered and what failed.
//!
//! Open rate: a request starts when its time has come, however slow those before it are. So a pause
//! of the dataplane shows up as failures and late answers, not as fewer requests.

pub mod compare;
mod kept;
pub mod request;
mod socket;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, interval_at, timeout},
};

pub use request::{Answer, Failure, Protocol};

/// Requests under way at once. One that finds no place has failed.
const MAX_IN_FLIGHT: usize = 4096;

/// What to send.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where to. A v4-mapped IPv6 address is sent to through an IPv6 socket.
    pub target: SocketAddr,
    /// How.
    pub protocol: Protocol,
    /// Requests that start in a second.
    pub rate: u32,
    /// When to stop.
    pub until: Until,
    /// How long a request may take.
    pub timeout: Duration,
}

/// When a client begins no more requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// It is told to stop.
    Told,
    /// That time is over.
    Over(Duration),
    /// It has begun so many, however long that took.
    Sent(u32),
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Requests that were started and have ended.
    pub requests: u64,
    /// Those that got an answer.
    pub answered: u64,
    /// Those that did not.
    pub failed: u64,
    /// Answers by who gave them.
    pub answers: BTreeMap<String, u64>,
    /// Failures by step and error, like `connect: ECONNREFUSED`.
    pub failures: BTreeMap<String, u64>,
    /// Answers by where the socket says they came from.
    pub peers: BTreeMap<String, u64>,
    /// The slowest answer, in microseconds.
    pub slowest_us: u64,
    /// Whether this is the last word.
    pub done: bool,
}

impl Tally {
    fn add(&mut self, outcome: &Result<Answer, Failure>, took: Duration) {
        self.requests += 1;
        match outcome {
            Ok(Answer { name, peer }) => {
                self.answered += 1;
                *self.answers.entry(name.clone()).or_default() += 1;
                *self.peers.entry(peer.to_string()).or_default() += 1;
                let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                self.slowest_us = self.slowest_us.max(took);
            }
            Err(failure) => {
                self.failed += 1;
                *self.failures.entry(failure.to_string()).or_default() += 1;
            }
        }
    }
}

/// The tally, shared by the requests under way.
#[derive(Debug, Clone, Default)]
struct Counter(Arc<Mutex<Tally>>);

impl Counter {
    fn add(&self, outcome: &Result<Answer, Failure>, took: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(outcome, took);
    }

    fn read(&self) -> Tally {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Sends `load` until it is done or `stop` resolves, lets what is under way end, and reports
/// the tally so far every `report_every`, the last one marked as done.
///
/// # Errors
/// When `report` fails.
pub async fn run(
    load: &Load,
    stop: impl Future<Output = ()>,
    report_every: Duration,
    mut report: impl FnMut(&Tally) -> io::Result<()>,
) -> io::Result<()> {
    let counter = Counter::default();
    let reporting = async {
        let mut ticks = interval(report_every);
        loop {
            ticks.tick().await;
            report(&counter.read())?;
        }
    };
    let sending = async {
        match load.protocol {
            Protocol::UdpUnconnected | Protocol::UdpConnected => {
                socket::send_on_one(load, stop, &counter).await;
            }
            Protocol::TcpKept => kept::send_on_kept(load, stop, &counter).await,
            Protocol::Tcp | Protocol::Http | Protocol::HttpSource | Protocol::Udp => {
                send(load, stop, &counter).await;
            }
        }
    };
    let failed: Option<io::Result<()>> = tokio::select! {
        failed = reporting => Some(failed),
        () = sending => None,
    };
    failed.unwrap_or(Ok(()))?;
    report(&Tally { done: true, ..counter.read() })
}

/// A socket a request.
async fn send(load: &Load, stop: impl Future<Output = ()>, counter: &Counter) {
    let mut requests = JoinSet::new();
    let places = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
    at_rate(load, stop, async || {
        while requests.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            counter.add(&Err(Failure::new("start", "too many requests under way")), Duration::ZERO);
            return;
        };
        let (target, protocol, limit) = (load.target, load.protocol, load.timeout);
        let counter = counter.clone();
        requests.spawn(async move {
            let started = Instant::now();
            let outcome = timeout(limit, request::send(protocol, target)).await;
            let outcome = outcome.unwrap_or_else(|_| Err(Failure::new("answer", "timeout")));
            counter.add(&outcome, started.elapsed());
            drop(place);
        });
    })
    .await;
    while requests.join_next().await.is_some() {}
}

/// Calls `f` at the rate of `load`, and makes up for calls that came late.
async fn at_rate(load: &Load, stop: impl Future<Output = ()>, mut f: impl AsyncFnMut()) {
    let period = Duration::from_secs(1) / load.rate.max(1);
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let over = async {
        match load.until {
            Until::Over(duration) => tokio::time::sleep(duration).await,
            Until::Told | Until::Sent(_) => std::future::pending().await,
        }
    };
    tokio::pin!(stop, over);
    let mut n_sent = 0;
    while load.until != Until::Sent(n_sent) {
        tokio::select! {
            biased;
            () = &mut stop => return,
            () = &mut over => return,
            _ = ticks.tick() => f().await,
        }
        n_sent = n_sent.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests;
