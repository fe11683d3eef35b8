//! An allocator that counts, for tests of what things cost in memory. A test program of one test declares it:
//! several at a time would count each other's memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// One mebibyte.
pub const MIB: usize = 1 << 20;

/// The system's allocator, counted in octets as they were asked for.
#[derive(Debug)]
pub struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// What is allocated now.
pub fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// The most that was since the last [`forget_peak`].
pub fn peak() -> usize {
    PEAK.load(Ordering::Relaxed)
}

/// From here on the peak is that of what follows.
pub fn forget_peak() {
    PEAK.store(live(), Ordering::Relaxed);
}

fn count(size: usize) {
    let live = LIVE.fetch_add(size, Ordering::Relaxed) + size;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

#[expect(unsafe_code, reason = "an allocator is unsafe to be; this one passes every call on")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise about `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise that `pointer` came from here with `layout`.
        unsafe { System.dealloc(pointer, layout) }
    }
}
