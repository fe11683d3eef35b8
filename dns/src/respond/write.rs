//! Writes a response: whole records only, names compressed against the question's.

use crate::answer::Go;
use crate::answer::record::{Data, NameBuf, NameRef, Record, SOA_TIMES};
use crate::message::{Edns, HEADER, Head, LARGEST_UDP, Rcode, RecordType};
use crate::name::MAX_NAME;

/// The pointer to the question's name, which is always at the same place.
const QUESTION: [u8; 2] = [0xc0, 12];
/// Octets of an OPT record without options.
const OPT: usize = 11;
/// Octets of an extended error's option without its text.
const EXTENDED_ERROR: usize = 6;

/// The sections that records go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    /// What was asked for.
    Answer,
    /// Who says that it does not exist.
    Authority,
    /// What may be asked next.
    Additional,
}

type Extension = (Edns, Option<(u16, &'static str)>);

/// A response in the making.
pub(super) struct Writer<'o, 'q> {
    out: &'o mut [u8],
    at: usize,
    /// Where the records must end, so that the OPT record still fits.
    limit: usize,
    question: &'q [u8],
    edns: Option<Extension>,
    section: Section,
    counts: [u16; 3],
    truncated: bool,
}

/// The record does not fit.
struct Full;

impl<'o, 'q> Writer<'o, 'q> {
    pub(super) fn new(
        out: &'o mut [u8],
        limit: usize,
        question: &'q [u8],
        edns: Option<Extension>,
    ) -> Self {
        let extended = |(_, text): (u16, &str)| EXTENDED_ERROR + text.len();
        let reserved = edns.map_or(0, |(_, error)| OPT + error.map_or(0, extended));
        let limit = limit.min(out.len()).saturating_sub(reserved);
        let mut writer = Self {
            out,
            at: HEADER,
            limit,
            question,
            edns,
            section: Section::Answer,
            counts: [0; 3],
            truncated: false,
        };
        // Header, question and OPT are at most 12 + 259 + 120 octets: they always fit.
        if writer.put(question).is_err() {
            writer.question = &[];
        }
        writer
    }

    pub(super) fn section(&mut self, section: Section) {
        self.section = section;
    }

    /// Writes a record, or nothing of it.
    pub(super) fn record(&mut self, record: &Record<'_>) -> Go {
        let before = self.at;
        if self.try_record(record).is_err() {
            self.at = before;
            return Go::Break(());
        }
        if let Some(count) = self.counts.get_mut(self.section as usize) {
            *count += 1;
        }
        Go::Continue(())
    }

    /// Says that what was asked for is not all there.
    pub(super) fn truncate(&mut self) {
        self.truncated = true;
    }

    /// Ends the records where they are.
    pub(super) fn stop(&mut self) {
        self.limit = self.at;
    }

    /// Completes the message; how long it is.
    pub(super) fn finish(&mut self, head: Head, rcode: Rcode, authoritative: bool) -> usize {
        self.limit = self.out.len();
        if let Some((edns, error)) = self.edns
            && self.opt(edns, error, rcode).is_ok()
            && let [.., additional] = &mut self.counts
        {
            *additional += 1;
        }
        let flags = 0x80
            | (head.opcode << 3)
            | (u8::from(authoritative) << 2)
            | (u8::from(self.truncated) << 1)
            | u8::from(head.recursion_desired);
        // Recursion is available: a stub that sees it is not warns its user about nothing.
        let [_, low] = rcode.bits().to_be_bytes();
        let flags2 = 0x80 | (u8::from(head.checking_disabled) << 4) | (low & 0x0f);
        let [id_hi, id_lo] = head.id.to_be_bytes();
        let [answers, authorities, additionals] = self.counts.map(u16::to_be_bytes);
        let header = [
            [id_hi, id_lo],
            [flags, flags2],
            [0, u8::from(!self.question.is_empty())],
            answers,
            authorities,
            additionals,
        ];
        if let Some(to) = self.out.first_chunk_mut::<HEADER>() {
            to.copy_from_slice(header.as_flattened());
        }
        self.at
    }

    fn try_record(&mut self, record: &Record<'_>) -> Result<(), Full> {
        match record.owner {
            NameRef::Asked => self.put(&QUESTION)?,
            owner => self.name(owner, true)?,
        }
        let [type_hi, type_lo] = record.data.rtype().0.to_be_bytes();
        let [t0, t1, t2, t3] = record.ttl.to_be_bytes();
        match record.data {
            // The common record in one piece.
            Data::A(address) => {
                let [a, b, c, d] = address.octets();
                self.put(&[type_hi, type_lo, 0, 1, t0, t1, t2, t3, 0, 4, a, b, c, d])
            }
            data => {
                self.put(&[type_hi, type_lo, 0, 1, t0, t1, t2, t3])?;
                self.sized(|writer| writer.data(&data))
            }
        }
    }

    /// Writes what `write` writes behind its length.
    fn sized(&mut self, write: impl FnOnce(&mut Self) -> Result<(), Full>) -> Result<(), Full> {
        let length_at = self.at;
        self.put(&[0, 0])?;
        write(self)?;
        let length = u16::try_from(self.at - length_at - 2).map_err(|_over| Full)?;
        if let Some(to) = self.out.get_mut(length_at..length_at + 2) {
            to.copy_from_slice(&length.to_be_bytes());
        }
        Ok(())
    }

    fn data(&mut self, data: &Data<'_>) -> Result<(), Full> {
        match *data {
            Data::A(address) => self.put(&address.octets()),
            Data::Aaaa(address) => self.put(&address.octets()),
            Data::Cname(name) | Data::Ptr(name) | Data::Ns(name) => self.name(name, true),
            Data::Txt(text) => {
                self.put(&[u8::try_from(text.len()).unwrap_or(u8::MAX)])?;
                self.put(text.as_bytes())
            }
            Data::Srv { weight, port, target } => {
                self.put([[0, 0], weight.to_be_bytes(), port.to_be_bytes()].as_flattened())?;
                // RFC 2782 forbids compression here.
                self.name(target, false)
            }
            Data::Soa { zone, serial, minimum } => {
                self.name(NameRef::NameServer(zone), true)?;
                self.name(NameRef::Hostmaster(zone), true)?;
                let [refresh, retry, expire] = SOA_TIMES;
                let numbers = [serial, refresh, retry, expire, minimum].map(u32::to_be_bytes);
                self.put(numbers.as_flattened())
            }
        }
    }

    fn name(&mut self, name: NameRef<'_>, compress: bool) -> Result<(), Full> {
        let mut wire = NameBuf::new();
        let asked = self.question.len().saturating_sub(4);
        name.write(self.question.get(..asked).unwrap_or_default(), &mut wire);
        if wire.len() > MAX_NAME {
            return Err(Full);
        }
        let (written, at) = if compress { self.shared(&wire) } else { (wire.len(), None) };
        self.put(wire.get(..written).unwrap_or_default())?;
        match at {
            Some(at) => self.put(&(0xc000 | at).to_be_bytes()),
            None => Ok(()),
        }
    }

    /// How many octets of a name have to be written, and where in the question the rest is. The
    /// letters must be the same: a zone is told as it is configured, not as it was asked for.
    fn shared(&self, wire: &[u8]) -> (usize, Option<u16>) {
        let asked = self.question.get(..self.question.len().saturating_sub(4)).unwrap_or_default();
        let mut from = 0;
        while let Some((&length, rest)) = wire.get(from..).and_then(<[u8]>::split_first) {
            if length == 0 {
                break;
            }
            let suffix = rest.len() + 1;
            if let Some(at) = asked.len().checked_sub(suffix)
                && asked.get(at..) == wire.get(from..)
                && is_label_start(asked, at)
            {
                return (from, u16::try_from(HEADER + at).ok());
            }
            from += 1 + usize::from(length);
        }
        (wire.len(), None)
    }

    fn opt(&mut self, edns: Edns, error: Option<(u16, &str)>, rcode: Rcode) -> Result<(), Full> {
        let [type_hi, type_lo] = RecordType::OPT.0.to_be_bytes();
        let [.., size_hi, size_lo] = LARGEST_UDP.to_be_bytes();
        let extended = u8::try_from(rcode.bits() >> 4).unwrap_or(0);
        let dnssec_ok = u8::from(edns.dnssec_ok) << 7;
        self.put(&[0, type_hi, type_lo, size_hi, size_lo, extended, 0, dnssec_ok, 0])?;
        self.sized(|writer| match error {
            Some((code, text)) => {
                writer.put(&15_u16.to_be_bytes())?;
                writer.sized(|writer| {
                    writer.put(&code.to_be_bytes())?;
                    writer.put(text.as_bytes())
                })
            }
            None => Ok(()),
        })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Full> {
        let end = self.at + bytes.len();
        if end > self.limit {
            return Err(Full);
        }
        self.out.get_mut(self.at..end).ok_or(Full)?.copy_from_slice(bytes);
        self.at = end;
        Ok(())
    }
}

/// Whether a label of the name starts at `at`.
fn is_label_start(name: &[u8], at: usize) -> bool {
    let mut start = 0;
    while start < at {
        match name.get(start) {
            Some(&length) if length > 0 => start += 1 + usize::from(length),
            _ => return false,
        }
    }
    start == at
}
