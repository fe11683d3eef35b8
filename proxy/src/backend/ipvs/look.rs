//! What the kernel holds for one frontend, in the plan's words.

use std::net::SocketAddr;

use super::item::{self, Key, Set, Value, Virtual, VirtualKey};
use super::kernel::Kernel;
use super::{KernelError, device, netlink, sets};
use crate::backend::held::{Held, HeldTarget};
use crate::plan::{At, FrontendKey, SourceKind};

/// Reads it, of a process of whatever kind.
pub(super) fn held(key: &FrontendKey) -> Result<Held, KernelError> {
    let Some(kernel) = netlink("ask the kernel for IPVS", Kernel::find())? else {
        return Ok(Held::default());
    };
    let virtuals = netlink("read virtual services", kernel.virtuals())?;
    let ours = netlink("read the node's addresses", device::addresses())?.ours;
    let is_there = |at: &SocketAddr| match key.at {
        At::Address(address) => at.ip() == address,
        At::NodePort(family) => {
            model::name::Family::of(&at.ip()) == family && !ours.contains(&at.ip())
        }
    };
    let found = virtuals.iter().find_map(|(it, virt)| match it {
        VirtualKey::At(at, protocol)
            if *protocol == key.protocol && at.port() == key.port && is_there(at) =>
        {
            Some((*at, virt))
        }
        _ => None,
    });
    let Some((at, virt)) = found else { return Ok(Held::default()) };
    let entries = sets::read()?;
    let family = key.at.family();
    let entry = |set| entries.get(&Key::Entry(set, family, item::at(at, key.protocol)));
    let from = |drop, lead| {
        let mark = entry(lead).and_then(Value::mark);
        let led = mark.and_then(|mark| virtuals.get(&VirtualKey::Mark(family, mark)));
        let is_own = led.is_some() || entry(drop).is_some();
        let target = match entry(drop) {
            Some(_) => HeldTarget::Drop,
            None => target(led.unwrap_or(virt)),
        };
        (is_own, target)
    };
    // Pods are told apart only where they are configured: then there is an entry, or no difference.
    let (is_own, pod) = from(Set::DropPod, Set::RoutePod);
    let (_, node) = from(Set::DropNode, Set::RouteNode);
    let (_, outside) = from(Set::DropOutside, Set::RouteOutside);
    let mut routes = vec![(SourceKind::Node, node), (SourceKind::Outside, outside)];
    if is_own {
        routes.insert(0, (SourceKind::Pod, pod));
    }
    Ok(Held { routes, ..Held::default() })
}

/// Where it leads new connections.
fn target(virt: &Virtual) -> HeldTarget {
    let live = virt.destinations.iter().filter(|(_, weight)| **weight > 0);
    let endpoints: std::collections::BTreeSet<SocketAddr> = live.map(|(at, _)| *at).collect();
    if endpoints.is_empty() { HeldTarget::Reject } else { HeldTarget::Endpoints(endpoints) }
}
