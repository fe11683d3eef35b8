//! Threads with a reactor each for every arm of a test, and slices of load that all begin at once.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvError, SendError, SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::{
    clock::{self, MILLISECOND},
    kind::Load,
    reactor::{Reactor, RunError, StartError},
    schedule::Schedule,
    tally::Tally,
};

/// Descriptors beside the requests': an epoll and a timer for each reactor, files, pipes.
const SPARE_DESCRIPTORS: usize = 256;
/// From the order to the begin of a slice: every thread is awake by then.
const AHEAD: u64 = MILLISECOND / 5;

/// A slice of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// How long requests begin, in nanoseconds.
    pub nanos: u64,
    /// Whether to keep when each endpoint was hit.
    pub keeps_hits: bool,
}

/// Somebody who sends: this process, or one in a pod.
pub trait Hand {
    /// Gets ready for a load, and returns the number by which to run it.
    ///
    /// # Errors
    /// It cannot be sent, with the reason.
    fn prepare(&mut self, load: &Load) -> Result<usize, GenerateError>;

    /// Runs a slice to its end.
    ///
    /// # Errors
    /// When it broke off. Requests that fail are counted, and no error.
    fn run(&mut self, arm: usize, slice: Slice) -> Result<Tally, GenerateError>;
}

/// Why nothing is sent.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A thread could not be made.
    #[error("starting a thread")]
    Thread(#[source] io::Error),
    /// The network namespace cannot be entered.
    #[error("entering the network namespace {}", path.display())]
    Namespace {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A reactor could not be made.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A slice broke off.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The limit is too low.
    #[error(
        "{needed} file descriptors are needed and {limit} allowed: raise the limit with \
         `ulimit -n {needed}`, or lower --concurrency"
    )]
    Descriptors {
        /// As many as there will be.
        needed: usize,
        /// The hard limit.
        limit: u64,
    },
    /// No such load was prepared.
    #[error("load {0} was not prepared")]
    Unknown(usize),
    /// A thread has ended, by a panic.
    #[error("a thread of the generator has died")]
    Dead,
    /// The process that sends said so.
    #[error("{0}")]
    Said(String),
    /// The process that sends cannot be talked to.
    #[error("the process that sends has ended")]
    Gone(#[source] io::Error),
}

impl<T> From<SendError<T>> for GenerateError {
    fn from(_: SendError<T>) -> Self {
        Self::Dead
    }
}

impl From<RecvError> for GenerateError {
    fn from(_: RecvError) -> Self {
        Self::Dead
    }
}

/// How the generator is built.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Threads {
    /// How many; 0 is one for each processor that this process may run on.
    pub n_threads: usize,
    /// The processors to keep them on, in turn; the kernel's choice when there are none.
    pub processors: Vec<usize>,
    /// The network namespace to send from; this process's own when there is none.
    #[serde(default)]
    pub netns: Option<PathBuf>,
}

/// The threads.
#[derive(Debug)]
pub struct Generator {
    threads: Vec<Thread>,
    /// The rate of each load, as prepared.
    rates: Vec<Option<u64>>,
    n_descriptors: usize,
}

#[derive(Debug)]
struct Thread {
    orders: Option<SyncSender<Order>>,
    done: Receiver<Result<Option<Tally>, GenerateError>>,
    handle: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Order {
    Prepare(Box<Load>),
    Run { arm: usize, schedule: Schedule, begin: u64, keeps_hits: bool },
}

impl Generator {
    /// Starts the threads.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn start(threads: &Threads) -> Result<Self, GenerateError> {
        let n_threads = match threads.n_threads {
            0 => n_processors(),
            n => n,
        };
        let threads = (0..n_threads)
            .map(|idx| {
                let place = idx.checked_rem(threads.processors.len());
                let processor = place.and_then(|it| threads.processors.get(it)).copied();
                Thread::start(idx, processor, threads.netns.clone())
            })
            .collect::<Result<Vec<_>, _>>()?;
        // Each says that it is where it should be.
        for thread in &threads {
            thread.done.recv()??;
        }
        Ok(Self { threads, rates: Vec::new(), n_descriptors: SPARE_DESCRIPTORS })
    }

    fn gather(&self) -> Result<Vec<Tally>, GenerateError> {
        let done: Vec<_> =
            self.threads.iter().map(|thread| thread.done.recv().map_err(Into::into)).collect();
        done.into_iter().map(Result::flatten).filter_map(Result::transpose).collect()
    }
}

impl Hand for Generator {
    fn prepare(&mut self, load: &Load) -> Result<usize, GenerateError> {
        self.n_descriptors += load.n_descriptors() + 2 * self.threads.len();
        allow_descriptors(self.n_descriptors)?;
        let n = self.threads.len();
        for (idx, thread) in self.threads.iter().enumerate() {
            let concurrency = load.concurrency / n + usize::from(idx < load.concurrency % n);
            thread.order(Order::Prepare(Box::new(Load { concurrency, ..load.clone() })))?;
        }
        self.gather()?;
        self.rates.push(load.rate);
        Ok(self.rates.len() - 1)
    }

    fn run(&mut self, arm: usize, slice: Slice) -> Result<Tally, GenerateError> {
        let rate = *self.rates.get(arm).ok_or(GenerateError::Unknown(arm))?;
        let around = retransmitted_around();
        let cpu = clock::own_cpu();
        let begin = clock::now() + AHEAD;
        let end = begin + slice.nanos;
        for (thread, idx) in self.threads.iter().zip(0..) {
            let schedule = match rate {
                Some(rate) => Schedule::open((begin, end), rate, idx, self.threads.len() as u64),
                None => Schedule::closed(begin, end),
            };
            thread.order(Order::Run { arm, schedule, begin, keeps_hits: slice.keeps_hits })?;
        }
        let mut sum = Tally::default();
        self.gather()?.into_iter().for_each(|tally| sum.add(tally));
        sum.cpu = (clock::own_cpu() - cpu).saturating_sub(sum.awake);
        sum.retransmitted_around = retransmitted_around().saturating_sub(around);
        Ok(sum)
    }
}

impl Thread {
    fn start(
        idx: usize,
        processor: Option<usize>,
        netns: Option<PathBuf>,
    ) -> Result<Self, GenerateError> {
        let (orders, received) = sync_channel(1);
        let (report, done) = sync_channel(1);
        let handle = thread::Builder::new()
            .name(format!("load-{idx}"))
            .spawn(move || {
                if let Some(processor) = processor {
                    stay_on(processor);
                }
                let entered = netns.as_deref().map_or(Ok(()), enter);
                let is_lost = entered.is_err();
                if report.send(entered.map(|()| None)).is_err() || is_lost {
                    return;
                }
                let mut reactors = Vec::new();
                while let Ok(order) = received.recv() {
                    if report.send(obey(&mut reactors, order, idx)).is_err() {
                        return;
                    }
                }
            })
            .map_err(GenerateError::Thread)?;
        Ok(Self { orders: Some(orders), done, handle: Some(handle) })
    }

    fn order(&self, order: Order) -> Result<(), GenerateError> {
        Ok(self.orders.as_ref().ok_or(GenerateError::Dead)?.send(order)?)
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.orders = None;
        // A thread that panicked has said so already.
        drop(self.handle.take().map(JoinHandle::join));
    }
}

fn obey(
    reactors: &mut Vec<Reactor>,
    order: Order,
    idx: usize,
) -> Result<Option<Tally>, GenerateError> {
    match order {
        Order::Prepare(load) => {
            reactors.push(Reactor::new(*load, idx)?);
            Ok(None)
        }
        Order::Run { arm, schedule, begin, keeps_hits } => {
            let reactor = reactors.get_mut(arm).ok_or(GenerateError::Unknown(arm))?;
            Ok(Some(reactor.run(schedule, begin, keeps_hits)?))
        }
    }
}

/// The processors that this process may run on.
#[must_use]
pub fn n_processors() -> usize {
    let allowed = sched_getaffinity(Pid::this())
        .map(|set| (0..CpuSet::count()).filter(|idx| set.is_set(*idx) == Ok(true)).count());
    allowed.unwrap_or(1).max(1)
}

/// Keeps the calling thread on one processor, if it may.
pub fn stay_on(processor: usize) -> bool {
    let mut set = CpuSet::new();
    set.set(processor).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).is_ok()
}

/// Moves the calling thread into a network namespace.
fn enter(path: &Path) -> Result<(), GenerateError> {
    let entered = File::open(path).and_then(|file| Ok(setns(file, CloneFlags::CLONE_NEWNET)?));
    entered.map_err(|source| GenerateError::Namespace { path: path.to_owned(), source })
}

/// Raises the soft limit as far as is needed and allowed.
fn allow_descriptors(needed: usize) -> Result<(), GenerateError> {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return Ok(()) };
    let wanted = needed as u64;
    if wanted <= soft {
        return Ok(());
    }
    if wanted <= hard && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() {
        return Ok(());
    }
    Err(GenerateError::Descriptors { needed, limit: hard })
}

/// `RetransSegs` of this thread's network namespace.
fn retransmitted_around() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/snmp").unwrap_or_default();
    retrans_segs(&text).unwrap_or_default()
}

/// From the line of names and the line of numbers that both begin with `Tcp:`.
fn retrans_segs(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let place = names.split_whitespace().position(|name| name == "RetransSegs")?;
    numbers.split_whitespace().nth(place)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retransmissions_are_read_by_name() {
        let snmp = "Ip: Forwarding\nIp: 1\nTcp: RtoMin OutSegs RetransSegs InErrs\n\
                    Tcp: 200 10 7 0\n";
        assert_eq!(retrans_segs(snmp), Some(7));
        assert_eq!(retrans_segs("Tcp: RtoMin\n"), None);
    }

    #[test]
    fn more_descriptors_than_the_limit_are_refused_with_both_numbers() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let needed = usize::try_from(hard).unwrap().saturating_add(1);
        let error = allow_descriptors(needed).unwrap_err().to_string();
        assert!(error.contains(&needed.to_string()) && error.contains("ulimit -n"), "{error}");
    }
}
