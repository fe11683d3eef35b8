//! A process that is killed at random moments, and what others may know of its lives.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sandbox::wait;
use tests::cluster::Node;
use tests::pace::Pace;

/// Within this time of its start, about as long as a start takes.
const STARTING: u64 = 600;
/// Within this time of being in sync.
const RUNNING: u64 = 1200;

/// Between two steps of what goes on meanwhile.
pub(super) const STEP: Duration = Duration::from_millis(100);

/// Processes are counted by their starts.
#[derive(Debug, Default)]
pub(super) struct Lives {
    started: AtomicU64,
    in_sync: AtomicU64,
}

impl Lives {
    /// Whoever is in sync with what a later process than this found knows of all that came before.
    pub(super) fn now(&self) -> u64 {
        self.started.load(Ordering::SeqCst)
    }

    /// Whether a process that was started later has come in sync.
    pub(super) fn later_is_in_sync(&self, now: u64) -> bool {
        self.in_sync.load(Ordering::SeqCst) > now
    }
}

/// Kills the proxy that runs and those that follow, so many, on their way and at their work in turns,
/// and takes a step ten times a second meanwhile. The last one stays. Says how many steps did something.
pub(super) fn killed(
    node: &mut Node,
    n_kills: u64,
    lives: &Lives,
    pace: Pace,
    mut step: impl FnMut() -> bool,
) -> u64 {
    node.kill_proxy();
    thread::scope(|scope| {
        let killer = scope.spawn(|| {
            for life in 1..n_kills {
                lives.started.store(life, Ordering::SeqCst);
                node.spawn_proxy();
                let within = if life % 2 == 0 {
                    STARTING
                } else {
                    node.wait_in_sync();
                    lives.in_sync.store(life, Ordering::SeqCst);
                    RUNNING
                };
                let moment = pace.time(random(within));
                let ended = wait::until(moment, || node.proxy_has_ended());
                assert!(!ended, "it ended by itself:\n{}", node.log());
                node.kill_proxy();
            }
            lives.started.store(n_kills, Ordering::SeqCst);
            node.start_proxy();
            lives.in_sync.store(n_kills, Ordering::SeqCst);
        });
        let period = pace.time(STEP);
        let (mut n_steps, mut next) = (0, Instant::now() + period);
        while !wait::until(next.saturating_duration_since(Instant::now()), || killer.is_finished())
        {
            next += period;
            n_steps += u64::from(step());
        }
        killer.join().unwrap();
        n_steps
    })
}

/// A time below so many milliseconds.
fn random(below: u64) -> Duration {
    Duration::from_micros(RandomState::new().hash_one(below) % (below * 1000))
}
