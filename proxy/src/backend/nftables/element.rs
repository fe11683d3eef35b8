//! What stands in the tables' maps and sets, as `nft` writes and reads it. `[pure]`
//!
//! ```text
//! priority:  31 ......................... 12 | 11 ....... 0
//!            which set of endpoints          | class: how one of them is chosen
//! ```

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use model::name::Protocol;
use serde_json::Value as Json;

use crate::plan::SourceKind;

/// What one element is found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    /// A chain that a class stands for.
    Class(u16),
    /// From a kind of source to an address.
    Frontend(SourceKind, SocketAddr, Protocol),
    /// From a kind of source to a node port.
    NodePort(SourceKind, Protocol, u16),
    /// An address of Services.
    Address(IpAddr),
    /// The number of an endpoint of a set.
    Endpoint(u32, u16),
    /// The same for a set whose clients stay.
    Choice(u32, u16),
    /// An endpoint that clients may stay with, by set and number.
    Member(u32, u32),
    /// Where an endpoint is, by number.
    Target(u32),
    /// An endpoint's address, which is masqueraded when it is sent to itself.
    Hairpin(IpAddr),
    /// A frontend that is not for everyone.
    Restricted(SocketAddr, Protocol),
    /// For whom it is.
    Allowed(SocketAddr, Protocol, IpNet),
}

/// What is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// That it is there.
    Present,
    /// Set and class, or a number.
    Number(u32),
    /// An endpoint.
    Socket(SocketAddr),
    /// A chain.
    Chain(Arc<str>),
}

impl Key {
    /// The map or set that it stands in.
    pub(super) const fn holder(&self) -> &'static str {
        match self {
            Self::Class(_) => "classes",
            Self::Frontend(SourceKind::Pod, ..) => "frontends-pod",
            Self::Frontend(SourceKind::Node, ..) => "frontends-node",
            Self::Frontend(SourceKind::Outside, ..) => "frontends-outside",
            Self::NodePort(SourceKind::Pod, ..) => "node-ports-pod",
            Self::NodePort(SourceKind::Node, ..) => "node-ports-node",
            Self::NodePort(SourceKind::Outside, ..) => "node-ports-outside",
            Self::Address(_) => "addresses",
            Self::Endpoint(..) => "endpoints",
            Self::Choice(..) => "choices",
            Self::Member(..) => "members",
            Self::Target(_) => "targets",
            Self::Hairpin(_) => "hairpin",
            Self::Restricted(..) => "restricted",
            Self::Allowed(..) => "allowed",
        }
    }

    /// Reads an element of a map or set; `None` if it is nothing that we write.
    pub(super) fn parse(holder: &str, element: &Json) -> Option<(Self, Value)> {
        let (key, value) = match holder {
            "hairpin" | "restricted" | "allowed" => (element, None),
            _ => (element.get(0)?, element.get(1)),
        };
        let parts: Vec<&Json> = match key.get("concat") {
            Some(parts) => parts.as_array()?.iter().collect(),
            None => vec![key],
        };
        let kind = || match holder.rsplit('-').next()? {
            "pod" => Some(SourceKind::Pod),
            "node" => Some(SourceKind::Node),
            _ => Some(SourceKind::Outside),
        };
        let parsed = match (holder, &*parts) {
            ("classes", [class]) => Self::Class(u16::try_from(number(class)?).ok()?),
            ("frontends-pod" | "frontends-node" | "frontends-outside", [ip, protocol, port]) => {
                Self::Frontend(kind()?, socket(ip, port)?, self::protocol(protocol)?)
            }
            ("node-ports-pod" | "node-ports-node" | "node-ports-outside", [protocol, port]) => {
                Self::NodePort(kind()?, self::protocol(protocol)?, self::port(port)?)
            }
            ("addresses", [ip]) => Self::Address(address(ip)?),
            ("endpoints", [set, idx]) => Self::Endpoint(number(set)?, port(idx)?),
            ("choices", [set, idx]) => Self::Choice(number(set)?, port(idx)?),
            ("members", [set, endpoint]) => Self::Member(number(set)?, number(endpoint)?),
            ("targets", [endpoint]) => Self::Target(number(endpoint)?),
            ("hairpin", [ip, _]) => Self::Hairpin(address(ip)?),
            ("restricted", [ip, protocol, port]) => {
                Self::Restricted(socket(ip, port)?, self::protocol(protocol)?)
            }
            ("allowed", [ip, protocol, port, range]) => {
                Self::Allowed(socket(ip, port)?, self::protocol(protocol)?, self::range(range)?)
            }
            _ => return None,
        };
        let value = match (&parsed, value) {
            (Self::Class(_), Some(verdict)) => {
                Value::Chain(verdict.get("goto")?.get("target")?.as_str()?.into())
            }
            (Self::Target(_), Some(value)) => {
                let parts = value.get("concat")?;
                Value::Socket(socket(parts.get(0)?, parts.get(1)?)?)
            }
            (_, Some(value)) => Value::Number(number(value)?),
            (_, None) => Value::Present,
        };
        Some((parsed, value))
    }
}

/// The key as an element has it.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Class(class) => write!(f, "{class:#x}"),
            Self::Frontend(_, socket, protocol) | Self::Restricted(socket, protocol) => {
                write!(f, "{} . {} . {}", socket.ip(), name(*protocol), socket.port())
            }
            Self::NodePort(_, protocol, port) => write!(f, "{} . {port}", name(*protocol)),
            Self::Address(ip) => write!(f, "{ip}"),
            Self::Endpoint(set, idx) | Self::Choice(set, idx) => write!(f, "{set:#x} . {idx}"),
            Self::Member(set, endpoint) => write!(f, "{set:#x} . {endpoint:#x}"),
            Self::Target(endpoint) => write!(f, "{endpoint:#x}"),
            Self::Hairpin(ip) => write!(f, "{ip} . {ip}"),
            Self::Allowed(socket, protocol, range) => {
                let (ip, port) = (socket.ip(), socket.port());
                write!(f, "{ip} . {} . {port} . {range}", name(*protocol))
            }
        }
    }
}

/// The value as an element has it, with what stands before it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => Ok(()),
            Self::Number(number) => write!(f, " : {number:#x}"),
            Self::Socket(socket) => write!(f, " : {} . {}", socket.ip(), socket.port()),
            Self::Chain(chain) => write!(f, " : goto {chain}"),
        }
    }
}

const fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

fn protocol(json: &Json) -> Option<Protocol> {
    Protocol::parse(&json.as_str()?.to_uppercase()).ok()
}

/// A priority is written as a traffic class: two numbers in hexadecimal.
fn number(json: &Json) -> Option<u32> {
    if let Some(number) = json.as_u64() {
        return u32::try_from(number).ok();
    }
    let text = json.as_str()?;
    match text {
        "none" => Some(0),
        "root" => Some(u32::MAX),
        _ => {
            let (major, minor) = text.split_once(':')?;
            let part = |text| u32::from_str_radix(text, 16).ok();
            let major = if major.is_empty() { Some(0) } else { part(major) };
            Some(major? << 16 | if minor.is_empty() { 0 } else { part(minor)? })
        }
    }
}

fn port(json: &Json) -> Option<u16> {
    u16::try_from(json.as_u64()?).ok()
}

fn address(json: &Json) -> Option<IpAddr> {
    json.as_str()?.parse().ok()
}

fn socket(ip: &Json, port: &Json) -> Option<SocketAddr> {
    Some(SocketAddr::new(address(ip)?, self::port(port)?))
}

fn range(json: &Json) -> Option<IpNet> {
    match json.get("prefix") {
        Some(prefix) => {
            let len = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
            IpNet::new(address(prefix.get("addr")?)?, len).ok()
        }
        None => Some(IpNet::from(address(json)?)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_nft_lists_is_what_was_written() {
        let web: SocketAddr = "10.96.0.10:80".parse().unwrap();
        for (holder, element, key, value) in [
            (
                "frontends-node",
                json!([{"concat": ["10.96.0.10", "tcp", 80]}, "8000:1003"]),
                Key::Frontend(SourceKind::Node, web, Protocol::Tcp),
                Value::Number(0x8000_1003),
            ),
            (
                "targets",
                json!(["0:1000", {"concat": ["fd00::2", 8080]}]),
                Key::Target(0x1000),
                Value::Socket("[fd00::2]:8080".parse().unwrap()),
            ),
            (
                "endpoints",
                json!([{"concat": ["0:1000", 1]}, "0:7"]),
                Key::Endpoint(0x1000, 1),
                Value::Number(7),
            ),
            ("addresses", json!(["10.96.0.10", "none"]), Key::Address(web.ip()), Value::Number(0)),
            (
                "classes",
                json!(["0:3", {"goto": {"target": "pick-2"}}]),
                Key::Class(3),
                Value::Chain("pick-2".into()),
            ),
            (
                "allowed",
                json!({"concat": ["10.96.0.10", "tcp", 80, {"prefix": {"addr": "10.0.0.0", "len": 8}}]}),
                Key::Allowed(web, Protocol::Tcp, "10.0.0.0/8".parse().unwrap()),
                Value::Present,
            ),
        ] {
            assert_eq!(Key::parse(holder, &element), Some((key.clone(), value)));
            assert_eq!(key.holder(), holder);
        }
    }
}
