//! Orders and questions to the kernel, one at a time.

use std::io;

use netlink_sys::{Socket, SocketAddr};

use super::attributes::{DONE, ERROR, error_of, messages};

/// A connection to one part of the kernel.
pub(crate) struct Talk {
    socket: Socket,
}

impl Talk {
    /// To that protocol of netlink, in this network namespace.
    ///
    /// # Errors
    /// The kernel gives no such socket.
    pub(crate) fn with(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// Sends a message that asks to be acknowledged, or for a dump, and gives what is told until
    /// then: each message's kind and payload.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn ask(&self, message: &[u8]) -> io::Result<Vec<(u16, Vec<u8>)>> {
        let mut told = Vec::new();
        self.socket.send(message, 0)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for (kind, payload) in messages(&datagram) {
                match (kind, error_of(payload)) {
                    (DONE, _) | (ERROR, 0) => return Ok(told),
                    (ERROR, code) => return Err(io::Error::from_raw_os_error(code)),
                    _ => told.push((kind, payload.to_vec())),
                }
            }
        }
    }
}

impl std::fmt::Debug for Talk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Talk").finish_non_exhaustive()
    }
}
