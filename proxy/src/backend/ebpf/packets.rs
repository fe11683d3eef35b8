//! The packet programs at the devices of this node, and the connections that they found.

use std::collections::BTreeSet;
use std::net::IpAddr;

use abi::flow::{Record, Tuple};
use load::MapError;
use load::devices::{Devices, Port};
use load::flows::{Flows, Lifetimes};
use load::pinned::Tables;
use tracing::{debug, info, warn};

use super::usage::Ended;
use crate::by_family::ByFamily;
use crate::links;
use crate::plan::settings::PodSource;

/// The packet side of the dataplane. Nothing is attached before it is in charge.
#[derive(Debug, Default)]
pub struct Packets {
    in_charge: Option<(Devices, Flows)>,
    /// Where connections that have ended are counted.
    tables: Option<Tables>,
    lifetimes: Lifetimes,
    pods: ByFamily<Option<PodSource>>,
    /// What was warned of last, lest it be told again and again.
    told: BTreeSet<String>,
}

impl Packets {
    /// Takes charge: attaches the programs.
    pub(super) fn take_charge(&mut self, devices: Devices, flows: Flows, tables: Option<Tables>) {
        self.in_charge = Some((devices, flows));
        self.tables = tables;
        self.refresh();
        self.trust_marks();
    }

    /// Lets programs leave alone what is not marked, now that connections are. Where another version's
    /// program could not be replaced, it goes on opening connections without a mark.
    fn trust_marks(&self) {
        let Some((_, flows)) = &self.in_charge else { return };
        if !self.told.is_empty() {
            return;
        }
        match flows.mark() {
            Ok(()) => flows.trust_marks(),
            Err(error) => warn!("cannot mark connections, all packets are looked up: {error}"),
        }
    }

    /// Whether it has.
    pub(super) const fn is_in_charge(&self) -> bool {
        self.in_charge.is_some()
    }

    /// For how long connections are remembered.
    pub const fn set_lifetimes(&mut self, lifetimes: Lifetimes) {
        self.lifetimes = lifetimes;
    }

    /// How pods are told from other sources.
    pub(super) fn set_pods(&mut self, pods: &ByFamily<Option<PodSource>>) {
        if self.pods != *pods {
            self.pods = pods.clone();
            self.refresh();
        }
    }

    /// Attaches the programs to what devices there are now, and lets those go that are not.
    pub fn refresh(&mut self) {
        let Some((devices, _)) = &mut self.in_charge else { return };
        let ports = match links::ports() {
            Ok(ports) => ports,
            Err(error) => {
                warn!("cannot read the node's devices: {error}");
                return;
            }
        };
        let ports: Vec<Port> = ports
            .into_iter()
            .map(|(port, above)| with_pods(port, above.as_deref(), &self.pods))
            .collect();
        let before = devices.n_served();
        let failures: BTreeSet<String> = match devices.serve(&ports) {
            Ok(()) => BTreeSet::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        };
        for failure in failures.difference(&self.told) {
            warn!("{failure}; Services are not reached through it");
        }
        self.told = failures;
        if devices.n_served() != before {
            info!(n = devices.n_served(), "packets are translated at the node's devices");
        }
    }

    /// Serves those devices again that are served no more because of somebody else; says which.
    pub(super) fn repair(&mut self) -> Option<String> {
        let Some((devices, _)) = &mut self.in_charge else { return None };
        let lost = devices.lost();
        if lost.is_empty() {
            return None;
        }
        self.refresh();
        // One that is gone is nobody's doing.
        let (devices, _) = self.in_charge.as_ref()?;
        let there: Vec<u32> = lost.into_iter().filter(|index| devices.serves(*index)).collect();
        (!there.is_empty()).then(|| format!("the programs at the devices {there:?}"))
    }

    /// Leaves these connections to netfilter, unless they were opened here meanwhile. Says how many.
    pub(super) fn leave(&mut self, flows: &[(Tuple, Record)]) -> Result<usize, MapError> {
        let Some((_, known)) = &mut self.in_charge else { return Ok(0) };
        let mut n = 0;
        for (sent, record) in flows {
            n += usize::from(known.add(sent, *record)?);
        }
        Ok(n)
    }

    /// Removes connections that have ended.
    pub fn collect(&mut self) {
        let lifetimes = self.lifetimes;
        self.remove(|flows, last| {
            flows.collect(&lifetimes, last).map(|collected| debug!(?collected, "connections"))
        });
    }

    /// Removes closed connections of clients whose sockets are translated from now on. One may get the
    /// ports of a closed one, whose answers bear the name of its Service.
    pub fn forget_closed(&mut self, clients: &BTreeSet<IpAddr>) {
        self.remove(|flows, last| {
            flows.forget_closed(clients, last).map(|n| debug!(n, "closed connections of clients"))
        });
    }

    fn remove(
        &mut self,
        remove: impl FnOnce(&mut Flows, &mut dyn FnMut(&Record)) -> Result<(), MapError>,
    ) {
        let Some((_, flows)) = &mut self.in_charge else { return };
        let mut ended = self.tables.as_ref().map(Ended::new);
        let mut last = |flow: &Record| {
            if let Some(ended) = &mut ended {
                ended.add(flow);
            }
        };
        if let Err(error) = remove(flows, &mut last) {
            warn!("cannot remove connections that have ended: {error}");
        }
    }
}

fn with_pods(port: Port, above: Option<&str>, pods: &ByFamily<Option<PodSource>>) -> Port {
    let are = |source: &Option<PodSource>| match source {
        Some(PodSource::Interface(name)) => **name == *port.name || above == Some(&**name),
        Some(PodSource::InterfacePrefix(prefix)) => port.name.starts_with(&**prefix),
        Some(PodSource::Cidr(_)) | None => false,
    };
    let pods = [are(&pods.v4), are(&pods.v6)];
    Port { pods, ..port }
}
