//! `DROPS`: samples of what was dropped, as they come.

use std::io;
use std::os::fd::AsFd;

use abi::drop::Dropped;
use aya::maps::{MapData, RingBuf};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The samples that nobody has taken yet. Each is taken once, by whoever reads first.
pub struct Drops(RingBuf<MapData>);

impl Drops {
    pub(crate) const fn new(ring: RingBuf<MapData>) -> Self {
        Self(ring)
    }

    /// Takes the next sample; `None` if there is none now.
    pub fn take(&mut self) -> Option<Dropped> {
        loop {
            let record = self.0.next()?;
            // One of another length is of another schema, which this map never is.
            if record.len() == size_of::<Dropped>() {
                // SAFETY: as long as the shape, whose every bit pattern is valid; it need not be
                // aligned.
                return Some(unsafe { record.as_ptr().cast::<Dropped>().read_unaligned() });
            }
        }
    }

    /// Waits until there is one.
    ///
    /// # Errors
    /// A signal came, or the kernel has no memory.
    pub fn wait(&self) -> io::Result<()> {
        poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        Ok(())
    }
}

impl std::fmt::Debug for Drops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drops").finish_non_exhaustive()
    }
}
