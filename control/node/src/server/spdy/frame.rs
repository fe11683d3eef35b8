//! SPDY/3.1's frames, as bytes. `[pure]`
//!
//! ```text
//! control  1 version:15 type:16 flags:8 length:24 …      data  0 stream:31 flags:8 length:24 …
//! ```

use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use hyper::body::Bytes;

/// A larger frame than this is no client of ours.
const MAX_FRAME: usize = 1 << 20;
/// Nor are headers larger than this.
const MAX_HEADERS: usize = 64 << 10;

const VERSION: u16 = 0x8003;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;

/// The words of SPDY/3's dictionary, each behind its length, in its order …
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding \
    accept-language accept-ranges age allow authorization cache-control connection content-base \
    content-encoding content-language content-length content-location content-md5 content-range \
    content-type date etag expect expires from host if-match if-modified-since if-none-match \
    if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
    proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status";
/// … some with spaces in them or behind those …
const MORE_WORDS: [&str; 8] =
    ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"];
/// … and text that headers often have.
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417\
    502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 \
    Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service \
    UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, \
    Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+\
    xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-\
    8859-1,utf-,*,enq=0.";

/// A stream's headers; names are in lower case.
pub(in crate::server) type Headers = Vec<(String, String)>;

/// What is sent and received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::server) enum Frame {
    Open { id: u32, headers: Headers, is_last: bool },
    Accept { id: u32 },
    Data { id: u32, bytes: Bytes, is_last: bool },
    Reset { id: u32 },
    Ping { id: u32 },
    GoAway,
    Other,
}

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split_whitespace().chain(MORE_WORDS) {
        bytes.extend_from_slice(&u32::try_from(word.len()).unwrap_or(0).to_be_bytes());
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(TEXT.as_bytes());
    bytes
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// How long a frame is behind its head.
pub(super) fn length([_, _, _, _, _, a, b, c]: [u8; 8]) -> io::Result<usize> {
    let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
    if length > MAX_FRAME { Err(invalid("a SPDY frame is too long")) } else { Ok(length) }
}

/// Reads frames; headers of all streams are compressed as one text.
#[derive(Debug)]
pub(super) struct Decoder {
    zlib: Decompress,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { zlib: Decompress::new(true) }
    }
}

impl Decoder {
    pub(super) fn decode(&mut self, head: [u8; 8], body: Vec<u8>) -> io::Result<Frame> {
        let [a, b, c, d, flags, ..] = head;
        let is_last = flags & FIN != 0;
        if a & 0x80 == 0 {
            let id = u32::from_be_bytes([a, b, c, d]);
            return Ok(Frame::Data { id, bytes: body.into(), is_last });
        }
        if u16::from_be_bytes([a, b]) != VERSION {
            return Err(invalid("the client does not speak SPDY/3.1"));
        }
        Ok(match u16::from_be_bytes([c, d]) {
            SYN_STREAM => {
                let headers = self.headers(body.get(10..).ok_or_else(short)?)?;
                Frame::Open { id: number(&body)?, headers, is_last }
            }
            SYN_REPLY => Frame::Accept { id: number(&body)? },
            RST_STREAM => Frame::Reset { id: number(&body)? },
            PING => Frame::Ping { id: number(&body)? },
            GOAWAY => Frame::GoAway,
            _ => Frame::Other,
        })
    }

    fn headers(&mut self, compressed: &[u8]) -> io::Result<Headers> {
        let text = self.inflate(compressed)?;
        let mut rest = text.as_slice();
        let n = take_number(&mut rest)?;
        let mut headers = Vec::new();
        for _ in 0..n {
            let name = take_text(&mut rest)?;
            headers.push((name, take_text(&mut rest)?));
        }
        Ok(headers)
    }

    fn inflate(&mut self, mut input: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut chunk = vec![0; 4096];
        loop {
            let (read, written) = (self.zlib.total_in(), self.zlib.total_out());
            match self.zlib.decompress(input, &mut chunk, FlushDecompress::Sync) {
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.zlib.set_dictionary(&dictionary());
                    set.map_err(io::Error::other)?;
                }
                Err(_) => return Err(invalid("the headers are not compressed as they should be")),
            }
            let read = usize::try_from(self.zlib.total_in() - read).unwrap_or(0);
            let written = usize::try_from(self.zlib.total_out() - written).unwrap_or(0);
            input = input.get(read..).unwrap_or_default();
            out.extend_from_slice(chunk.get(..written).unwrap_or_default());
            if out.len() > MAX_HEADERS {
                return Err(invalid("the headers are too long"));
            }
            if input.is_empty() && written < chunk.len() {
                return Ok(out);
            }
            if read == 0 && written == 0 {
                return Err(invalid("the headers do not end"));
            }
        }
    }
}

/// Writes frames.
#[derive(Debug)]
pub(super) struct Encoder {
    zlib: Compress,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { zlib: Compress::new(Compression::fast(), true) }
    }
}

impl Encoder {
    pub(super) fn encode(&mut self, frame: &Frame) -> io::Result<Vec<u8>> {
        Ok(match frame {
            Frame::Accept { id } => {
                let mut body = id.to_be_bytes().to_vec();
                body.extend(self.no_headers()?);
                control(SYN_REPLY, &body)
            }
            Frame::Data { id, bytes, is_last } => {
                let mut out = id.to_be_bytes().to_vec();
                out.push(if *is_last { FIN } else { 0 });
                out.extend(length_bytes(bytes.len()));
                out.extend_from_slice(bytes);
                out
            }
            Frame::Ping { id } => control(PING, &id.to_be_bytes()),
            // A server of ours opens, resets and leaves nothing.
            Frame::Open { .. } | Frame::Reset { .. } | Frame::GoAway | Frame::Other => Vec::new(),
        })
    }

    /// A block of headers, none of them, in the one text that all blocks are compressed as.
    fn no_headers(&mut self) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(64);
        let wrong = |_| invalid("the headers cannot be compressed");
        self.zlib
            .compress_vec(&0_u32.to_be_bytes(), &mut out, FlushCompress::Sync)
            .map_err(wrong)?;
        Ok(out)
    }
}

fn control(form: u16, body: &[u8]) -> Vec<u8> {
    let mut out = VERSION.to_be_bytes().to_vec();
    out.extend(form.to_be_bytes());
    out.push(0);
    out.extend(length_bytes(body.len()));
    out.extend_from_slice(body);
    out
}

fn length_bytes(length: usize) -> [u8; 3] {
    let [_, a, b, c] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [a, b, c]
}

fn short() -> io::Error {
    invalid("a SPDY frame is too short")
}

fn number(bytes: &[u8]) -> io::Result<u32> {
    let four = bytes.first_chunk::<4>().ok_or_else(short)?;
    Ok(u32::from_be_bytes(*four))
}

fn take_number(rest: &mut &[u8]) -> io::Result<u32> {
    let (four, after) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    *rest = after;
    Ok(u32::from_be_bytes(*four))
}

fn take_text(rest: &mut &[u8]) -> io::Result<String> {
    let length = usize::try_from(take_number(rest)?).unwrap_or(usize::MAX);
    let (text, after) = rest.split_at_checked(length).ok_or_else(short)?;
    *rest = after;
    Ok(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a client does, with the dictionary.
    fn compressed(zlib: &mut Compress, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut text = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
        for word in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.extend(u32::try_from(word.len()).unwrap().to_be_bytes());
            text.extend_from_slice(word.as_bytes());
        }
        let mut out = Vec::with_capacity(1024);
        zlib.compress_vec(&text, &mut out, FlushCompress::Sync).unwrap();
        out
    }

    fn split(bytes: &[u8]) -> ([u8; 8], Vec<u8>) {
        (bytes[..8].try_into().unwrap(), bytes[8..].to_vec())
    }

    #[test]
    fn the_dictionary_is_the_one_that_everybody_has() {
        let bytes = dictionary();
        assert_eq!(bytes.len(), 1423);
        let mut zlib = Compress::new(Compression::fast(), true);
        // Its checksum, by which a stream names it.
        assert_eq!(zlib.set_dictionary(&bytes).unwrap(), 0xe3c6_a7c2);
    }

    #[test]
    fn streams_are_opened_with_headers_compressed_as_one_text() {
        let mut zlib = Compress::new(Compression::default(), true);
        zlib.set_dictionary(&dictionary()).unwrap();
        let mut decoder = Decoder::default();
        for (id, form) in [(1_u32, "error"), (3, "stdout")] {
            let mut body = id.to_be_bytes().to_vec();
            body.extend([0; 6]);
            body.extend(compressed(&mut zlib, &[("streamtype", form), ("port", "80")]));
            let (head, body) = split(&control(SYN_STREAM, &body));
            assert_eq!(length(head).unwrap(), body.len());
            let headers =
                vec![("streamtype".into(), form.into()), ("port".into(), "80".to_owned())];
            let expected = Frame::Open { id, headers, is_last: false };
            assert_eq!(decoder.decode(head, body).unwrap(), expected);
        }
    }

    #[test]
    fn data_is_written_and_read_again() {
        let frame = Frame::Data { id: 5, bytes: Bytes::from_static(b"abc"), is_last: true };
        let (head, body) = split(&Encoder::default().encode(&frame).unwrap());
        assert_eq!(Decoder::default().decode(head, body).unwrap(), frame);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let mut decoder = Decoder::default();
        decoder.decode([0x80, 2, 0, 1, 0, 0, 0, 0], vec![]).unwrap_err();
        decoder.decode([0x80, 3, 0, 1, 0, 0, 0, 2], vec![0, 0]).unwrap_err();
        decoder.decode([0x80, 3, 0, 1, 0, 0, 0, 12], vec![7; 20]).unwrap_err();
        length([0, 0, 0, 0, 0, 255, 255, 255]).unwrap_err();
    }
}
