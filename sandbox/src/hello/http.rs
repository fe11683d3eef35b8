//! As much of HTTP/1.1 as a server takes that has one answer (RFC 9112).

use std::io;

use tokio::{
    io::{AsyncReadExt, BufReader, sink},
    net::TcpStream,
};

use super::read_line;

/// Header lines of a request, at most.
const MAX_HEADERS: usize = 128;
/// The longest body that is read, to be thrown away, for the sake of the next request.
const MAX_BODY: u64 = 1024 * 1024;

/// What matters of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    wants_body: bool,
    keep_alive: bool,
    content_length: u64,
    asks_source: bool,
}

impl Request {
    /// A request line, or nothing if the line is none: `METHOD TARGET HTTP/1.x`.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        if words.next().is_some() || !version.starts_with("HTTP/1.") {
            return None;
        }
        Some(Self {
            wants_body: method != "HEAD",
            keep_alive: version != "HTTP/1.0",
            content_length: 0,
            asks_source: target == "/source",
        })
    }

    /// Takes notice of a header line.
    fn read_header(&mut self, line: &str) {
        let Some((name, value)) = line.split_once(':') else { return };
        let value = value.trim();
        if name.eq_ignore_ascii_case("connection") {
            let options = || value.split(',').map(str::trim);
            if options().any(|option| option.eq_ignore_ascii_case("close")) {
                self.keep_alive = false;
            } else if options().any(|option| option.eq_ignore_ascii_case("keep-alive")) {
                self.keep_alive = true;
            }
        } else if name.eq_ignore_ascii_case("content-length") {
            self.content_length = value.parse().unwrap_or(u64::MAX);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            // Where such a body ends is not worth finding out: it is the last request.
            self.keep_alive = false;
        }
    }

    /// Whether the connection ends with the answer.
    pub(super) fn is_last(&self) -> bool {
        !self.keep_alive
    }

    /// Whether the client wants to be told from which address it comes.
    pub(super) fn asks_source(&self) -> bool {
        self.asks_source
    }

    /// The answer, with `body` unless the request asks for its head alone.
    pub(super) fn answer(&self, body: &str) -> String {
        let n_bytes = body.len();
        let connection = if self.keep_alive { "keep-alive" } else { "close" };
        let body = if self.wants_body { body } else { "" };
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {n_bytes}\r\n\
             connection: {connection}\r\n\r\n{body}"
        )
    }
}

/// Reads the headers and the body that follow a request line.
pub(super) async fn read_rest(
    stream: &mut BufReader<TcpStream>,
    mut request: Request,
) -> io::Result<Request> {
    for _ in 0..MAX_HEADERS {
        match read_line(stream).await? {
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(line) if line.is_empty() => break,
            Some(line) => request.read_header(&line),
        }
    }
    if request.content_length > MAX_BODY {
        request.keep_alive = false;
    } else {
        tokio::io::copy(&mut stream.take(request.content_length), &mut sink()).await?;
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(lines: &[&str]) -> Option<Request> {
        let (first, headers) = lines.split_first()?;
        let mut request = Request::parse(first)?;
        headers.iter().for_each(|line| request.read_header(line));
        Some(request)
    }

    #[test]
    fn a_request_line_has_three_words_and_a_version() {
        for line in ["", "hello", "GET /", "GET / x HTTP/1.1", "GET / HTTP/2", "a b c"] {
            assert_eq!(request(&[line]), None, "{line}");
        }
        assert!(request(&["GET / HTTP/1.1"]).is_some());
    }

    #[test]
    fn a_connection_is_kept_as_its_client_says() {
        let is_last = |lines: &[&str]| request(lines).unwrap().is_last();
        assert!(!is_last(&["GET / HTTP/1.1"]));
        assert!(is_last(&["GET / HTTP/1.0"]));
        assert!(is_last(&["GET / HTTP/1.1", "Connection: foo, Close"]));
        assert!(!is_last(&["GET / HTTP/1.0", "connection: Keep-Alive"]));
        assert!(is_last(&["POST / HTTP/1.1", "Transfer-Encoding: chunked"]));
    }

    #[test]
    fn a_head_request_gets_the_length_without_the_body() {
        let answer = request(&["HEAD / HTTP/1.1"]).unwrap().answer("web-1\n");
        assert!(answer.contains("content-length: 6\r\n"));
        assert!(answer.ends_with("\r\n\r\n"));
    }
}
