//! Frames as text, with every checksum looked at.
#![expect(clippy::indexing_slicing, reason = "a test fails loudly")]

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use packet::checksum::fold16;

use crate::packet::frame::{crc32c, pseudo, sum};

/// What a frame says; `partial` if a device has yet to complete its transport checksum.
pub fn show(bytes: &[u8], partial: bool) -> String {
    let Some(network) = bytes.get(14..) else { return "short".to_owned() };
    packet(network, partial, false)
}

fn packet(bytes: &[u8], partial: bool, quoted: bool) -> String {
    match bytes.first().map(|byte| byte >> 4) {
        Some(4) => v4(bytes, partial, quoted),
        Some(6) => v6(bytes, partial, quoted),
        _ => Some("no packet".to_owned()),
    }
    .unwrap_or_else(|| "cut short".to_owned())
}

fn v4(bytes: &[u8], partial: bool, quoted: bool) -> Option<String> {
    let ihl = usize::from(bytes[0] & 15) * 4;
    let header = bytes.get(..ihl.max(20))?;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let src = IpAddr::from(<[u8; 4]>::try_from(&header[12..16]).ok()?);
    let dst = IpAddr::from(<[u8; 4]>::try_from(&header[16..20]).ok()?);
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let id = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let part = part(usize::from(fragment & 0x1fff) * 8, fragment & 0x2000 != 0, id);
    let end = total.min(bytes.len());
    let mut text =
        body(header[9], src, dst, bytes.get(ihl..end)?, &part, partial, quoted || total > end);
    if fold16(sum(header)) != 0xffff {
        text.push_str(" BAD-HEADER-CHECKSUM");
    }
    Some(text)
}

fn v6(bytes: &[u8], partial: bool, quoted: bool) -> Option<String> {
    let header = bytes.get(..40)?;
    let total = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let src = IpAddr::from(<[u8; 16]>::try_from(&header[8..24]).ok()?);
    let dst = IpAddr::from(<[u8; 16]>::try_from(&header[24..40]).ok()?);
    let (mut at, mut next, mut part_of) = (40, header[6], String::new());
    loop {
        let extension = bytes.get(at..)?;
        match next {
            0 | 43 | 60 | 135 => at += (usize::from(*extension.get(1)?) + 1) * 8,
            51 => at += (usize::from(*extension.get(1)?) + 2) * 4,
            44 => {
                let offset = u16::from_be_bytes([*extension.get(2)?, *extension.get(3)?]);
                let id = u32::from_be_bytes(extension.get(4..8)?.try_into().ok()?);
                part_of = part(usize::from(offset & !7), offset & 1 != 0, id);
                at += 8;
            }
            _ => break,
        }
        next = extension[0];
    }
    let end = total.min(bytes.len());
    Some(body(next, src, dst, bytes.get(at..end)?, &part_of, partial, quoted || total > end))
}

fn part(offset: usize, more: bool, id: u32) -> String {
    match (offset, more) {
        (0, false) => String::new(),
        (0, true) => format!(" first={id}"),
        _ => format!(" later={id}"),
    }
}

#[expect(clippy::too_many_arguments, reason = "the parts of a packet")]
fn body(
    protocol: u8,
    src: IpAddr,
    dst: IpAddr,
    bytes: &[u8],
    part: &str,
    partial: bool,
    quoted: bool,
) -> String {
    let name = match protocol {
        6 => "tcp",
        17 => "udp",
        132 => "sctp",
        1 | 58 => "icmp",
        _ => "other",
    };
    if part.starts_with(" later") || protocol == 1 || protocol == 58 || name == "other" {
        let mut text = format!("{name} {src} > {dst}{part}");
        if (protocol == 1 || protocol == 58) && !part.starts_with(" later") {
            icmp(&mut text, bytes);
            if fold16(packet::checksum::both(pseudo(protocol, src, dst, bytes.len()), sum(bytes)))
                != 0xffff
            {
                text.push_str(" BAD-CHECKSUM");
            }
        }
        return text;
    }
    let [a, b, c, d, ..] = bytes else { return format!("{name} {src} > {dst} cut short") };
    let (src_port, dst_port) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
    let (src, dst) = (SocketAddr::new(src, src_port), SocketAddr::new(dst, dst_port));
    let mut text = format!("{name} {src} > {dst}{part}");
    if let (6, Some(flags)) = (protocol, bytes.get(13)) {
        for (name, bit) in [("fin", 1), ("syn", 2), ("rst", 4), ("ack", 16)] {
            if flags & bit != 0 {
                _ = write!(text, " {name}");
            }
        }
    }
    if !quoted && part.is_empty() && !is_right(protocol, src.ip(), dst.ip(), bytes, partial) {
        text.push_str(" BAD-CHECKSUM");
    }
    text
}

fn icmp(text: &mut String, bytes: &[u8]) {
    let [kind, code, _, _, _, _, hi, lo, rest @ ..] = bytes else { return };
    _ = write!(text, " {kind}/{code}");
    let mtu = u16::from_be_bytes([*hi, *lo]);
    if mtu != 0 {
        _ = write!(text, " mtu={mtu}");
    }
    if matches!(kind, 1..=4 | 11 | 12) {
        _ = write!(text, " about {}", packet(rest, false, true));
    }
}

fn is_right(protocol: u8, src: IpAddr, dst: IpAddr, bytes: &[u8], partial: bool) -> bool {
    if protocol == 132 {
        let crc = bytes.get(8..12).and_then(|crc| crc.try_into().ok()).map(u32::from_le_bytes);
        return crc == Some(crc32c(bytes)) || crc == Some(0);
    }
    let pseudo = pseudo(protocol, src, dst, bytes.len());
    let at = if protocol == 6 { 16 } else { 6 };
    let Some([a, b]) = bytes.get(at..at + 2) else { return false };
    let check = u16::from_ne_bytes([*a, *b]);
    if partial {
        return check == fold16(pseudo);
    }
    (protocol == 17 && check == 0) || fold16(packet::checksum::both(pseudo, sum(bytes))) == 0xffff
}
