//! What stands in the tables: lines of a case.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use abi::addr::Addr;

/// All that a case gives.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// Frontends, by slot.
    pub frontends: Vec<Frontend>,
    /// Cluster IPs.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses of the node, and whether they serve node ports.
    pub locals: Vec<(IpAddr, bool)>,
    /// Ranges of this node's pods.
    pub pods: Vec<(IpAddr, u32)>,
    /// Service CIDRs.
    pub services: Vec<(IpAddr, u32)>,
    /// The device's addresses.
    pub device: Vec<IpAddr>,
    /// New connections are left to others.
    pub leaves_new: bool,
    /// The generation of each slot's serving endpoints; the first slot is not used.
    pub generations: Vec<u32>,
}

/// A frontend.
#[derive(Clone, Debug)]
pub struct Frontend {
    /// Where it is; `None` on the node ports of a family.
    pub address: Option<IpAddr>,
    /// Whether a node port is IPv6's.
    pub v6: bool,
    /// The port.
    pub port: u16,
    /// The protocol's number.
    pub protocol: u8,
    /// From pods, the node, and outside.
    pub routes: [Route; 3],
    /// Every endpoint that serves.
    pub serving: Vec<SocketAddr>,
    /// Source ranges, if there are.
    pub ranges: Vec<(IpAddr, u32)>,
}

/// Where connections go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// To one of these.
    pub endpoints: Vec<SocketAddr>,
    /// Nowhere, silently, when there are none.
    pub drop: bool,
    /// Their source is rewritten.
    pub masquerade: bool,
}

impl Given {
    /// Takes a line.
    ///
    /// # Panics
    /// It makes no sense.
    #[expect(clippy::panic, reason = "a test fails loudly")]
    pub fn line(&mut self, line: &str) {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        match kind {
            "frontend" => self.frontends.push(frontend(rest)),
            "cluster-ip" => self.cluster_ips.push(parse(rest)),
            "local" => match rest.strip_suffix(" node-ports") {
                Some(address) => self.locals.push((parse(address), true)),
                None => self.locals.push((parse(rest), false)),
            },
            "pods" => self.pods.push(range(rest)),
            "services" => self.services.push(range(rest)),
            "device" => self.device.push(parse(rest)),
            _ => panic!("what is {line:?}?"),
        }
    }

    /// The device's address of a family.
    pub fn device(&self, v6: bool) -> Option<Addr> {
        self.device.iter().find(|address| address.is_ipv6() == v6).map(|address| (*address).into())
    }
}

/// Whether a range has an address.
pub fn is_in((net, bits): (IpAddr, u32), address: IpAddr) -> bool {
    let word = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    net.is_ipv6() == address.is_ipv6() && (word(net) ^ word(address)) & mask == 0
}

#[expect(clippy::panic, reason = "a test fails loudly")]
fn frontend(text: &str) -> Frontend {
    let mut words = text.split_whitespace();
    let at = words.next().unwrap_or_default();
    let (at, protocol) = at.split_once('/').unwrap_or_else(|| panic!("no protocol: {text}"));
    let (address, port) = at.rsplit_once(':').unwrap_or_else(|| panic!("no port: {text}"));
    let bare = address.trim_matches(['[', ']']);
    let mut frontend = Frontend {
        address: (bare != "*").then(|| parse(bare)),
        v6: address.starts_with('['),
        port: parse(port),
        protocol: protocol_number(protocol),
        routes: Default::default(),
        serving: Vec::new(),
        ranges: Vec::new(),
    };
    let mut of = [true; 3];
    let mut serving = None;
    while let Some(word) = words.next() {
        match word {
            "pod" => of = [true, false, false],
            "node" => of = [false, true, false],
            "outside" => of = [false, false, true],
            "ranges" => {
                frontend.ranges = words.next().unwrap_or_default().split(',').map(range).collect();
            }
            "serving" => serving = Some(endpoints(words.next().unwrap_or_default())),
            _ => {
                for (route, _) in frontend.routes.iter_mut().zip(of).filter(|(_, of)| *of) {
                    match word {
                        "drop" => *route = Route { drop: true, ..Route::default() },
                        "reject" => *route = Route::default(),
                        "masquerade" => route.masquerade = true,
                        _ => *route = Route { endpoints: endpoints(word), ..Route::default() },
                    }
                }
            }
        }
    }
    frontend.serving = serving.unwrap_or_else(|| {
        let mut all: Vec<SocketAddr> =
            frontend.routes.iter().flat_map(|route| route.endpoints.clone()).collect();
        all.sort_unstable();
        all.dedup();
        all
    });
    frontend
}

/// The number of a protocol.
///
/// # Panics
/// It has none.
#[expect(clippy::panic, reason = "a test fails loudly")]
pub fn protocol_number(name: &str) -> u8 {
    match name {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        _ => panic!("what is {name:?}?"),
    }
}

fn endpoints(text: &str) -> Vec<SocketAddr> {
    text.split(',').map(parse).collect()
}

#[expect(clippy::panic, reason = "a test fails loudly")]
fn range(text: &str) -> (IpAddr, u32) {
    let (net, bits) = text.split_once('/').unwrap_or_else(|| panic!("no range: {text}"));
    (parse(net), parse(bits))
}

#[expect(clippy::panic, reason = "a test fails loudly")]
pub(crate) fn parse<T: FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_error| panic!("what is {text:?}?"))
}
