//! `TCP_INFO`, which neither nix nor socket2 asks for.

#![expect(unsafe_code, reason = "one system call that no safe wrapper has")]

use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Segments that a connection has sent again; nothing when the kernel does not say.
pub(super) fn retransmitted(socket: BorrowedFd<'_>) -> Option<u32> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
    // SAFETY: `info` is writable for `length` bytes, and the descriptor is open while borrowed.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    // SAFETY: zeroes are a valid tcp_info, and so is what the kernel writes over them.
    let info = unsafe { info.assume_init() };
    (failed == 0).then_some(info.tcpi_total_retrans)
}
