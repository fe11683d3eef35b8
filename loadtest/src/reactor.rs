//! One thread's load: sockets that wait for nobody, one epoll for all, a timer for what is due.

mod slot;
mod tcp_info;
mod vigil;

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use mio::{Events, Interest, Poll, Token, unix::SourceFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use self::slot::{Shared, Slot, Step};
use self::vigil::Vigil;
use crate::{
    clock::{self, MILLISECOND},
    kind::Load,
    schedule::Schedule,
    tally::{Counter, Tally},
    wire::{NameError, Request},
};

const TIMER: Token = Token(usize::MAX - 1);
const N_EVENTS: usize = 1024;
const BUFFER: usize = 64 * 1024;
/// How often requests are looked at whose time may be over.
const LOOK_EVERY: u64 = 10 * MILLISECOND;
/// What is due sooner than this is waited for awake: a timer takes about as long.
const AWAKE: u64 = 30_000;
/// Answers that come this soon find the thread awake.
const VIGIL: u64 = 30_000;
/// A server that has not closed by then will not.
const DRAIN: u64 = 20 * MILLISECOND;
/// A place rests after an error, so that errors do not make the generator spin.
const REST: u64 = MILLISECOND;

/// Why a reactor cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kernel has none.
    #[error("making an epoll and its timer")]
    Poll(#[source] io::Error),
    /// The name cannot be asked for.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Why a slice broke off.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Waiting for sockets failed.
    #[error("waiting for sockets")]
    Wait(#[source] io::Error),
    /// Setting the timer failed.
    #[error("setting a timer")]
    Timer(#[source] nix::Error),
}

/// One thread's sockets and what they send.
#[derive(Debug)]
pub(crate) struct Reactor {
    poll: Poll,
    events: Events,
    timer: TimerFd,
    /// When the timer goes off.
    armed: u64,
    vigil: Vigil,
    slots: Vec<Slot>,
    idle: Vec<usize>,
    /// Places that rest, and until when.
    resting: VecDeque<(u64, usize)>,
    shared: Shared,
}

impl Reactor {
    /// `load.concurrency` is this reactor's own; `reactor_idx` says where in the turn it begins.
    pub(crate) fn new(load: Load, reactor_idx: usize) -> Result<Self, StartError> {
        let request = Request::of(&load)?;
        let poll = Poll::new().map_err(StartError::Poll)?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)
            .map_err(|errno| StartError::Poll(errno.into()))?;
        let registry = poll.registry().try_clone().map_err(StartError::Poll)?;
        registry
            .register(&mut SourceFd(&timer.as_fd().as_raw_fd()), TIMER, Interest::READABLE)
            .map_err(StartError::Poll)?;
        let n_slots = load.concurrency;
        Ok(Self {
            poll,
            timer,
            armed: 0,
            vigil: Vigil::default(),
            events: Events::with_capacity(N_EVENTS),
            slots: (0..n_slots).map(Slot::new).collect(),
            // The last is taken first: the lowest number.
            idle: (0..n_slots).rev().collect(),
            resting: VecDeque::new(),
            shared: Shared {
                load,
                request,
                registry,
                counter: Counter::default(),
                buffer: vec![0; BUFFER].into_boxed_slice(),
                server_closes: true,
                n_connections: reactor_idx,
                id: 0,
            },
        })
    }

    /// Sends what the schedule says, and returns when each request has ended.
    pub(crate) fn run(
        &mut self,
        mut schedule: Schedule,
        begin: u64,
        keeps_hits: bool,
    ) -> Result<Tally, RunError> {
        self.shared.counter.clear(keeps_hits);
        let mut now = clock::now();
        let mut looked = now;
        loop {
            self.start_due(&mut schedule, &mut now);
            if schedule.is_over(now) && self.idle.len() + self.resting.len() == self.slots.len() {
                break;
            }
            self.wait(&schedule, now)?;
            let before = now;
            now = clock::now();
            let pause = &mut self.shared.counter.longest_pause;
            *pause = (*pause).max((now - before).saturating_sub(LOOK_EVERY));
            self.advance_ready();
            if now >= looked + LOOK_EVERY {
                looked = now;
                self.look(now);
            }
            self.wake(now);
        }
        self.wake(u64::MAX);
        for slot in &mut self.slots {
            self.shared.counter.retransmitted += slot.new_retransmissions();
        }
        Ok(self.shared.counter.tally(begin, now))
    }

    /// Begins what is due, as far as there are places.
    fn start_due(&mut self, schedule: &mut Schedule, now: &mut u64) {
        let mut n_started = 0;
        while let Some(slot_idx) = self.idle.last().copied() {
            let Some(since) = schedule.take(*now) else { break };
            self.idle.pop();
            let (late, is_alone) = (*now - since, self.idle.len() + 1 == self.slots.len());
            let Some(slot) = self.slots.get_mut(slot_idx) else { continue };
            if n_started == 0 && is_alone {
                // Nothing was under way: nobody but the generator is late.
                self.shared.counter.latest = self.shared.counter.latest.max(late);
            }
            let step = slot.start(&mut self.shared, since, *now);
            self.after(slot_idx, step, *now);
            *now = clock::now();
            n_started += 1;
        }
    }

    fn advance_ready(&mut self) {
        let ready: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
        for slot_idx in ready {
            let Some(slot) = self.slots.get_mut(slot_idx) else { continue };
            let was_busy = slot.is_draining() || slot.age(0).is_some();
            let now = clock::now();
            let step = slot.advance(&mut self.shared, now);
            if was_busy {
                self.after(slot_idx, step, now);
            }
        }
    }

    fn after(&mut self, slot_idx: usize, step: Step, now: u64) {
        match step {
            Step::Busy => {}
            Step::Free => self.idle.push(slot_idx),
            Step::Failed(what) => {
                self.shared.counter.failed(what);
                self.resting.push_back((now + REST, slot_idx));
            }
        }
    }

    /// Gives up on requests whose time is over, and on servers that do not close.
    fn look(&mut self, now: u64) {
        let timeout = self.shared.load.timeout;
        for (slot_idx, slot) in self.slots.iter_mut().enumerate() {
            let is_over = slot.age(now).is_some_and(|age| age >= timeout);
            if is_over {
                let since = slot.give_up();
                self.shared.counter.timed_out(now.saturating_sub(since));
                self.resting.push_back((now + REST, slot_idx));
            } else if slot.is_draining() && slot.drained_for(now) >= DRAIN {
                slot.give_up();
                self.shared.server_closes = false;
                self.idle.push(slot_idx);
            }
        }
    }

    /// Ends the rest of places whose time has come.
    fn wake(&mut self, now: u64) {
        while let Some((until, slot_idx)) = self.resting.front().copied()
            && until <= now
        {
            self.resting.pop_front();
            self.idle.push(slot_idx);
        }
    }

    /// Waits for a socket, for what is due, or for the next look.
    fn wait(&mut self, schedule: &Schedule, now: u64) -> Result<(), RunError> {
        let due = schedule.next_due().filter(|due| !self.idle.is_empty() && *due > now);
        let timeout = match (due, self.resting.is_empty()) {
            (Some(due), _) if due - now < AWAKE => 0,
            (Some(due), _) => {
                self.set_timer(due)?;
                LOOK_EVERY
            }
            (None, false) => REST,
            (None, true) => LOOK_EVERY,
        };
        let n_under_way = self.slots.len() - self.idle.len() - self.resting.len();
        // One alone wants to know what a request costs that wakes whom it meets.
        if timeout > 0 && n_under_way > 1 && self.vigil.is_worth_it() && self.watch()? {
            return Ok(());
        }
        self.poll(timeout)
    }

    /// Waits awake; whether anything has come. What that costs is not the requests' cost.
    fn watch(&mut self) -> Result<bool, RunError> {
        self.poll(0)?;
        if !self.events.is_empty() {
            return Ok(true);
        }
        let (cpu, until) = (clock::thread_cpu(), clock::now() + VIGIL);
        while self.events.is_empty() && clock::now() < until {
            self.poll(0)?;
        }
        self.shared.counter.awake += clock::thread_cpu().saturating_sub(cpu);
        let has_come = !self.events.is_empty();
        self.vigil.ended(has_come);
        Ok(has_come)
    }

    fn poll(&mut self, timeout: u64) -> Result<(), RunError> {
        match self.poll.poll(&mut self.events, Some(Duration::from_nanos(timeout))) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(RunError::Wait(error)),
            _ => Ok(()),
        }
    }

    fn set_timer(&mut self, due: u64) -> Result<(), RunError> {
        if due == self.armed {
            return Ok(());
        }
        self.armed = due;
        let at = TimeSpec::from(Duration::from_nanos(due));
        self.timer
            .set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            .map_err(RunError::Timer)
    }
}
