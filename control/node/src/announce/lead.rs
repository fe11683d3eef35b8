//! Who answers for which address. `[pure]`

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::runtime::watcher::Event;

/// By this label a node is left out, as upstream has it.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Namespace and name.
type Key = (String, String);

/// All that matters of the cluster.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) nodes: Known<Ready>,
    pub(super) services: Known<Shared>,
    pub(super) slices: Known<Serving>,
}

/// What of an object matters, if it does at all.
pub(super) trait Read<K>: Sized {
    fn read(object: &K) -> Option<Self>;
}

/// A node that is ready.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready;

/// A Service that has addresses outside of the cluster.
#[derive(Debug)]
pub(super) struct Shared {
    addresses: Vec<IpAddr>,
    /// Only nodes on which it is served may have its packets.
    local: bool,
}

/// Where a Service is served, as one slice says it.
#[derive(Debug)]
pub(super) struct Serving {
    service: Key,
    nodes: BTreeSet<String>,
}

/// The objects of one kind, by name.
#[derive(Debug)]
pub(super) struct Known<V> {
    now: BTreeMap<Key, V>,
    /// A list that is not whole yet.
    coming: Option<BTreeMap<Key, V>>,
    is_whole: bool,
}

impl<V> Default for Known<V> {
    fn default() -> Self {
        Self { now: BTreeMap::new(), coming: None, is_whole: false }
    }
}

impl<V> Known<V> {
    pub(super) fn hear<K: ResourceExt>(&mut self, event: Event<K>)
    where
        V: Read<K>,
    {
        let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
        match event {
            Event::Init => self.coming = Some(BTreeMap::new()),
            Event::InitApply(object) => {
                let read = V::read(&object).map(|value| (key(&object), value));
                self.coming.get_or_insert_default().extend(read);
            }
            Event::InitDone => {
                self.now = self.coming.take().unwrap_or_default();
                self.is_whole = true;
            }
            Event::Apply(object) => {
                match V::read(&object) {
                    Some(value) => self.now.insert(key(&object), value),
                    None => self.now.remove(&key(&object)),
                };
            }
            Event::Delete(object) => {
                self.now.remove(&key(&object));
            }
        }
    }
}

impl World {
    /// The addresses that fall to a node; nobody knows before all has been heard once.
    pub(super) fn led_by(&self, own: &str) -> Option<BTreeSet<IpAddr>> {
        if !(self.nodes.is_whole && self.services.is_whole && self.slices.is_whole) {
            return None;
        }
        let mut led = BTreeSet::new();
        for (service, shared) in &self.services.now {
            let serving = shared.local.then(|| self.serving(service));
            let may = |node: &&str| serving.as_ref().is_none_or(|all| all.contains(node));
            let nodes = self.nodes.now.keys().map(|(_, name)| name.as_str()).filter(may);
            let nodes: Vec<&str> = nodes.collect();
            let mine = |address: &&IpAddr| {
                nodes.iter().max_by_key(|node| weight(node, **address)) == Some(&own)
            };
            led.extend(shared.addresses.iter().filter(mine));
        }
        Some(led)
    }

    fn serving(&self, service: &Key) -> BTreeSet<&str> {
        let of = self.slices.now.values().filter(|slice| slice.service == *service);
        of.flat_map(|slice| slice.nodes.iter().map(String::as_str)).collect()
    }
}

/// The node of the highest weight wins: when one goes, only its own addresses move.
fn weight(node: &str, address: IpAddr) -> u64 {
    let text = format!("{address} {node}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // Names that differ in their last letter only differ in few bits until here.
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

impl Read<Node> for Ready {
    fn read(node: &Node) -> Option<Self> {
        let mut conditions = node.status.iter().flat_map(|one| one.conditions.iter().flatten());
        let ready = conditions.any(|one| one.type_ == "Ready" && one.status == "True");
        (ready && !node.labels().contains_key(EXCLUDED)).then_some(Self)
    }
}

impl Read<Service> for Shared {
    fn read(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        // Another class is another program's.
        let ours =
            spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none();
        let granted = service.status.as_ref().and_then(|one| one.load_balancer.as_ref());
        let granted = granted.into_iter().flat_map(|one| one.ingress.iter().flatten());
        let vips = granted.filter(|one| one.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"));
        let addresses: Vec<IpAddr> =
            vips.filter_map(|one| one.ip.as_deref()?.parse().ok()).collect();
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        (ours && !addresses.is_empty()).then_some(Self { addresses, local })
    }
}

impl Read<EndpointSlice> for Serving {
    fn read(slice: &EndpointSlice) -> Option<Self> {
        let service = slice.labels().get(SERVICE_NAME)?.clone();
        let ready = |one: &&k8s_openapi::api::discovery::v1::Endpoint| {
            one.conditions.as_ref().and_then(|one| one.ready) != Some(false)
        };
        let nodes = slice.endpoints.iter().flatten().filter(ready);
        let nodes = nodes.filter_map(|one| one.node_name.clone()).collect();
        Some(Self { service: (slice.namespace().unwrap_or_default(), service), nodes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(nodes: &[&str], service: &str, slice: &str) -> World {
        fn list<K: ResourceExt, V: Read<K>>(known: &mut Known<V>, objects: Vec<K>) {
            known.hear(Event::Init);
            objects.into_iter().for_each(|one| known.hear(Event::InitApply(one)));
            known.hear(Event::InitDone);
        }
        let read = |text: &str| serde_saphyr::from_str::<Node>(text).unwrap();
        let node = |name: &&str| {
            read(&format!(
                "{{metadata: {{name: {name}}}, status: {{conditions: [{{type: Ready, status: 'True'}}]}}}}"
            ))
        };
        let mut world = World::default();
        assert_eq!(world.led_by("a"), None);
        list(&mut world.nodes, nodes.iter().map(node).collect());
        list(&mut world.services, vec![serde_saphyr::from_str::<Service>(service).unwrap()]);
        list(&mut world.slices, vec![serde_saphyr::from_str::<EndpointSlice>(slice).unwrap()]);
        world
    }

    /// A Service with a hundred addresses.
    fn service(policy: &str) -> String {
        let all: Vec<String> = (0..100).map(|n| format!("{{ip: 192.0.2.{n}}}")).collect();
        format!(
            "{{metadata: {{name: web, namespace: shop}}, spec: {{type: LoadBalancer, \
             externalTrafficPolicy: {policy}}}, status: {{loadBalancer: {{ingress: [{}]}}}}}}",
            all.join(", ")
        )
    }

    const SLICE: &str = "{metadata: {name: web-1, namespace: shop, labels: \
                         {kubernetes.io/service-name: web}}, addressType: IPv4, endpoints: \
                         [{addresses: [10.0.0.1], nodeName: b}, {addresses: [10.0.0.2], nodeName: c, \
                         conditions: {ready: false}}]}";

    #[test]
    fn each_address_falls_to_one_node_and_only_a_dead_one_s_move() {
        let nodes = ["a", "b", "c"];
        let three = world(&nodes, &service("Cluster"), SLICE);
        let shares: Vec<_> = nodes.iter().map(|node| three.led_by(node).unwrap()).collect();
        assert_eq!(shares.iter().map(BTreeSet::len).sum::<usize>(), 100);
        assert_eq!(shares.iter().flatten().collect::<BTreeSet<_>>().len(), 100);
        assert!(shares.iter().all(|share| share.len() > 15), "{shares:?}");
        let two = world(&["a", "b"], &service("Cluster"), SLICE);
        for (node, before) in nodes.iter().zip(&shares).take(2) {
            assert!(two.led_by(node).unwrap().is_superset(before));
        }
    }

    #[test]
    fn with_a_local_policy_only_nodes_that_serve_it_answer() {
        let world = world(&["a", "b", "c"], &service("Local"), SLICE);
        let shares = ["a", "b", "c"].map(|node| world.led_by(node).unwrap().len());
        assert_eq!(shares, [0, 100, 0]);
    }

    #[test]
    fn a_node_that_is_not_ready_answers_for_nothing() {
        let mut world = world(&["a", "b"], &service("Cluster"), SLICE);
        let ill = "{metadata: {name: b}, status: {conditions: [{type: Ready, status: Unknown}]}}";
        world.nodes.hear(Event::Apply(serde_saphyr::from_str::<Node>(ill).unwrap()));
        assert_eq!(world.led_by("b").unwrap().len(), 0);
        assert_eq!(world.led_by("a").unwrap().len(), 100);
    }
}
