//! A memory-mapped ARRAY map, as words.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU8, AtomicU64};

use memmap2::{MmapOptions, MmapRaw};

/// The values of an ARRAY map with `BPF_F_MMAPABLE` whose value size is a multiple of eight.
#[derive(Debug)]
pub(crate) struct MappedWords {
    memory: MmapRaw,
    n_words: usize,
}

impl MappedWords {
    /// Maps the first `n_words` words of a map.
    ///
    /// # Errors
    /// The kernel refuses: not an mmapable array, or smaller than that.
    pub(crate) fn new(map: impl AsFd, n_words: usize) -> io::Result<Self> {
        let bytes = n_words * size_of::<u64>();
        let memory = MmapOptions::new().len(bytes).map_raw(map.as_fd().as_raw_fd())?;
        Ok(Self { memory, n_words })
    }

    /// The words. Programs read them while user space writes: only atomic access is sound.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, `n_words` words long, and lives as long as `self`;
        // the kernel's programs access it by aligned words, as `AtomicU64` does.
        unsafe {
            std::slice::from_raw_parts(self.memory.as_ptr().cast::<AtomicU64>(), self.n_words)
        }
    }

    /// The same as bytes, where programs access bytes.
    pub(crate) fn bytes(&self) -> &[AtomicU8] {
        let n_bytes = self.n_words * size_of::<u64>();
        // SAFETY: as above, by bytes.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast::<AtomicU8>(), n_bytes) }
    }
}
