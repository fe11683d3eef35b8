//! A responder that knows one answer: what the kernel costs, and nothing else.
#![expect(unsafe_code, reason = "recvmmsg and sendmmsg as they are, with nobody's wrapper between")]

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::ptr;

const BATCH: usize = 32;
const ROOM: usize = 2048;
const NAME: usize = 28;
/// A pointer to the question's name, A, IN, 5 s, 10.112.0.1.
const ANSWER: [u8; 16] = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 112, 0, 1];

/// Answers every packet as if it were one question of class IN without EDNS.
pub(crate) fn serve(port: u16) -> ! {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let mut buffers = vec![[0_u8; ROOM]; BATCH];
    let mut names = [[0_u8; NAME]; BATCH];
    // SAFETY: a header of zeros is an empty header.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    let mut parts: Vec<libc::iovec> = buffers
        .iter_mut()
        .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: ROOM })
        .collect();
    for ((header, part), name) in headers.iter_mut().zip(&mut parts).zip(&mut names) {
        header.msg_hdr.msg_iov = part;
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_name = name.as_mut_ptr().cast();
        header.msg_hdr.msg_namelen = 28;
    }
    loop {
        let fd = socket.as_raw_fd();
        // SAFETY: every header points to a buffer and a name of the lengths that it gives.
        let n = unsafe {
            libc::recvmmsg(fd, headers.as_mut_ptr(), 32, libc::MSG_WAITFORONE, ptr::null_mut())
        };
        let n = usize::try_from(n).unwrap();
        for ((header, part), buffer) in headers.iter().zip(&mut parts).zip(&mut buffers).take(n) {
            let len = header.msg_len as usize;
            let [_, _, flags, _, _, _, _, n_answers, ..] = buffer;
            *flags |= 0x84;
            *n_answers = 1;
            if let Some(to) = buffer.get_mut(len..len + ANSWER.len()) {
                to.copy_from_slice(&ANSWER);
            }
            part.iov_len = len + ANSWER.len();
        }
        let mut sent = 0;
        while sent < n {
            let rest = headers.get_mut(sent..n).unwrap();
            // SAFETY: as above; the lengths are those of the answers.
            let more = unsafe {
                libc::sendmmsg(fd, rest.as_mut_ptr(), u32::try_from(rest.len()).unwrap(), 0)
            };
            sent += usize::try_from(more.max(1)).unwrap();
        }
        for part in parts.iter_mut().take(n) {
            part.iov_len = ROOM;
        }
    }
}
