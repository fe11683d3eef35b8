//! Questions after a link's addresses and answers to them, as bytes: ARP (RFC 826) and neighbour
//! discovery (RFC 4861). `[pure]`

use std::net::{Ipv4Addr, Ipv6Addr};

/// The address of a device on its link.
pub(super) type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
/// `EtherType`, link and network of every ARP message between Ethernet and IPv4.
const ARP: [u8; 8] = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4];
const REQUEST: u8 = 1;
const REPLY: u8 = 2;

/// What neighbour discovery is sent with: nobody who is further away can send it so.
pub(super) const HOPS: u32 = 255;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// What an advertisement says of itself: it was asked for; it holds against what was known.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// The option that holds the address on the link, and its length in units of eight bytes.
const LINK_ADDRESS: [u8; 2] = [2, 1];

/// A question by ARP: who asks, and after which address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) by: (Mac, Ipv4Addr),
    pub(super) after: Ipv4Addr,
}

/// Reads a frame; nothing, if it is no question.
pub(super) fn read_arp(frame: &[u8]) -> Option<Asked> {
    let (_, rest) = frame.split_at_checked(12)?;
    let rest = rest.strip_prefix(&ARP)?.strip_prefix(&[0, REQUEST])?;
    let (mac, rest) = rest.split_first_chunk::<6>()?;
    let (ip, rest) = rest.split_first_chunk::<4>()?;
    let after = rest.get(6..)?.first_chunk::<4>()?;
    Some(Asked { by: (*mac, Ipv4Addr::from(*ip)), after: Ipv4Addr::from(*after) })
}

/// The answer: `address` is at `own`.
pub(super) fn arp_reply(own: Mac, asked: &Asked) -> Vec<u8> {
    arp(REPLY, asked.by.0, (own, asked.after), asked.by)
}

/// What nobody asked for, in the two forms of which each is heard by some: `address` is at `own` now.
pub(super) fn gratuitous_arp(own: Mac, address: Ipv4Addr) -> [Vec<u8>; 2] {
    let request = arp(REQUEST, BROADCAST, (own, address), ([0; 6], address));
    let reply = arp(REPLY, BROADCAST, (own, address), (own, address));
    [request, reply]
}

fn arp(form: u8, to: Mac, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut frame = [&to[..], &sender.0, &ARP, &[0, form]].concat();
    for (mac, ip) in [sender, target] {
        frame.extend(mac);
        frame.extend(ip.octets());
    }
    frame
}

/// Reads an `ICMPv6` message: which address is asked after, if it is such a question. One that has lost a hop
/// was not asked on this link (RFC 4861 section 7.1.1).
pub(super) fn read_solicitation(message: &[u8], hops: u32) -> Option<Ipv6Addr> {
    let rest = message.strip_prefix(&[SOLICITATION, 0]).filter(|_| hops == HOPS)?;
    rest.get(6..)?.first_chunk::<16>().map(|address| Ipv6Addr::from(*address))
}

/// `address` is at `own`; the checksum is the kernel's to fill in.
pub(super) fn advertisement(own: Mac, address: Ipv6Addr, solicited: bool) -> Vec<u8> {
    let flags = if solicited { SOLICITED | OVERRIDE } else { OVERRIDE };
    let head = [ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    [&head[..], &address.octets(), &LINK_ADDRESS, &own].concat()
}

/// The group in which an address is asked after.
pub(super) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let word = u16::from_be_bytes([b, c]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];

    #[test]
    fn a_question_is_answered_to_whom_it_came_from() {
        let by = (OTHER, Ipv4Addr::new(192, 0, 2, 1));
        let after = Ipv4Addr::new(192, 0, 2, 9);
        let question = arp(REQUEST, BROADCAST, by, ([0; 6], after));
        let asked = read_arp(&question).unwrap();
        assert_eq!(asked, Asked { by, after });
        let answer = arp_reply(OWN, &asked);
        assert_eq!(answer.len(), 42);
        assert_eq!((&answer[..6], &answer[6..12]), (&OTHER[..], &OWN[..]));
        assert_eq!((answer[21], &answer[28..32]), (REPLY, &[192, 0, 2, 9][..]));
        assert_eq!(read_arp(&answer), None, "an answer is no question");
        for end in 0..question.len() {
            assert_eq!(read_arp(&question[..end]), None);
        }
    }

    #[test]
    fn what_nobody_asked_for_is_told_to_all() {
        for frame in gratuitous_arp(OWN, Ipv4Addr::new(192, 0, 2, 9)) {
            assert_eq!(frame[..6], BROADCAST);
            assert_eq!(
                (&frame[28..32], &frame[38..42]),
                (&[192, 0, 2, 9][..], &[192, 0, 2, 9][..])
            );
        }
    }

    #[test]
    fn neighbours_are_asked_after_and_told_of() {
        let address: Ipv6Addr = "fd00::1:2:3".parse().unwrap();
        let mut question = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        question.extend(address.octets());
        assert_eq!(read_solicitation(&question, HOPS), Some(address));
        assert_eq!(read_solicitation(&question, HOPS - 1), None, "it came from another link");
        assert_eq!(read_solicitation(&question[..23], HOPS), None);
        let answer = advertisement(OWN, address, true);
        assert_eq!((answer.len(), answer[0], answer[4]), (32, ADVERTISEMENT, 0x60));
        assert_eq!(read_solicitation(&answer, HOPS), None);
        assert_eq!(solicited_node(address), "ff02::1:ff02:3".parse::<Ipv6Addr>().unwrap());
    }
}
