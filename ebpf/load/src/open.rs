//! Opens the dataplane: programs loaded, a former process's maps adopted, nothing attached yet.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use abi::addr::Addr;
use abi::address::{AddressValue, PrefixFlags, RangeKey};
use abi::counter::Counter;
use abi::dns::OwnServer;
use abi::frontend::{FrontendKey, FrontendValue};
use abi::node::Node;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapType};
use aya::programs::ProgramError;
use aya::{Ebpf, EbpfError, EbpfLoader};
use thiserror::Error;

use crate::activate::{self, ActivateError};
use crate::counts::Counts;
use crate::devices::{self, Devices, Means};
use crate::dns::OwnDns;
use crate::endpoints::Endpoints;
use crate::filter::Filter;
use crate::flows::Flows;
use crate::kept::Kept;
use crate::left_alone::LeftAlone;
use crate::object::{self, ReadObjectError};
use crate::pins::{LockError, MAPS, Pins, WRITTEN, WriterLock};
use crate::probe::{self, ProbeError};
use crate::slots::Slots;
use crate::standing::Standing;
use crate::{mountinfo, sys};

/// What to open, and where.
#[derive(Debug, Clone)]
pub struct Config {
    /// A directory on bpffs, this node's own.
    pub bpffs: PathBuf,
    /// The cgroup v2 directory above every pod; the hierarchy's root when absent.
    pub cgroup: Option<PathBuf>,
    /// An object file in the place of the embedded one.
    pub object: Option<PathBuf>,
    /// How much fits.
    pub capacity: Capacity,
    /// By what packet programs are attached.
    pub means: Means,
}

impl Config {
    /// The cgroup that is named, or the root of the hierarchy.
    ///
    /// # Errors
    /// None is named, and no hierarchy is mounted.
    pub fn cgroup_dir(&self) -> Result<PathBuf, ProbeError> {
        self.cgroup.clone().or_else(mountinfo::cgroup2_mount).ok_or(ProbeError::NoCgroup2)
    }
}

/// The reader of the programs' log, in a build that has one.
pub type Log = aya_log::EbpfLogger<&'static dyn log::Log>;

/// `ADDRESSES`.
pub type Addresses = HashMap<MapData, Addr, AddressValue>;

/// How many entries the maps have that user space writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Frontends (an address, port and protocol of a Service).
    pub frontends: u32,
    /// Endpoints over all sets, those included that are being replaced.
    pub endpoints: u32,
    /// Connections that the packet programs remember, once their clients have proved that they
    /// exist.
    pub flows: u32,
}

impl Default for Capacity {
    /// 65,536 frontends and 524,288 endpoints: about 70 MiB of kernel memory.
    fn default() -> Self {
        Self { frontends: 65_536, endpoints: 524_288, flows: 131_072 }
    }
}

/// The maps of connections, which grow as connections come.
const GROWN: [&str; 2] = ["FLOWS", "NAMES"];

impl Capacity {
    /// How many entries a map gets; `None` for one whose size is fixed.
    fn of(self, map: &str) -> Option<u32> {
        match map {
            "FRONTENDS" | "SLOTS" | "SERVICE_COUNTS" => Some(self.frontends),
            "ENDPOINTS" | "ENDPOINT_COUNTS" => Some(self.endpoints),
            "FLOWS" => Some(self.flows),
            "NAMES" => self.flows.checked_mul(2),
            // Another version may count other things.
            "COUNTERS" => u32::try_from(Counter::ALL.len()).ok(),
            _ => None,
        }
    }
}

/// A loaded dataplane. Dropping it leaves everything as it is in the kernel, and removes what was
/// never activated.
#[derive(Debug)]
pub struct Dataplane {
    ebpf: Ebpf,
    kept: Option<Kept>,
    /// `SLOTS`.
    pub slots: Slots,
    /// `ENDPOINTS`.
    pub endpoints: Endpoints,
    /// `ENDPOINT_COUNTS` and `SERVICE_COUNTS`.
    pub counts: Counts,
    /// `FILTER`. Addresses and ranges are marked before they are written to any other map.
    pub filter: Filter,
    pins: Pins,
    cgroup: PathBuf,
    means: Means,
    adopted: bool,
    lock: WriterLock,
    /// What was pinned when this became active.
    activated: Option<Standing>,
}

/// Why a dataplane cannot be opened. Nothing was attached.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The machine lacks something.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// Another writer, or an unusable directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// There is no object.
    #[error(transparent)]
    Object(#[from] ReadObjectError),
    /// Another Fairlead, with a bpffs directory of its own, serves this cgroup.
    #[error(
        "another fairlead process is attached to cgroup {cgroup} and pins elsewhere; \
         find it (bpftool cgroup show {cgroup}), and end it with its own `fairlead cleanup`",
        cgroup = cgroup.display()
    )]
    Foreign {
        /// The cgroup.
        cgroup: PathBuf,
    },
    /// The object was refused.
    #[error("cannot load the eBPF object: {0}")]
    Load(#[source] EbpfError),
    /// A program was refused.
    #[error("the kernel refuses the eBPF program {name}: {source}")]
    Program {
        /// Its name.
        name: String,
        /// The verifier's words.
        source: ProgramError,
    },
    /// A map is not as expected.
    #[error("cannot use the eBPF map {name}: {source}")]
    Map {
        /// Its name.
        name: &'static str,
        /// Why.
        source: MapError,
    },
    /// A map's memory cannot be mapped, or a directory is in the way.
    #[error("cannot use {what}: {source}")]
    Io {
        /// What was being used.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

impl Dataplane {
    /// Opens the dataplane of a node.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing is attached, pinned or left behind then.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        probe::privilege_and_kernel()?;
        let cgroup = config.cgroup_dir()?;
        probe::cgroup2(&cgroup)?;
        probe::bpffs(&config.bpffs)?;
        let object = object::read(config.object.as_deref())?;

        let pins = Pins::new(&config.bpffs);
        let lock = pins.lock()?;
        let opened = refuse_foreign(&cgroup, &pins)
            .and_then(|()| Self::load(&object, config, pins.clone(), cgroup, lock));
        if opened.is_err() {
            pins.remove_if_empty();
        }
        opened
    }

    fn load(
        object: &[u8],
        config: &Config,
        pins: Pins,
        cgroup: PathBuf,
        lock: WriterLock,
    ) -> Result<Self, OpenError> {
        pins.sweep()
            .map_err(|source| OpenError::Io { what: pins.dir().display().to_string(), source })?;
        let capacity = config.capacity;
        let reused = reusable(&pins, capacity);
        let mut loader = EbpfLoader::new();
        for name in WRITTEN {
            if let Some(max_entries) = capacity.of(name) {
                loader.map_max_entries(name, max_entries);
            }
        }
        // A former process's connections are kept, and so is the room for them.
        for name in GROWN.iter().filter(|name| !reused.contains(name)) {
            if let Some(max_entries) = capacity.of(name) {
                loader.map_max_entries(name, max_entries);
            }
        }
        for name in &reused {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf = loader.load(object).map_err(OpenError::Load)?;
        let kept = Kept::of(object, &ebpf, &pins);
        load_programs(&mut ebpf, kept.as_ref())?;

        let frontends = capacity.frontends;
        let slots = Slots::new(array(&ebpf, "SLOTS")?.fd().as_fd(), frontends);
        let endpoints = Endpoints::new(array(&ebpf, "ENDPOINTS")?.fd().as_fd(), capacity.endpoints);
        let counts = Counts::new(
            (array(&ebpf, "ENDPOINT_COUNTS")?.fd().as_fd(), capacity.endpoints),
            (array(&ebpf, "SERVICE_COUNTS")?.fd().as_fd(), frontends),
        );
        let filter = mapped("FILTER", Filter::new(array(&ebpf, "FILTER")?.fd().as_fd()))?;
        filter.begin();
        mark_all(&mut ebpf, &filter)?;
        Ok(Self {
            slots: mapped("SLOTS", slots)?,
            endpoints: mapped("ENDPOINTS", endpoints)?,
            counts: mapped("the counts", counts)?,
            filter,
            adopted: reused.contains(&"FRONTENDS"),
            ebpf,
            kept,
            pins,
            cgroup,
            means: config.means,
            lock,
            activated: None,
        })
    }

    /// Whether the maps that user space writes were left by a former process.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// The cgroup whose sockets are translated once this is active.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// `FRONTENDS`.
    ///
    /// # Errors
    /// The object has no such map.
    pub fn frontends(
        &mut self,
    ) -> Result<HashMap<&mut MapData, FrontendKey, FrontendValue>, OpenError> {
        typed(&mut self.ebpf, "FRONTENDS")
    }

    /// `RANGES`: which sources may use a slot that asks. A value says nothing.
    ///
    /// # Errors
    /// The object has no such map.
    pub fn ranges(&mut self) -> Result<LpmTrie<&mut MapData, RangeKey, u32>, OpenError> {
        typed(&mut self.ebpf, "RANGES")
    }

    /// `PREFIXES`.
    ///
    /// # Errors
    /// The object has no such map.
    pub fn prefixes(&mut self) -> Result<LpmTrie<&mut MapData, Addr, PrefixFlags>, OpenError> {
        typed(&mut self.ebpf, "PREFIXES")
    }

    /// `NODE`, of one value.
    ///
    /// # Errors
    /// The object has no such map.
    pub fn node(&mut self) -> Result<Array<&mut MapData, Node>, OpenError> {
        typed(&mut self.ebpf, "NODE")
    }

    /// `ADDRESSES`, for a writer of its own: addresses of the node come and go beside the plan.
    ///
    /// # Errors
    /// The object has no such map, or there is no descriptor left.
    pub fn addresses(&mut self) -> Result<Addresses, OpenError> {
        const NAME: &str = "ADDRESSES";
        let data = self.owned(NAME)?;
        Map::HashMap(data).try_into().map_err(|source| OpenError::Map { name: NAME, source })
    }

    /// `DNS`, `DNS_CLIENTS` and `DNS_ALIVE`, for whoever answers names on this node.
    ///
    /// # Errors
    /// The object has no such maps, or there is no descriptor left.
    pub fn own_dns(&mut self) -> Result<OwnDns, OpenError> {
        let servers = self.owned("DNS")?;
        let clients = self.owned("DNS_CLIENTS")?;
        let alive = self.owned("DNS_ALIVE")?;
        OwnDns::new(servers, clients, alive, self.filter.clone())
            .map_err(|source| OpenError::Map { name: "DNS", source })
    }

    /// `LEFT_ALONE` and `N_LEFT_ALONE`, for whoever finds the namespaces of pods.
    ///
    /// # Errors
    /// The object has no such maps, or there is no descriptor left.
    pub fn left_alone(&self) -> Result<LeftAlone, OpenError> {
        let (cookies, n) = (self.owned("LEFT_ALONE")?, self.owned("N_LEFT_ALONE")?);
        LeftAlone::new(cookies, n).map_err(|source| OpenError::Map { name: "LEFT_ALONE", source })
    }

    /// A map with a descriptor of its own.
    fn owned(&self, name: &'static str) -> Result<MapData, OpenError> {
        let Some(Map::HashMap(data) | Map::Array(data) | Map::SockMap(data) | Map::LpmTrie(data)) =
            self.ebpf.map(name)
        else {
            return Err(no_map(name));
        };
        let fd = data.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|source| OpenError::Io { what: name.to_owned(), source })?;
        MapData::from_fd(fd).map_err(|source| OpenError::Map { name, source })
    }

    /// Pins the maps and attaches the programs, or swaps them for those that a former process
    /// attached. Fill the maps before.
    ///
    /// # Errors
    /// Something cannot be pinned or attached; what this call attached is taken back.
    pub fn activate(&mut self) -> Result<(), ActivateError> {
        if !self.lock.is_of(&self.pins) {
            self.lock = self.pins.lock()?;
        }
        activate::activate(&mut self.ebpf, &self.pins, &self.cgroup, self.kept.as_ref())?;
        self.activated = Some(Standing::now(&self.pins));
        Ok(())
    }

    /// What somebody else did to the pins and links since [`Dataplane::activate`], which makes it good.
    pub fn damage(&self) -> Option<String> {
        Standing::now(&self.pins).difference(self.activated.as_ref()?)
    }

    /// The devices whose packets the programs translate; none is attached to yet. After
    /// [`Dataplane::activate`].
    ///
    /// # Errors
    /// The object lacks a program or a map, or a map is not pinned.
    pub fn devices(&mut self) -> Result<Devices, OpenError> {
        let mut programs = Vec::new();
        for name in devices::PROGRAMS {
            let failed = |source| OpenError::Program { name: name.to_owned(), source };
            let program = self.ebpf.program_mut(name).ok_or_else(|| no_map(name))?;
            let kept = self.kept.as_ref();
            Kept::load(kept, name, program).map_err(failed)?;
            if let Some(kept) = kept {
                kept.keep(name, program);
            }
            let fd = program.fd().map_err(failed)?;
            let fd = fd.as_fd().try_clone_to_owned();
            programs.push(
                fd.map_err(|source| OpenError::Io { what: format!("program {name}"), source })?,
            );
        }
        let programs = programs.try_into().map_err(|_programs| no_map("tc_ingress"))?;
        Ok(Devices {
            programs,
            known: pinned(&self.pins, "DEVICES")?,
            node: pinned(&self.pins, "NODE")?,
            pins: self.pins.clone(),
            by: self.means,
            attached: BTreeMap::new(),
        })
    }

    /// The connections that the packet programs have found. After [`Dataplane::activate`].
    ///
    /// # Errors
    /// A map is not pinned.
    pub fn flows(&self) -> Result<Flows, OpenError> {
        Ok(Flows {
            records: pinned(&self.pins, "FLOWS")?,
            new: pinned(&self.pins, "NEW_FLOWS")?,
            names: pinned(&self.pins, "NAMES")?,
            filter: self.filter.clone(),
        })
    }

    /// No new connection or send is translated from here on; answers and names of old ones are.
    ///
    /// # Errors
    /// A link cannot be removed.
    pub fn drain(&self) -> Result<(), ActivateError> {
        activate::drain(&self.pins)
    }

    /// Removes every link and map, and the directory.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn retire(&self) -> std::io::Result<()> {
        self.pins.remove_all()
    }

    /// The reader of the programs' log, in a build that has one.
    pub fn take_log(&mut self) -> Option<Log> {
        self.ebpf.map("AYA_LOGS")?;
        aya_log::EbpfLogger::init(&mut self.ebpf)
            .inspect_err(|error| tracing::warn!("no log of the eBPF programs: {error}"))
            .ok()
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.pins.remove_if_empty();
    }
}

/// Marks what a former process left in the maps, but for connections.
fn mark_all(ebpf: &mut Ebpf, filter: &Filter) -> Result<(), OpenError> {
    let frontends: HashMap<_, FrontendKey, FrontendValue> = typed(ebpf, "FRONTENDS")?;
    for key in frontends.keys() {
        let key = key.map_err(|source| OpenError::Map { name: "FRONTENDS", source })?;
        filter.mark_service(&key.addr);
    }
    let addresses: HashMap<_, Addr, AddressValue> = typed(ebpf, "ADDRESSES")?;
    for addr in addresses.keys() {
        filter.mark_service(&addr.map_err(|source| OpenError::Map { name: "ADDRESSES", source })?);
    }
    let prefixes: LpmTrie<_, Addr, PrefixFlags> = typed(ebpf, "PREFIXES")?;
    for entry in prefixes.iter() {
        let (key, flags) = entry.map_err(|source| OpenError::Map { name: "PREFIXES", source })?;
        if flags.0 & PrefixFlags::SERVICE != 0 {
            filter.mark_range(key.prefix_len(), &key.data());
        }
    }
    let servers: Array<_, OwnServer> = typed(ebpf, "DNS")?;
    for server in servers.iter() {
        let server = server.map_err(|source| OpenError::Map { name: "DNS", source })?;
        filter.mark_service(&server.service);
        filter.mark_service(&server.server);
    }
    Ok(())
}

/// The maps of a former process that may be written on.
fn reusable(pins: &Pins, capacity: Capacity) -> Vec<&'static str> {
    let fits = |name: &str| {
        let Some(max_entries) = activate::max_entries(&pins.map(name)) else { return false };
        GROWN.contains(&name) || capacity.of(name).is_none_or(|wanted| wanted == max_entries)
    };
    let all_written = WRITTEN.iter().all(|name| fits(name));
    MAPS.into_iter()
        .filter(|name| if WRITTEN.contains(name) { all_written } else { fits(name) })
        .collect()
}

/// Refuses a cgroup on which another Fairlead's programs run that this node's pins do not know.
fn refuse_foreign(cgroup: &Path, pins: &Pins) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { what: cgroup.display().to_string(), source };
    let directory = File::open(cgroup).map_err(io)?;
    let own = activate::pinned_program(pins, "connect4");
    let others = sys::connect4_programs(directory.as_fd())
        .map_err(io)?
        .into_iter()
        .filter(|id| Some(*id) != own);
    for id in others {
        if activate::is_ours(id) {
            return Err(OpenError::Foreign { cgroup: cgroup.to_owned() });
        }
    }
    Ok(())
}

/// Those for packets are loaded when they are attached.
fn load_programs(ebpf: &mut Ebpf, kept: Option<&Kept>) -> Result<(), OpenError> {
    for name in activate::programs() {
        let program = ebpf.program_mut(name).ok_or_else(|| no_map(name))?;
        Kept::load(kept, name, program)
            .map_err(|source| OpenError::Program { name: name.to_owned(), source })?;
    }
    Ok(())
}

fn mapped<T>(what: &str, result: std::io::Result<T>) -> Result<T, OpenError> {
    result.map_err(|source| OpenError::Io { what: format!("the eBPF map {what}"), source })
}

fn array<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<&'a MapData, OpenError> {
    match ebpf.map(name) {
        Some(Map::Array(data)) => Ok(data),
        _ => Err(no_map(name)),
    }
}

fn typed<'a, M>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<M, OpenError>
where
    M: TryFrom<&'a mut Map, Error = MapError>,
{
    let map = ebpf.map_mut(name).ok_or_else(|| no_map(name))?;
    M::try_from(map).map_err(|source| OpenError::Map { name, source })
}

fn pinned<M>(pins: &Pins, name: &'static str) -> Result<M, OpenError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let failed = |source| OpenError::Map { name, source };
    let data = MapData::from_pin(pins.map(name)).map_err(failed)?;
    let map = match data.info().map_err(failed)?.map_type() {
        Ok(MapType::Array) => Map::Array(data),
        _ => Map::HashMap(data),
    };
    M::try_from(map).map_err(failed)
}

fn no_map(name: &'static str) -> OpenError {
    OpenError::Map { name, source: MapError::InvalidName { name: name.to_owned() } }
}
