//! A memory-mapped ARRAY map, as words.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::OnceLock;
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
        Self::from_word(map, 0, n_words)
    }

    /// The same from a word on that stands at the begin of a page.
    fn from_word(map: impl AsFd, first: usize, n_words: usize) -> io::Result<Self> {
        let offset = u64::try_from(first * size_of::<u64>()).map_err(io::Error::other)?;
        let mut options = MmapOptions::new();
        let options = options.offset(offset).len(n_words * size_of::<u64>());
        let memory = options.map_raw(map.as_fd().as_raw_fd())?;
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

/// An ARRAY map of `N` words an entry, of which only what is used is mapped. The kernel enters all pages of a
/// mapping at once, and they count as this process's memory: a map's size is its capacity, not the cluster's.
#[derive(Debug)]
pub(crate) struct MappedEntries<const N: usize> {
    map: OwnedFd,
    len: u32,
    windows: Box<[OnceLock<MappedWords>]>,
}

/// Words of a window: some dozens of them hold ten thousand Services, and each is a whole number of entries.
const WINDOW_WORDS: usize = 16 << 10;

impl<const N: usize> MappedEntries<N> {
    const WINDOW: usize = {
        assert!(WINDOW_WORDS.is_multiple_of(N), "an entry would stand in two windows");
        WINDOW_WORDS / N
    };

    /// The first `len` entries of a map.
    ///
    /// # Errors
    /// As of [`MappedWords::new`].
    pub(crate) fn new(map: impl AsFd, len: u32) -> io::Result<Self> {
        let map = map.as_fd().try_clone_to_owned()?;
        let n_windows = (len as usize).div_ceil(Self::WINDOW);
        let windows = (0..n_windows).map(|_| OnceLock::new()).collect();
        let entries = Self { map, len, windows };
        // A map that cannot be mapped is found out now.
        if len > 0 {
            entries.reach(0)?;
        }
        Ok(entries)
    }

    /// How many entries there are.
    pub(crate) const fn len(&self) -> u32 {
        self.len
    }

    /// An entry, which is absent where there is none or where the kernel does not map it.
    pub(crate) fn get(&self, index: u32) -> Option<&[AtomicU64; N]> {
        self.reach(index).ok()
    }

    /// The same for whoever is going to write there.
    ///
    /// # Errors
    /// There is no such entry, or the kernel does not map it.
    pub(crate) fn reach(&self, index: u32) -> io::Result<&[AtomicU64; N]> {
        let beyond = || io::Error::from(io::ErrorKind::InvalidInput);
        let (window, entry) = (index as usize / Self::WINDOW, index as usize % Self::WINDOW);
        let words = self.window(window)?.words();
        let words = words.get(entry * N..).and_then(<[AtomicU64]>::first_chunk);
        words.ok_or_else(beyond)
    }

    fn window(&self, window: usize) -> io::Result<&MappedWords> {
        let beyond = || io::Error::from(io::ErrorKind::InvalidInput);
        let place = self.windows.get(window).ok_or_else(beyond)?;
        if let Some(mapped) = place.get() {
            return Ok(mapped);
        }
        let first = window * WINDOW_WORDS;
        let n_words = (self.len as usize * N - first).min(WINDOW_WORDS);
        let mapped = MappedWords::from_word(&self.map, first, n_words)?;
        Ok(place.get_or_init(|| mapped))
    }

    /// How many bytes are mapped.
    #[cfg(test)]
    fn n_mapped(&self) -> usize {
        let mapped = self.windows.iter().filter_map(OnceLock::get);
        mapped.map(|words| words.n_words * size_of::<u64>()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::atomic::Ordering;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    const N: usize = 4;

    fn memory(len: u32) -> File {
        let file = File::from(memfd_create("entries", MFdFlags::empty()).unwrap());
        file.set_len(u64::from(len) * (N * size_of::<u64>()) as u64).unwrap();
        file
    }

    #[test]
    fn only_the_windows_that_are_used_are_mapped() {
        let len = 100_000;
        let entries = MappedEntries::<N>::new(memory(len), len).unwrap();
        let window = WINDOW_WORDS * size_of::<u64>();
        assert_eq!(entries.n_mapped(), window);
        for index in [0, 1, 99_999, 50_000] {
            entries.reach(index).unwrap()[N - 1].store(index.into(), Ordering::Relaxed);
        }
        assert!(entries.n_mapped() <= 3 * window, "{}", entries.n_mapped());
        for index in [0, 1, 99_999, 50_000] {
            let word = entries.get(index).unwrap()[N - 1].load(Ordering::Relaxed);
            assert_eq!(word, index.into());
        }
    }

    #[test]
    fn entries_stand_where_the_map_has_them() {
        let len = 3 * u32::try_from(MappedEntries::<N>::WINDOW).unwrap() - 1;
        let file = memory(len);
        let whole = MappedWords::new(&file, len as usize * N).unwrap();
        let entries = MappedEntries::<N>::new(&file, len).unwrap();
        for index in (0..len).step_by(997).chain([len - 1]) {
            entries.get(index).unwrap()[0].store(u64::from(index) + 1, Ordering::Relaxed);
            let word = whole.words()[index as usize * N].load(Ordering::Relaxed);
            assert_eq!(word, u64::from(index) + 1);
        }
        assert!(entries.get(len).is_none() && entries.get(u32::MAX).is_none());
    }

    #[test]
    fn what_cannot_be_mapped_is_an_error_at_once() {
        let (pipe, _end) = nix::unistd::pipe().unwrap();
        MappedEntries::<N>::new(pipe, 1).unwrap_err();
    }
}
