//! Attaches the packet programs to network devices (tcx, or clsact), and keeps `DEVICES`.
//!
//! A pinned link outlives the process, and goes with its device; the next process finds it by the
//! device's index and puts its program behind it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use abi::addr::Addr;
use abi::device::Device;
use abi::node::Node;
use aya::maps::{Array, HashMap, MapData};
use thiserror::Error;

use crate::clsact;
use crate::pins::{self, Pins};
use crate::probe;
use crate::standing::{self, Link};
use crate::sys::{self, Hook};

/// A network device by which packets enter or leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether its packets have an Ethernet header.
    pub ethernet: bool,
    /// What masqueraded packets that leave by it have as their source, one a family; the node's own
    /// address where there is none.
    pub addresses: Vec<IpAddr>,
    /// Whether what arrives by it is from pods, IPv4 and IPv6.
    pub pods: [bool; 2],
}

/// Why a device is not served.
#[derive(Debug, Error)]
pub enum AttachError {
    /// A map cannot be written.
    #[error("cannot write what is known of device {name}: {source}")]
    Map {
        /// The device.
        name: String,
        /// Why.
        source: aya::maps::MapError,
    },
    /// The kernel refuses.
    #[error("cannot attach {program} to device {name}: {source}")]
    Attach {
        /// The device.
        name: String,
        /// The program.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The pins cannot be read or removed.
    #[error("cannot use {path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The devices that are served.
pub struct Devices {
    pub(crate) programs: [OwnedFd; 4],
    pub(crate) known: HashMap<MapData, u32, Device>,
    pub(crate) node: Array<MapData, Node>,
    pub(crate) pins: Pins,
    pub(crate) by: Means,
    /// What each device had when it was attached to last.
    pub(crate) attached: BTreeMap<u32, (Port, Attachment)>,
}

/// By what programs are attached to devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// Links (Linux 6.6).
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

impl Means {
    /// The best that this kernel has.
    pub fn of_this_kernel() -> Self {
        if probe::has_tcx() { Self::Tcx } else { Self::Clsact }
    }
}

/// What stands in the kernel for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    known: Option<Device>,
    links: [Option<Link>; 2],
    /// The programs of filters.
    filters: [Option<u32>; 2],
}

/// The programs that go with [`Devices::programs`].
pub(crate) const PROGRAMS: [&str; 4] = ["tc_ingress", "tc_egress", "tc_ingress_l3", "tc_egress_l3"];

impl Devices {
    /// Serves these devices and no others. What is served already stays so at every moment.
    ///
    /// # Errors
    /// One for each device that is not served; the others are.
    pub fn serve(&mut self, ports: &[Port]) -> Result<(), Vec<AttachError>> {
        let mut errors = Vec::new();
        for port in ports {
            if self.attached.get(&port.index).is_some_and(|(attached, _)| attached == port) {
                continue;
            }
            match self.serve_one(port) {
                Ok(()) => {
                    let attachment = self.attachment(port.index);
                    self.attached.insert(port.index, (port.clone(), attachment));
                }
                Err(error) => errors.push(error),
            }
        }
        if let Err(error) = self.leave_all_but(ports) {
            errors.push(error);
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// The devices that are served no more, though [`Devices::serve`] did: somebody else changed what
    /// it left. It serves them anew.
    pub fn lost(&mut self) -> Vec<u32> {
        let is_lost = |(index, (_, was)): (&u32, &(Port, Attachment))| {
            (self.attachment(*index) != *was).then_some(*index)
        };
        let lost: Vec<u32> = self.attached.iter().filter_map(is_lost).collect();
        for index in &lost {
            self.attached.remove(index);
        }
        lost
    }

    /// Whether a device is served.
    pub fn serves(&self, index: u32) -> bool {
        self.attached.contains_key(&index)
    }

    fn attachment(&self, index: u32) -> Attachment {
        const HOOKS: [Hook; 2] = [Hook::Ingress, Hook::Egress];
        let link = |hook: Hook| standing::link(&self.pins.device(index, hook.name()));
        // One that no pin tells of would stay for ever.
        let filter = |hook: Hook| {
            let is_pinned = self.pins.filter(index, hook.name()).exists();
            if is_pinned { clsact::program(index, hook) } else { None }
        };
        Attachment {
            known: self.known.get(&index, 0).ok(),
            links: HOOKS.map(link),
            filters: if self.by == Means::Clsact { HOOKS.map(filter) } else { [None; 2] },
        }
    }

    /// How many devices are served.
    pub fn n_served(&self) -> usize {
        self.attached.len()
    }

    fn serve_one(&mut self, port: &Port) -> Result<(), AttachError> {
        let node = self.node.get(&0, 0).unwrap_or_default();
        let address = |v6: bool, node: Addr| {
            let own = port.addresses.iter().find(|address| address.is_ipv6() == v6);
            own.map_or(node, |own| Addr::from(*own))
        };
        let value = Device {
            v4: address(false, node.ip_v4),
            v6: address(true, node.ip_v6),
            flags: port.flags(),
            pad: 0,
        };
        self.known
            .insert(port.index, value, 0)
            .map_err(|source| AttachError::Map { name: port.name.clone(), source })?;
        let [ingress, egress, ingress_l3, egress_l3] = &self.programs;
        let (ingress, egress) =
            if port.ethernet { (ingress, egress) } else { (ingress_l3, egress_l3) };
        // What was translated when it arrived must find the way back when it leaves.
        self.attach(port, Hook::Egress, egress)?;
        self.attach(port, Hook::Ingress, ingress)
    }

    fn attach(&self, port: &Port, hook: Hook, program: &OwnedFd) -> Result<(), AttachError> {
        let (link, filter) =
            (self.pins.device(port.index, hook.name()), self.pins.filter(port.index, hook.name()));
        let attached = fs::create_dir_all(self.pins.devices_dir()).and_then(|()| match self.by {
            Means::Tcx => Self::attach_link(port, hook, program, &link),
            Means::Clsact => clsact::attach(program, &port.name, hook, &filter),
        });
        // What a former process attached by the other means goes only now.
        let other = if self.by == Means::Tcx { filter } else { link };
        attached
            .and_then(
                |()| {
                    if other.exists() { pins::remove_device(port.index, &other) } else { Ok(()) }
                },
            )
            .map_err(|source| AttachError::Attach {
                name: port.name.clone(),
                program: hook.name(),
                source,
            })
    }

    fn attach_link(port: &Port, hook: Hook, program: &OwnedFd, path: &Path) -> io::Result<()> {
        if let Ok(link) = sys::object_get(path) {
            if sys::tcx_ifindex(link.as_fd()).is_ok_and(|index| index == port.index) {
                return sys::link_update(link.as_fd(), program.as_fd());
            }
            // The device of that index has gone, and another has its index now.
            fs::remove_file(path)?;
        }
        let link = sys::tcx_attach(program.as_fd(), port.index, hook)?;
        sys::object_pin(link.as_fd(), path)
    }

    /// Removes the links and filters of devices that are gone or not to be served.
    fn leave_all_but(&mut self, ports: &[Port]) -> Result<(), AttachError> {
        let kept: Vec<u32> = ports.iter().map(|port| port.index).collect();
        self.attached.retain(|index, _| kept.contains(index));
        for (index, path) in self.pins.devices() {
            if !kept.contains(&index) {
                pins::remove_device(index, &path)
                    .map_err(|source| AttachError::Io { path, source })?;
            }
        }
        let gone: Vec<u32> = self
            .known
            .keys()
            .filter_map(Result::ok)
            .filter(|index| !kept.contains(index))
            .collect();
        for index in gone {
            // It may be gone already.
            _ = self.known.remove(&index);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Devices").field("attached", &self.attached).finish_non_exhaustive()
    }
}

impl Port {
    const fn flags(&self) -> u32 {
        let [v4, v6] = self.pods;
        (if v4 { Device::PODS_V4 } else { 0 }) | (if v6 { Device::PODS_V6 } else { 0 })
    }
}
