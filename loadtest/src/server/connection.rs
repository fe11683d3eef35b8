//! A client's connection: lines or HTTP requests in, names out.

use std::io::{ErrorKind, Read, Write};

use mio::net::TcpStream;

use crate::wire::LAST;

/// A request may be this long; a longer one ends the connection.
const LONGEST: usize = 1 << 20;

/// What a request is answered with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) bytes: Vec<u8>,
    /// Whether the connection ends with it.
    pub(super) is_last: bool,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    unsent: Vec<u8>,
    is_ending: bool,
    is_gone: bool,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        let (received, unsent) = (Vec::new(), Vec::new());
        Self { stream, received, unsent, is_ending: false, is_gone: false }
    }

    /// Reads what has come, and answers the requests that are whole.
    pub(super) fn receive(&mut self, buffer: &mut [u8], name: &str) -> Vec<Reply> {
        let mut replies = Vec::new();
        loop {
            match self.stream.read(buffer) {
                Ok(0) => {
                    // Who has closed is owed nothing but what is on its way already.
                    self.is_ending = true;
                    return replies;
                }
                Ok(n) => self.received.extend_from_slice(buffer.get(..n).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return replies,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => {
                    self.is_gone = true;
                    return replies;
                }
            }
            while let Some((reply, n)) = take(&self.received, name) {
                self.received.drain(..n);
                replies.push(reply);
            }
            self.is_gone |= self.received.len() > LONGEST;
        }
    }

    /// Sends, or keeps for later what the socket has no room for.
    pub(super) fn send(&mut self, reply: &Reply) {
        self.unsent.extend_from_slice(&reply.bytes);
        self.is_ending |= reply.is_last;
    }

    /// Sends what is left. False when the connection is over.
    pub(super) fn flush(&mut self) -> bool {
        while !self.unsent.is_empty() && !self.is_gone {
            match self.stream.write(&self.unsent) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.is_gone = true,
            }
        }
        !self.is_gone && !self.is_ending
    }
}

/// The first request, if it is whole: its answer, and its length.
fn take(received: &[u8], name: &str) -> Option<(Reply, usize)> {
    let line_end = received.iter().position(|byte| *byte == b'\n')? + 1;
    let line = received.get(..line_end)?;
    if !line.trim_ascii_end().ends_with(b"HTTP/1.1") {
        let is_last = line.starts_with(LAST);
        return Some((Reply { bytes: name.as_bytes().to_vec(), is_last }, line_end));
    }
    let head_len = received.windows(4).position(|it| it == b"\r\n\r\n")? + 4;
    let head = received.get(..head_len)?;
    let is_last = head
        .split(|byte| *byte == b'\n')
        .any(|line| line.trim_ascii().eq_ignore_ascii_case(b"connection: close"));
    let connection = if is_last { "Connection: close\r\n" } else { "" };
    let bytes = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n{connection}\r\n{name}",
        name.len()
    );
    Some((Reply { bytes: bytes.into_bytes(), is_last }, head_len))
}

/// The answer to a datagram: an address when it is a DNS question, else the name.
pub(super) fn to_datagram(asked: &[u8], name: &str) -> Vec<u8> {
    /// A pointer to the name that was asked for; A, IN, 30 seconds, 192.0.2.1 (RFC 5737).
    const RECORD: [u8; 16] = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 192, 0, 2, 1];
    let Some((&[a, b, 1, flags, 0, 1, 0, 0, 0, 0, ..], end)) =
        asked.first_chunk::<12>().zip(question_end(asked))
    else {
        return name.as_bytes().to_vec();
    };
    let mut answer = vec![a, b, 0x85, 0x80 | flags & 0x10, 0, 1, 0, 1, 0, 0, 0, 0];
    answer.extend(asked.get(12..end).unwrap_or_default());
    answer.extend(RECORD);
    answer
}

/// Where the question after the header ends.
fn question_end(asked: &[u8]) -> Option<usize> {
    let mut place = 12;
    loop {
        match *asked.get(place)? {
            0 => return Some(place + 5).filter(|end| *end <= asked.len()),
            length => place += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(received: &[u8]) -> Option<(String, bool, usize)> {
        let (reply, n) = take(received, "web-1\n")?;
        Some((String::from_utf8(reply.bytes).unwrap(), reply.is_last, n))
    }

    #[test]
    fn lines_are_taken_one_by_one() {
        assert_eq!(taken(b"more x"), None);
        assert_eq!(taken(b"more x\nmore"), Some(("web-1\n".to_owned(), false, 7)));
        assert_eq!(taken(b"last \n"), Some(("web-1\n".to_owned(), true, 6)));
    }

    #[test]
    fn http_requests_are_taken_with_their_head() {
        assert_eq!(taken(b"GET / HTTP/1.1\r\nHost: x\r\n"), None);
        let (answer, is_last, n) = taken(b"GET / HTTP/1.1\r\nConnection: Close\r\n\r\n").unwrap();
        assert!(answer.ends_with("Content-Length: 6\r\nConnection: close\r\n\r\nweb-1\n"));
        assert!(is_last);
        assert_eq!(n, 37);
    }

    #[test]
    fn datagrams_are_questions_or_not() {
        assert_eq!(to_datagram(b"more x\n", "web-1\n"), b"web-1\n");
        let question = b"\x12\x34\x01\x00\x00\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01";
        let answer = to_datagram(question, "web-1\n");
        assert_eq!(answer[..4], [0x12, 0x34, 0x85, 0x80]);
        assert!(answer.ends_with(&[192, 0, 2, 1]));
        // Cut short, it is no question.
        assert_eq!(to_datagram(&question[..18], "web-1\n"), b"web-1\n");
    }
}
