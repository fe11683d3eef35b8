//! Records, as references into a view; a name becomes bytes only where it is written.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use model::slices::MergedEndpoint;
use smallvec::SmallVec;

use crate::config::Zone;
use crate::message::RecordType;
use crate::name::{Presentation, WireName};
use crate::zone::service::{ServiceView, dashed};

/// A resource record of class IN.
#[derive(Clone, Copy, Debug)]
pub struct Record<'v> {
    /// Whose it is.
    pub owner: NameRef<'v>,
    /// Seconds to keep it.
    pub ttl: u32,
    /// Type and data.
    pub data: Data<'v>,
}

/// A record's type and data.
#[derive(Clone, Copy, Debug)]
pub enum Data<'v> {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// An alias.
    Cname(NameRef<'v>),
    /// A name for an address.
    Ptr(NameRef<'v>),
    /// A name server.
    Ns(NameRef<'v>),
    /// One string.
    Txt(&'static str),
    /// Where a service listens, at priority 0.
    Srv {
        /// Its share among all.
        weight: u16,
        /// The port.
        port: u16,
        /// The host.
        target: NameRef<'v>,
    },
    /// The start of authority.
    Soa {
        /// The zone, from which the names of server and person are made.
        zone: &'v Zone,
        /// The version.
        serial: u32,
        /// How long absence may be believed.
        minimum: u32,
    },
}

/// `refresh`, `retry`, `expire` of the SOA, as upstream has them.
pub(crate) const SOA_TIMES: [u32; 3] = [7200, 1800, 86400];

impl Data<'_> {
    /// The type.
    pub const fn rtype(&self) -> RecordType {
        match self {
            Self::A(_) => RecordType::A,
            Self::Aaaa(_) => RecordType::AAAA,
            Self::Cname(_) => RecordType::CNAME,
            Self::Ptr(_) => RecordType::PTR,
            Self::Ns(_) => RecordType::NS,
            Self::Txt(_) => RecordType::TXT,
            Self::Srv { .. } => RecordType::SRV,
            Self::Soa { .. } => RecordType::SOA,
        }
    }
}

/// A name by what it is the name of.
#[derive(Clone, Copy, Debug)]
pub enum NameRef<'v> {
    /// The name asked for, in the client's letters.
    Asked,
    /// A name as configured in an object.
    Wire(&'v WireName),
    /// A zone.
    Zone(&'v Zone),
    /// `ns.dns` of a zone.
    NameServer(&'v Zone),
    /// `hostmaster` of a zone.
    Hostmaster(&'v Zone),
    /// A Service.
    Service(&'v Zone, &'v ServiceView),
    /// An endpoint of a Service.
    Endpoint(&'v Zone, &'v ServiceView, &'v MergedEndpoint),
}

/// Room for a name while it is written.
pub(crate) type NameBuf = SmallVec<[u8; 128]>;

impl NameRef<'_> {
    /// Writes the name, uncompressed, behind what is in `to`; `asked` is the name asked for.
    pub(crate) fn write(self, asked: &[u8], to: &mut NameBuf) {
        let zone = match self {
            Self::Asked => return to.extend_from_slice(asked),
            Self::Wire(name) => return to.extend_from_slice(name.wire()),
            Self::Zone(zone) => zone,
            Self::NameServer(zone) => {
                to.extend_from_slice(b"\x02ns\x03dns");
                zone
            }
            Self::Hostmaster(zone) => {
                to.extend_from_slice(b"\x0ahostmaster");
                zone
            }
            Self::Service(zone, service) => {
                write_service(service, to);
                zone
            }
            Self::Endpoint(zone, service, endpoint) => {
                match service.own_label(endpoint) {
                    Some(label) => push_label(label, to),
                    None => push_label(&dashed(endpoint.address.ip()), to),
                }
                write_service(service, to);
                zone
            }
        };
        to.extend_from_slice(zone.name.wire());
    }
}

fn write_service(service: &ServiceView, to: &mut NameBuf) {
    to.extend_from_slice(service.key().0);
    to.extend_from_slice(b"\x03svc");
}

fn push_label(label: &str, to: &mut NameBuf) {
    to.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
    to.extend_from_slice(label.as_bytes());
}

/// A record in the words of a zone file, the name asked for filled in.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'v, 'a> {
    /// The record.
    pub record: Record<'v>,
    /// The name asked for, on the wire.
    pub asked: &'a [u8],
}

impl fmt::Display for Shown<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { owner, ttl, data } = self.record;
        self.name(owner, f)?;
        write!(f, " {ttl} IN {} ", data.rtype())?;
        match data {
            Data::A(address) => write!(f, "{address}"),
            Data::Aaaa(address) => write!(f, "{address}"),
            Data::Cname(name) | Data::Ptr(name) | Data::Ns(name) => self.name(name, f),
            Data::Txt(text) => write!(f, "{text:?}"),
            Data::Srv { weight, port, target } => {
                write!(f, "0 {weight} {port} ")?;
                self.name(target, f)
            }
            Data::Soa { zone, serial, minimum } => {
                self.name(NameRef::NameServer(zone), f)?;
                f.write_str(" ")?;
                self.name(NameRef::Hostmaster(zone), f)?;
                let [refresh, retry, expire] = SOA_TIMES;
                write!(f, " {serial} {refresh} {retry} {expire} {minimum}")
            }
        }
    }
}

impl Shown<'_, '_> {
    fn name(&self, name: NameRef<'_>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut wire = NameBuf::new();
        name.write(self.asked, &mut wire);
        fmt::Display::fmt(&Presentation(&wire), f)
    }
}
