//! What does a plan cost: of a whole cluster, and of one slice that changes?
//!
//! Targets, on one core: 10,000 Services of 10 endpoints from nothing in 150 ms; one changed slice
//! in 100 µs, however many Services there are.
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model::cluster::{Change, Cluster, Dirty};
use proxy::config::NodeConfig;
use proxy::delta::{Actual, delta, delta_of};
use proxy::plan::{Planner, plan};
use tests::synthetic;

/// Services, and endpoints of each.
const SIZES: [(u32, u32); 4] = [(1_000, 10), (10_000, 10), (50_000, 5), (50_000, 10)];
const FULL_RUNS: usize = 5;
const CHANGES: u32 = 1_000;

fn main() {
    println!(
        "{:>8} {:>9} {:>10} {:>12} {:>12} {:>12} {:>12} {:>8}",
        "services",
        "endpoints",
        "full plan",
        "first delta",
        "one slice",
        "p99",
        "of it delta",
        "allocs"
    );
    for (n_services, n_endpoints) in SIZES {
        row(n_services, n_endpoints);
    }
}

fn row(n_services: u32, n_endpoints: u32) {
    let mut cluster = Cluster::new("node-0");
    cluster.apply_all(synthetic::cluster(n_services, n_endpoints));
    let snapshot = cluster.snapshot();
    let config = NodeConfig::new("node-0");

    let full = median((0..FULL_RUNS).map(|_| took(|| plan(&snapshot, &config)).0).collect());
    let mut planner = Planner::new(config);
    planner.replan(&snapshot, &Dirty::everything());
    let mut actual = Actual::default();
    let (first_delta, ops) = took(|| delta(&actual, planner.plan()));
    ops.iter().for_each(|op| actual.done(op));

    let (mut replans, mut deltas, mut allocations) = (Vec::new(), Vec::new(), 0);
    for turn in 1..=CHANGES {
        let idx = turn.wrapping_mul(7919) % n_services;
        let slice = synthetic::slice(idx, n_endpoints, turn);
        let dirty = cluster.apply(Change::Slice(Arc::new(slice)));
        let snapshot = cluster.snapshot();
        // As the loop does it, somebody else still holds the plan before.
        let before = planner.plan().clone();
        let counted = ALLOCATOR.count.load(Ordering::Relaxed);
        let (replanned, change) = took(|| planner.replan(&snapshot, &dirty));
        let (compared, ops) = took(|| delta_of(&actual, &change));
        allocations += ALLOCATOR.count.load(Ordering::Relaxed) - counted;
        assert!(!ops.is_empty(), "the change must change something");
        ops.iter().for_each(|op| actual.done(op));
        replans.push(replanned + compared);
        deltas.push(compared);
        drop(before);
    }
    replans.sort();
    let p99 = replans.get(replans.len() * 99 / 100).copied().unwrap_or_default();
    println!(
        "{n_services:>8} {n_endpoints:>9} {:>10} {:>12} {:>12} {:>12} {:>12} {:>8}",
        shown(full),
        shown(first_delta),
        shown(median(replans)),
        shown(p99),
        shown(median(deltas)),
        allocations / u64::from(CHANGES),
    );
}

fn took<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let started = Instant::now();
    let result = black_box(work());
    (started.elapsed(), result)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn shown(time: Duration) -> String {
    format!("{time:.1?}")
}

/// Counts allocations.
struct Counting {
    count: AtomicU64,
}

#[global_allocator]
static ALLOCATOR: Counting = Counting { count: AtomicU64::new(0) };

#[expect(unsafe_code, reason = "an allocator is unsafe by its trait; this one only counts")]
// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the system allocator's own.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from it.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.count.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
