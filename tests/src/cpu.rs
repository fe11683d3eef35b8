//! What work cost, by the kernel's accounting: the clocks of processes and threads.
//!
//! Softirq work that is done in a process's system calls counts as its own, where the kernel does not
//! account for interrupts apart (`CONFIG_IRQ_TIME_ACCOUNTING`).
#![expect(clippy::unwrap_used, reason = "a harness fails loudly")]

use std::fs;
use std::time::Duration;

use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// Of all threads of a process, those that have ended included.
///
/// # Panics
/// There is no such process.
#[must_use]
pub fn of(pid: u32) -> Duration {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.try_into().unwrap())).unwrap();
    clock_gettime(clock).unwrap().into()
}

/// Of the calling thread.
///
/// # Panics
/// The kernel has no such clock.
#[must_use]
pub fn mine() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// The thread that does the softirq work of a core when there is too much for anybody's call.
///
/// # Panics
/// There is none.
#[must_use]
pub fn softirq_thread(core: usize) -> u32 {
    let name = format!("ksoftirqd/{core}\n");
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let is_it = fs::read_to_string(format!("/proc/{pid}/comm")).ok()? == name;
        is_it.then_some(pid)
    });
    pids.min().unwrap()
}
