//! Domain names in wire form (RFC 1035 §3.1).

use std::fmt;

use thiserror::Error;

/// The longest name on the wire, its root label included.
pub const MAX_NAME: usize = 255;
/// The longest label.
pub const MAX_LABEL: usize = 63;

/// A name lower-cased for comparison, with the starts of its labels. Lives on the stack: parsing
/// a query allocates nothing.
#[derive(Clone)]
pub struct LowerName {
    wire: [u8; MAX_NAME],
    len: u8,
    starts: [u8; 127],
    n_labels: u8,
}

impl LowerName {
    /// Reads the name at the front of `bytes`. Compression has nothing to point at there, so a
    /// pointer is malformed.
    ///
    /// # Errors
    /// Labels that run over the end, the length limits, or a label type other than plain.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseNameError> {
        let mut name = Self { wire: [0; MAX_NAME], len: 0, starts: [0; 127], n_labels: 0 };
        let mut at = 0;
        loop {
            let length = *bytes.get(at).ok_or(ParseNameError::CutShort)?;
            let end = at + 1 + usize::from(length);
            if usize::from(length) > MAX_LABEL {
                return Err(ParseNameError::LabelType(length));
            }
            let label = bytes.get(at..end).ok_or(ParseNameError::CutShort)?;
            let lower = name.wire.get_mut(at..end).ok_or(ParseNameError::TooLong)?;
            for (to, from) in lower.iter_mut().zip(label) {
                *to = from.to_ascii_lowercase();
            }
            // A length octet is at most 63, below 'A': lower-casing leaves it alone.
            name.len = u8::try_from(end).map_err(|_over| ParseNameError::TooLong)?;
            if length == 0 {
                return Ok(name);
            }
            let start =
                name.starts.get_mut(usize::from(name.n_labels)).ok_or(ParseNameError::TooLong)?;
            *start = u8::try_from(at).map_err(|_over| ParseNameError::TooLong)?;
            name.n_labels += 1;
            at = end;
        }
    }

    /// The whole name, root label included.
    pub fn wire(&self) -> &[u8] {
        self.wire.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// How many labels it has; the root has none.
    pub fn n_labels(&self) -> usize {
        usize::from(self.n_labels)
    }

    /// Label number `idx` from the left, without its length octet.
    pub fn label(&self, idx: usize) -> &[u8] {
        self.labels(idx, idx + 1).get(1..).unwrap_or_default()
    }

    /// Labels `from` up to, but without, `to`, as they stand on the wire.
    pub fn labels(&self, from: usize, to: usize) -> &[u8] {
        self.wire.get(self.start(from)..self.start(to)).unwrap_or_default()
    }

    /// How many labels precede `suffix`, a lower-case name on the wire, if this name ends with it.
    pub fn labels_before(&self, suffix: &[u8]) -> Option<usize> {
        let cut = self.wire().len().checked_sub(suffix.len())?;
        if self.wire.get(cut..usize::from(self.len)) != Some(suffix) {
            return None;
        }
        // The bytes match, but only at the start of a label do they mean the same.
        (0..=self.n_labels())
            .rev()
            .find(|&idx| self.start(idx) <= cut)
            .filter(|&idx| self.start(idx) == cut)
    }

    /// Where label `idx` starts; past the last one, where the root label is.
    fn start(&self, idx: usize) -> usize {
        if idx >= self.n_labels() {
            return usize::from(self.len).saturating_sub(1);
        }
        self.starts.get(idx).copied().map_or(0, usize::from)
    }
}

impl fmt::Debug for LowerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Presentation(self.wire()), f)
    }
}

/// An owned name in wire form, its letters as they were written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireName(Box<[u8]>);

impl WireName {
    /// Reads a name as people write it, `shop.example.com` with or without the final dot; `.` is
    /// the root. Escapes are not needed for the names of a cluster and not understood.
    ///
    /// # Errors
    /// Empty or overlong labels, or an overlong name.
    pub fn parse(text: &str) -> Result<Self, ParseNameError> {
        let mut wire = Vec::with_capacity(text.len() + 2);
        let text = text.strip_suffix('.').unwrap_or(text);
        for label in text.split('.').filter(|_| !text.is_empty()) {
            let length = u8::try_from(label.len()).unwrap_or(u8::MAX);
            if label.is_empty() {
                return Err(ParseNameError::EmptyLabel);
            }
            if usize::from(length) > MAX_LABEL {
                return Err(ParseNameError::LabelTooLong);
            }
            wire.push(length);
            wire.extend_from_slice(label.as_bytes());
        }
        wire.push(0);
        if wire.len() > MAX_NAME {
            return Err(ParseNameError::TooLong);
        }
        Ok(Self(wire.into()))
    }

    /// The bytes, root label included.
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// The same name in lower case.
    #[must_use]
    pub fn lower(&self) -> Self {
        Self(self.0.to_ascii_lowercase().into())
    }
}

impl fmt::Display for WireName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Presentation(&self.0), f)
    }
}

impl fmt::Debug for WireName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Prints an uncompressed name, with a final dot, escaping as RFC 4343 §2.1 does.
#[derive(Clone, Copy, Debug)]
pub struct Presentation<'a>(pub &'a [u8]);

impl fmt::Display for Presentation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if matches!(self.0, [] | [0, ..]) {
            return f.write_str(".");
        }
        for label in wire_labels(self.0) {
            for &octet in label {
                match octet {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(octet))?,
                    b'!'..=b'~' => write!(f, "{}", char::from(octet))?,
                    _ => write!(f, "\\{octet:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

/// The labels of an uncompressed name, from the left, without the root.
pub fn wire_labels(mut wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (&length, rest) = wire.split_first()?;
        let (label, rest) = rest.split_at_checked(usize::from(length))?;
        wire = rest;
        (!label.is_empty()).then_some(label)
    })
}

/// Why bytes or text are not a domain name.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ParseNameError {
    /// The end came before the root label.
    #[error("a name is cut short")]
    CutShort,
    /// A compression pointer or a reserved label type.
    #[error("a label of type {0:#04x} where only plain ones may stand")]
    LabelType(u8),
    /// More than 255 octets.
    #[error("a name is longer than 255 octets")]
    TooLong,
    /// More than 63 octets.
    #[error("a label is longer than 63 octets")]
    LabelTooLong,
    /// Two dots in a row, or a dot in front.
    #[error("a label is empty")]
    EmptyLabel,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lower(text: &str) -> LowerName {
        LowerName::parse(WireName::parse(text).unwrap().wire()).unwrap()
    }

    #[test]
    fn suffixes_match_at_labels_only() {
        let zone = WireName::parse("cluster.local").unwrap();
        assert_eq!(lower("Web.Shop.svc.Cluster.LOCAL").labels_before(zone.wire()), Some(3));
        assert_eq!(lower("cluster.local").labels_before(zone.wire()), Some(0));
        assert_eq!(lower("mycluster.local").labels_before(zone.wire()), None);
        assert_eq!(lower("local").labels_before(zone.wire()), None);
        // A label whose content looks like the zone's wire form.
        let trap = LowerName::parse(b"\x0fa\x07cluster\x05local\0").unwrap();
        assert_eq!(trap.labels_before(zone.wire()), None);
        assert_eq!(lower("a.b").labels_before(WireName::parse(".").unwrap().wire()), Some(2));
    }

    #[test]
    fn labels_are_lower_cased_and_contiguous() {
        let name = lower("WEB.shop.svc");
        assert_eq!(name.label(0), b"web");
        assert_eq!(name.labels(0, 2), b"\x03web\x04shop");
        assert_eq!(format!("{name:?}"), "web.shop.svc.");
    }

    #[test]
    fn limits_hold() {
        let label = [&[63][..], &[b'a'; 63]].concat();
        let longest = [&label[..], &label, &label, &[61], &[b'a'; 61], &[0]].concat();
        assert_eq!(longest.len(), MAX_NAME);
        assert_eq!(LowerName::parse(&longest).unwrap().wire().len(), MAX_NAME);
        let over = [&label[..], &label, &label, &[62], &[b'a'; 62], &[0]].concat();
        assert_eq!(LowerName::parse(&over).unwrap_err(), ParseNameError::TooLong);
        assert_eq!(LowerName::parse(&[0xc0, 12]).unwrap_err(), ParseNameError::LabelType(0xc0));
        assert_eq!(LowerName::parse(&[3, b'a']).unwrap_err(), ParseNameError::CutShort);
        assert_eq!(LowerName::parse(&[]).unwrap_err(), ParseNameError::CutShort);
        assert_eq!(WireName::parse("a..b").unwrap_err(), ParseNameError::EmptyLabel);
        assert_eq!(WireName::parse(&"a".repeat(64)).unwrap_err(), ParseNameError::LabelTooLong);
        let many = [&[1, b'a'].repeat(127)[..], &[0]].concat();
        assert_eq!(LowerName::parse(&many).unwrap().n_labels(), 127);
    }
}
