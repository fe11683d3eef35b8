//! Requests as bytes, and when an answer is whole. `[pure]`

use crate::kind::{Kind, Load};

/// A name is this long at most: longer first lines are no endpoint's name.
const LONGEST_NAME: usize = 63;
/// An answer's head may be this long.
const LONGEST_HEAD: usize = 16 * 1024;
/// The first word of a line after whose answer the server is asked to close, so that it is the
/// server that remembers the connection (`TIME_WAIT`) and not the client with its few ports.
pub const LAST: &[u8] = b"last";

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    kind: Kind,
    /// As sent on a connection that goes on.
    bytes: Vec<u8>,
    /// As sent on a connection's last turn.
    last: Vec<u8>,
}

/// No such name can be asked for.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no DNS name: labels are 1 to 63 bytes long, names 253 at most")]
pub struct NameError(String);

/// Why an answer cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It is not what was asked for.
    #[error("bad answer")]
    Malformed,
    /// HTTP with a status of 400 or more.
    #[error("HTTP {0}")]
    Status(u16),
    /// DNS with a response code other than 0.
    #[error("DNS rcode {0}")]
    Rcode(u8),
}

/// What has come so far of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer<'b> {
    /// The rest is to come.
    Partial,
    /// An answer to an earlier question, whose time was over.
    Stale,
    /// All of it, with the endpoint's name if it gave one.
    Whole(Option<&'b [u8]>),
}

impl Request {
    /// The request that a load is made of.
    ///
    /// # Errors
    /// A name that DNS cannot be asked for.
    pub fn of(load: &Load) -> Result<Self, NameError> {
        let payload = vec![b'x'; load.payload];
        let (bytes, last) = match load.kind {
            Kind::Connect => (Vec::new(), Vec::new()),
            Kind::Tcp | Kind::Rr | Kind::Udp => {
                let line = |first: &[u8]| [first, b" ", &payload, b"\n"].concat();
                (line(b"more"), line(LAST))
            }
            Kind::Http => {
                let request = |connection| http(load, connection).into_bytes();
                (request(""), request("Connection: close\r\n"))
            }
            Kind::Dns => {
                let question = question(&load.name)?;
                (question.clone(), question)
            }
        };
        Ok(Self { kind: load.kind, bytes, last })
    }

    /// Its bytes; `is_last` asks the server to close afterwards.
    #[must_use]
    pub fn bytes(&self, is_last: bool) -> &[u8] {
        if is_last { &self.last } else { &self.bytes }
    }

    /// Gives the request another DNS id.
    pub fn number(&mut self, id: u16) {
        if self.kind == Kind::Dns {
            for bytes in [&mut self.bytes, &mut self.last] {
                if let Some(place) = bytes.get_mut(..2) {
                    place.copy_from_slice(&id.to_be_bytes());
                }
            }
        }
    }

    /// Looks at what has come. `is_end` when nothing more will.
    ///
    /// # Errors
    /// When it is no answer to the request.
    pub fn answer<'b>(
        &self,
        id: u16,
        received: &'b [u8],
        is_end: bool,
    ) -> Result<Answer<'b>, AnswerError> {
        match self.kind {
            Kind::Connect => Ok(Answer::Whole(None)),
            Kind::Tcp | Kind::Rr if !received.contains(&b'\n') => match received.len() {
                0..LONGEST_HEAD => Ok(Answer::Partial),
                _ => Err(AnswerError::Malformed),
            },
            Kind::Tcp | Kind::Rr | Kind::Udp => Ok(Answer::Whole(name(received))),
            Kind::Http => http_answer(received, is_end),
            Kind::Dns => dns_answer(id, &self.bytes, received),
        }
    }
}

/// The first line, if it may be a name.
fn name(text: &[u8]) -> Option<&[u8]> {
    let line = text.split(|byte| *byte == b'\n').next()?.trim_ascii();
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    (1..=LONGEST_NAME).contains(&line.len()).then_some(line).filter(|it| it.iter().all(is_name))
}

fn http(load: &Load, connection: &str) -> String {
    let Load { name, path, payload, .. } = load;
    let fill = match payload {
        0 => String::new(),
        n => format!("X-Fill: {}\r\n", "x".repeat(*n)),
    };
    format!("GET {path} HTTP/1.1\r\nHost: {name}\r\n{fill}{connection}\r\n")
}

fn http_answer(received: &[u8], is_end: bool) -> Result<Answer<'_>, AnswerError> {
    let Some(head_len) = received.windows(4).position(|it| it == b"\r\n\r\n") else {
        let is_too_long = is_end || received.len() > LONGEST_HEAD;
        return if is_too_long { Err(AnswerError::Malformed) } else { Ok(Answer::Partial) };
    };
    let (head, body) = received.split_at(head_len);
    let body = body.get(4..).unwrap_or_default();
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let status = lines.next().and_then(status).ok_or(AnswerError::Malformed)?;
    let mut length = match status {
        204 | 304 => Some(0),
        _ => None,
    };
    let mut is_chunked = false;
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (field, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if field.eq_ignore_ascii_case(b"content-length") {
            length = Some(number(value, 10).ok_or(AnswerError::Malformed)?);
        } else if field.eq_ignore_ascii_case(b"transfer-encoding") {
            is_chunked = value.eq_ignore_ascii_case(b"chunked");
        }
    }
    let body = match (is_chunked, length) {
        (true, _) => chunks(body)?,
        (false, Some(length)) => body.get(..length),
        (false, None) => is_end.then_some(body),
    };
    match body {
        None if is_end => Err(AnswerError::Malformed),
        None => Ok(Answer::Partial),
        Some(_) if status >= 400 => Err(AnswerError::Status(status)),
        Some(body) => Ok(Answer::Whole(name(body))),
    }
}

/// From `HTTP/1.1 200 OK`.
fn status(line: &[u8]) -> Option<u16> {
    let rest = line.strip_prefix(b"HTTP/1.")?;
    number(rest.get(2..5)?, 10).and_then(|status| u16::try_from(status).ok())
}

fn number(digits: &[u8], radix: u32) -> Option<usize> {
    usize::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()
}

/// The first chunk of a chunked body that is whole; nothing while it is not.
fn chunks(body: &[u8]) -> Result<Option<&[u8]>, AnswerError> {
    let (mut rest, mut first) = (body, None);
    loop {
        let Some(end) = rest.windows(2).position(|it| it == b"\r\n") else { return Ok(None) };
        let (line, after) = rest.split_at(end);
        let size = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let size = number(size, 16).ok_or(AnswerError::Malformed)?;
        let Some(chunk) = after.get(2..).and_then(|after| after.get(..size)) else {
            return Ok(None);
        };
        let Some(next) = after.get(2 + size + 2..) else { return Ok(None) };
        first.get_or_insert(chunk);
        if size == 0 {
            return Ok(first);
        }
        rest = next;
    }
}

/// A question for a name's IPv4 address, with recursion desired.
fn question(name: &str) -> Result<Vec<u8>, NameError> {
    const HEADER: [u8; 12] = [0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    const A_IN: [u8; 4] = [0, 1, 0, 1];
    let refusal = || NameError(name.to_owned());
    let mut question = HEADER.to_vec();
    if name.len() > 254 {
        return Err(refusal());
    }
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|it| (1..=63).contains(it));
        question.push(length.ok_or_else(refusal)?);
        question.extend(label.bytes());
    }
    question.push(0);
    question.extend(A_IN);
    Ok(question)
}

fn dns_answer<'b>(id: u16, asked: &[u8], received: &'b [u8]) -> Result<Answer<'b>, AnswerError> {
    let (Some(head), Some(asked)) = (received.first_chunk::<12>(), asked.get(12..)) else {
        return Err(AnswerError::Malformed);
    };
    let [a, b, flags, more, ..] = *head;
    if u16::from_be_bytes([a, b]) != id {
        return Ok(Answer::Stale);
    }
    let question = received.get(12..12 + asked.len()).unwrap_or_default();
    if flags & 0x80 == 0 || !question.eq_ignore_ascii_case(asked) {
        return Err(AnswerError::Malformed);
    }
    match more & 0xf {
        0 => Ok(Answer::Whole(None)),
        rcode => Err(AnswerError::Rcode(rcode)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SECOND;

    fn request(kind: Kind) -> Request {
        Request::of(&Load {
            kind,
            targets: Vec::new(),
            concurrency: 1,
            rate: None,
            payload: 3,
            requests_per_connection: 0,
            sources: Vec::new(),
            timeout: SECOND,
            name: "web.default.svc.cluster.local".to_owned(),
            path: "/who".to_owned(),
        })
        .unwrap()
    }

    /// Every prefix is partial, and the whole is `expected`.
    fn grows_to(kind: Kind, answer: &[u8], expected: Option<&str>) {
        let request = request(kind);
        for length in 0..answer.len() {
            assert_eq!(request.answer(0, &answer[..length], false), Ok(Answer::Partial));
        }
        let whole = Answer::Whole(expected.map(str::as_bytes));
        assert_eq!(request.answer(0, answer, false), Ok(whole));
    }

    #[test]
    fn a_line_is_whole_at_its_end() {
        grows_to(Kind::Rr, b"web-1\n", Some("web-1"));
        grows_to(Kind::Tcp, b"<no name>\n", None);
        assert_eq!(request(Kind::Rr).bytes(false), b"more xxx\n");
        assert_eq!(request(Kind::Tcp).bytes(true), b"last xxx\n");
    }

    #[test]
    fn http_is_whole_when_its_length_says_so() {
        let text =
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\ncontent-length: 6\r\n\r\nweb-2\n";
        grows_to(Kind::Http, text, Some("web-2"));
        let text = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nweb-3\r\n1\r\n\n\r\n0\r\n\r\n";
        grows_to(Kind::Http, text, Some("web-3"));
        grows_to(Kind::Http, b"HTTP/1.1 204 No Content\r\n\r\n", None);
    }

    #[test]
    fn http_without_a_length_ends_with_the_connection() {
        let (request, text) = (request(Kind::Http), b"HTTP/1.0 200 OK\r\n\r\nweb-4\n");
        assert_eq!(request.answer(0, text, false), Ok(Answer::Partial));
        assert_eq!(request.answer(0, text, true), Ok(Answer::Whole(Some(b"web-4"))));
    }

    #[test]
    fn http_errors_are_named() {
        let answer = |text: &'static [u8]| request(Kind::Http).answer(0, text, true);
        let sad = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(answer(sad), Err(AnswerError::Status(503)));
        for bad in
            [&b"SSH-2.0-OpenSSH\r\n"[..], b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"]
        {
            assert_eq!(answer(bad), Err(AnswerError::Malformed));
        }
    }

    #[test]
    fn http_asks_as_it_should() {
        let expected = "GET /who HTTP/1.1\r\nHost: web.default.svc.cluster.local\r\n\
                        X-Fill: xxx\r\nConnection: close\r\n\r\n";
        assert_eq!(request(Kind::Http).bytes(true), expected.as_bytes());
    }

    #[test]
    fn dns_answers_belong_to_their_question() {
        let mut request = request(Kind::Dns);
        request.number(0x1234);
        let mut answer = request.bytes(false).to_vec();
        assert_eq!(request.answer(0x1234, &answer, false), Err(AnswerError::Malformed));
        answer[2] |= 0x80;
        assert_eq!(request.answer(0x1234, &answer, false), Ok(Answer::Whole(None)));
        assert_eq!(request.answer(0x1235, &answer, false), Ok(Answer::Stale));
        answer[3] = 2;
        assert_eq!(request.answer(0x1234, &answer, false), Err(AnswerError::Rcode(2)));
        assert_eq!(request.answer(0x1234, &answer[..5], false), Err(AnswerError::Malformed));
    }

    #[test]
    fn names_that_dns_does_not_know_are_refused() {
        for bad in ["", "a..b", &"x".repeat(64), &"x.".repeat(200)] {
            assert!(question(bad).is_err(), "{bad}");
        }
    }
}
