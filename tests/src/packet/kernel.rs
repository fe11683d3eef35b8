//! What a case gives, in the kernel's maps, and its packets run through the programs.

use std::net::{IpAddr, SocketAddr};

use abi::addr::Addr;
use abi::address::{AddressValue, PrefixFlags, RangeKey};
use abi::device::Device;
use abi::endpoint::{Endpoint, Head};
use abi::flow::{FragmentKey, Held, HeldKey, Name, Ports, Record, Tuple};
use abi::frontend::{FrontendKey, FrontendValue};
use abi::node::Node;
use abi::slot::{Kind, N_HEADS, Rules, SERVING, Slot};
use load::test_run::{Bench, Pod, TestRunError};
use nix::sched::{CloneFlags, unshare};
use packet::memory::Way;

use crate::packet::given::Given;

/// The device of a test run: loopback.
const DEVICE: u32 = 1;

/// Runs something on a thread in a network of its own, whose loopback device is down: what a program
/// sends there reaches nobody.
///
/// # Panics
/// There is no privilege to make one, or `f` panics.
#[expect(clippy::unwrap_used, reason = "a test fails loudly")]
pub fn alone<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    let f = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        f()
    };
    let ended = std::thread::scope(|scope| scope.spawn(f).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Writes what is given.
///
/// # Errors
/// A map is full, or not as expected.
pub fn give(bench: &mut Bench, given: &Given) -> Result<(), TestRunError> {
    let mut next = 1;
    for (slot, frontend) in (1..).zip(&given.frontends) {
        let generation = given.generations.get(slot as usize).copied().unwrap_or(0);
        let mut heads = [Head::REJECT; N_HEADS];
        for (head, route) in heads.iter_mut().zip(&frontend.routes) {
            *head = set(bench, &mut next, &route.endpoints, generation)?
                .unwrap_or(if route.drop { Head::DROP } else { Head::REJECT })
                .with_masquerade(route.masquerade);
        }
        let serving = set(bench, &mut next, &frontend.serving, generation)?;
        heads[SERVING] = serving.unwrap_or_else(|| Head::new(0, 0, generation));
        let rules = Rules::new(slot, 0, Kind::ClusterIp, !frontend.ranges.is_empty());
        let entry = Slot { heads, rules, ..Slot::default() };
        bench.array::<Slot>("SLOTS")?.set(slot, entry, 0).map_err(map("SLOTS"))?;
        for (net, bits) in &frontend.ranges {
            let (addr, bits) = prefix(*net, *bits);
            bench.put_range("RANGES", 32 + bits, RangeKey { slot, addr }, 1u32)?;
        }
        let addr = frontend
            .address
            .map_or_else(|| if frontend.v6 { Addr::ANY_V6 } else { Addr::ANY_V4 }, Addr::from);
        let key = FrontendKey::new(addr, frontend.port.to_be(), frontend.protocol);
        bench
            .hash("FRONTENDS")?
            .insert(key, FrontendValue::new(&key, slot), 0)
            .map_err(map("FRONTENDS"))?;
    }
    give_addresses(bench, given)
}

/// Marks what is given, and has it trusted.
fn mark(bench: &mut Bench, given: &Given) -> Result<(), TestRunError> {
    let filter = bench.filter()?;
    let serving = given.locals.iter().filter(|(_, node_ports)| *node_ports);
    let frontends = given.frontends.iter().filter_map(|frontend| frontend.address.as_ref());
    let addresses = frontends.chain(&given.cluster_ips).chain(serving.map(|(address, _)| address));
    for address in addresses {
        filter.mark_service(&Addr::from(*address));
    }
    for (net, bits) in &given.services {
        let (addr, bits) = prefix(*net, *bits);
        filter.mark_range(bits, &addr);
    }
    filter.trust();
    Ok(())
}

fn give_addresses(bench: &mut Bench, given: &Given) -> Result<(), TestRunError> {
    mark(bench, given)?;
    let owned = given.cluster_ips.iter().map(|address| (address, AddressValue::REJECT));
    let locals = given.locals.iter().map(|(address, node_ports)| {
        let more = if *node_ports { AddressValue::NODE_PORTS } else { 0 };
        (address, AddressValue::LOCAL | more)
    });
    for (address, flags) in owned.chain(locals) {
        let addr = Addr::from(*address);
        bench
            .hash("ADDRESSES")?
            .insert(addr, AddressValue::new(&addr, flags), 0)
            .map_err(map("ADDRESSES"))?;
    }
    let pods = given.pods.iter().map(|range| (range, PrefixFlags::POD));
    let services = given.services.iter().map(|range| (range, PrefixFlags::SERVICE));
    for ((net, bits), flags) in pods.chain(services) {
        let (addr, bits) = prefix(*net, *bits);
        bench.put_range("PREFIXES", bits, addr, PrefixFlags(flags))?;
    }
    let leaves_new = if given.leaves_new { Node::LEAVES_NEW } else { 0 };
    let flags = Node::PODS_V4 | Node::PODS_V6 | leaves_new;
    let node = Node { flags, ..Node::default() };
    bench.array::<Node>("NODE")?.set(0, node, 0).map_err(map("NODE"))?;
    let device = Device {
        v4: given.device(false).unwrap_or_default(),
        v6: given.device(true).unwrap_or_default(),
        ..Device::default()
    };
    bench.hash("DEVICES")?.insert(DEVICE, device, 0).map_err(map("DEVICES"))
}

fn set(
    bench: &mut Bench,
    next: &mut u32,
    endpoints: &[SocketAddr],
    generation: u32,
) -> Result<Option<Head>, TestRunError> {
    if endpoints.is_empty() {
        return Ok(None);
    }
    let base = *next;
    for endpoint in endpoints {
        let value = Endpoint {
            addr: endpoint.ip().into(),
            port: endpoint.port().to_be(),
            generation,
            ..Endpoint::default()
        };
        bench.array::<Endpoint>("ENDPOINTS")?.set(*next, value, 0).map_err(map("ENDPOINTS"))?;
        *next += 1;
    }
    Ok(Some(Head::new(base, *next - base, generation)))
}

/// Forgets all connections and fragments.
///
/// # Errors
/// A map is not as expected.
pub fn clear(bench: &mut Bench) -> Result<(), TestRunError> {
    for name in ["FLOWS", "NEW_FLOWS"] {
        empty::<Tuple, Record>(bench, name)?;
    }
    empty::<Tuple, Name>(bench, "NAMES")?;
    empty::<Tuple, Tuple>(bench, "NEW_NAMES")?;
    empty::<HeldKey, Held>(bench, "HELD")?;
    empty::<FragmentKey, Ports>(bench, "DATAGRAMS")
}

/// Forgets all that is given, too.
///
/// # Errors
/// As above.
pub fn reset(bench: &mut Bench) -> Result<(), TestRunError> {
    empty::<FrontendKey, FrontendValue>(bench, "FRONTENDS")?;
    empty::<Addr, AddressValue>(bench, "ADDRESSES")?;
    empty::<u32, Device>(bench, "DEVICES")?;
    bench.empty_trie::<Addr, PrefixFlags>("PREFIXES")?;
    bench.empty_trie::<RangeKey, u32>("RANGES")?;
    bench.forget_marks()?;
    clear(bench)
}

/// How many connections there are, proved and not.
///
/// # Errors
/// As above.
pub fn flows(bench: &mut Bench) -> Result<[usize; 2], TestRunError> {
    let proved = bench.hash::<Tuple, Record>("FLOWS")?.keys().count();
    let new = bench.hash::<Tuple, Record>("NEW_FLOWS")?.keys().count();
    Ok([proved, new])
}

/// Runs a frame through the program of its way; gives the action and the frame afterwards. `summed`
/// by its device: `None` if that sum is not its sum any more.
///
/// # Errors
/// The kernel does not run it.
pub fn run(
    bench: &mut Bench,
    before: &[u8],
    way: Way,
    summed: bool,
) -> Result<Option<(i32, Vec<u8>)>, TestRunError> {
    let (program, came_by) = program(way);
    if !summed {
        let ran = bench.run(program, before, came_by, 1)?;
        return Ok(Some((ran.action, ran.packet.to_vec())));
    }
    let ran = bench.run_summed(program, before, came_by)?;
    Ok(ran.map(|(action, after)| (action, after.to_vec())))
}

const fn program(way: Way) -> (&'static str, u32) {
    match way {
        Way::Arrives => ("tc_ingress", DEVICE),
        Way::Leaves => ("tc_egress", DEVICE),
        Way::MadeHere => ("tc_egress", 0),
    }
}

fn empty<K: Pod, V: Pod>(bench: &mut Bench, name: &str) -> Result<(), TestRunError> {
    let mut hash = bench.hash::<K, V>(name)?;
    let keys: Vec<K> = hash.keys().collect::<Result<_, _>>().map_err(map(name))?;
    for key in keys {
        // An LRU map may have displaced it meanwhile.
        _ = hash.remove(&key);
    }
    Ok(())
}

/// A range as the tries have it.
fn prefix(net: IpAddr, bits: u32) -> (Addr, u32) {
    (net.into(), if net.is_ipv4() { 96 + bits } else { bits })
}

fn map(name: &str) -> impl Fn(load::MapError) -> TestRunError {
    move |source| TestRunError::Map { name: name.to_owned(), source }
}
