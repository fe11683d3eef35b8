//! What a case gives, as the decision asks for it without a kernel.

use std::net::{IpAddr, SocketAddr};

use abi::addr::Addr;
use packet::memory::Services;
use packet::tables::{Choice, Chosen, Found};

use crate::packet::given::{Frontend, Given, Route, is_in};

impl Services for Given {
    fn leads(&self) -> bool {
        !self.leaves_new
    }

    fn find(&self, address: &Addr, port: u16, protocol: u8) -> Found {
        let (address, port) = (IpAddr::from(*address), u16::from_be(port));
        let at = |frontend: &&Frontend, node_port: bool| {
            (frontend.port, frontend.protocol) == (port, protocol)
                && match frontend.address {
                    Some(own) => own == address,
                    None => node_port && frontend.v6 == address.is_ipv6(),
                }
        };
        if let Some(slot) = self.slot(|frontend| at(frontend, false)) {
            return Found::Frontend(slot);
        }
        if self.cluster_ips.contains(&address) {
            return Found::Undefined;
        }
        if self.locals.contains(&(address, true))
            && let Some(slot) = self.slot(|frontend| at(frontend, true))
        {
            return Found::Frontend(slot);
        }
        if self.services.iter().any(|range| is_in(*range, address)) {
            return Found::Unallocated;
        }
        Found::Stranger
    }

    fn is_cluster_ip(&self, address: &Addr) -> bool {
        self.cluster_ips.contains(&IpAddr::from(*address))
    }

    fn is_ours(&self, address: &Addr) -> bool {
        let address = IpAddr::from(*address);
        self.cluster_ips.contains(&address) || self.locals.contains(&(address, true))
    }

    fn concerns(&self, address: &Addr) -> bool {
        let ip = IpAddr::from(*address);
        self.is_ours(address)
            || self.frontends.iter().any(|frontend| frontend.address == Some(ip))
            || self.services.iter().any(|range| is_in(*range, ip))
    }

    fn is_pod(&self, address: &Addr) -> bool {
        let address = IpAddr::from(*address);
        self.pods.iter().any(|range| is_in(*range, address))
    }

    fn choose(&self, slot: u32, client: &Addr, here: bool, random: u32) -> Choice {
        let Some(frontend) = self.at(slot) else { return Choice::Unsettled };
        let client = IpAddr::from(*client);
        let ranges = &frontend.ranges;
        if !ranges.is_empty() && !ranges.iter().any(|range| is_in(*range, client)) {
            return Choice::NotAllowed;
        }
        let route = self.route(frontend, client, here);
        let n = u32::try_from(route.endpoints.len()).unwrap_or(0);
        let idx = random.checked_rem(n).unwrap_or(0) as usize;
        match route.endpoints.get(idx) {
            Some(endpoint) => Choice::Endpoint(Chosen {
                address: endpoint.ip().into(),
                port: endpoint.port().to_be(),
                masquerade: u16::from(route.masquerade),
                id: 0,
            }),
            None if route.drop => Choice::Nowhere,
            None => Choice::Nobody,
        }
    }

    fn generation(&self, slot: u32) -> u32 {
        self.generations.get(slot as usize).copied().unwrap_or(0)
    }

    fn serves(&self, slot: u32, address: &Addr, port: u16) -> Option<u32> {
        let endpoint = SocketAddr::new((*address).into(), u16::from_be(port));
        self.at(slot)?.serving.contains(&endpoint).then(|| self.generation(slot))
    }

    fn device(&self, v6: bool) -> Option<Addr> {
        self.device(v6)
    }
}

impl Given {
    fn slot(&self, is: impl Fn(&&Frontend) -> bool) -> Option<u32> {
        let idx = self.frontends.iter().position(|frontend| is(&frontend))?;
        u32::try_from(idx + 1).ok()
    }

    /// Where a frontend leads a client.
    pub fn route<'a>(&self, frontend: &'a Frontend, client: IpAddr, here: bool) -> &'a Route {
        let [pod, node, outside] = &frontend.routes;
        let is_pod = self.pods.iter().any(|range| is_in(*range, client));
        let is_node = self.locals.iter().any(|(local, _)| *local == client);
        match (here, is_pod, is_node) {
            (true, ..) => node,
            (_, true, _) => pod,
            (_, _, true) => node,
            _ => outside,
        }
    }

    /// The frontend in a slot.
    pub fn at(&self, slot: u32) -> Option<&Frontend> {
        self.frontends.get((slot as usize).checked_sub(1)?)
    }
}
