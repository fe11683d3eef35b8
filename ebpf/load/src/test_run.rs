//! Runs the packet programs by hand (`BPF_PROG_TEST_RUN`), on maps of their own: for tests and
//! benches. Nothing is pinned or attached.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

pub use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use thiserror::Error;

use crate::batch;
use crate::filter::Filter;
use crate::object::{self, ReadObjectError};
use crate::sys;

/// The packet programs, loaded.
#[derive(Debug)]
pub struct Bench {
    ebpf: Ebpf,
    out: Vec<u8>,
}

/// What a program made of a packet.
#[derive(Debug)]
pub struct Ran<'a> {
    /// What it returned: -1 next, 2 drop, 7 redirect.
    pub action: i32,
    /// The packet afterwards.
    pub packet: &'a [u8],
    /// How long it took, on average over all repetitions.
    pub took: Duration,
}

/// Why a program cannot be run.
#[derive(Debug, Error)]
pub enum TestRunError {
    /// There is no object.
    #[error(transparent)]
    Object(#[from] ReadObjectError),
    /// The object was refused.
    #[error("cannot load the eBPF object: {0}")]
    Load(#[from] aya::EbpfError),
    /// A program was refused, or not run.
    #[error("the eBPF program {name}: {source}")]
    Program {
        /// Its name.
        name: String,
        /// Why.
        source: Box<ProgramError>,
    },
    /// A program was not run.
    #[error("cannot run the eBPF program {name}: {source}")]
    Run {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A map is not as expected.
    #[error("the eBPF map {name}: {source}")]
    Map {
        /// Its name.
        name: String,
        /// Why.
        source: MapError,
    },
    /// The object lacks it.
    #[error("the eBPF object has no {name}")]
    Missing {
        /// The name of a program or map.
        name: String,
    },
}

/// The room for a packet that a program has made longer.
const ROOM: usize = 4096;

/// `struct __sk_buff` up to the device by which the packet came: what the test run takes as the
/// context.
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;
const CONTEXT: usize = 192;

impl Bench {
    /// Loads the embedded object.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn open() -> Result<Self, TestRunError> {
        Self::open_with(&[])
    }

    /// The same with room for so many entries in the maps of these names.
    ///
    /// # Errors
    /// As above.
    pub fn open_with(room: &[(&'static str, u32)]) -> Result<Self, TestRunError> {
        let object = object::read(None)?;
        let mut loader = EbpfLoader::new();
        for (name, entries) in room {
            loader.map_max_entries(name, *entries);
        }
        let mut ebpf = loader.load(&object)?;
        for (name, program) in ebpf.programs_mut() {
            if let aya::programs::Program::SchedClassifier(program) = program {
                program.load().map_err(|source| failed(name, source))?;
            }
        }
        let mut bench = Self { ebpf, out: vec![0; 1 << 16] };
        bench.forget_marks()?;
        Ok(bench)
    }

    /// Runs a program once, or `repeat` times on what it has made of the packet.
    ///
    /// # Errors
    /// The kernel does not run it.
    pub fn run(
        &mut self,
        name: &str,
        packet: &[u8],
        came_by: u32,
        repeat: u32,
    ) -> Result<Ran<'_>, TestRunError> {
        let program: &SchedClassifier = self
            .ebpf
            .program(name)
            .ok_or_else(|| TestRunError::Missing { name: name.to_owned() })?
            .try_into()
            .map_err(|source| failed(name, source))?;
        self.out.resize(packet.len() + ROOM, 0);
        let context = context(came_by);
        let ran = program
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut self.out),
                ctx_in: Some(&context),
                repeat,
                ..TestRunOptions::default()
            })
            .map_err(|source| failed(name, source))?;
        Ok(Ran {
            action: ran.return_value.cast_signed(),
            packet: self.out.get(..ran.data_size_out as usize).unwrap_or_default(),
            took: ran.duration,
        })
    }

    /// Runs a program on a packet that its device has summed as a whole (`CHECKSUM_COMPLETE`): the
    /// action, and the packet afterwards; `None` if the sum is not the packet's any more.
    ///
    /// # Errors
    /// As above, or the kernel is older than 6.11.
    pub fn run_summed(
        &mut self,
        name: &str,
        packet: &[u8],
        came_by: u32,
    ) -> Result<Option<(i32, &[u8])>, TestRunError> {
        let missing = || TestRunError::Missing { name: name.to_owned() };
        let program = self.ebpf.program(name).ok_or_else(missing)?;
        let fd = program.fd().map_err(|source| failed(name, source))?;
        self.out.resize(packet.len() + ROOM, 0);
        let context = context(came_by);
        let mut run = sys::TestRun { packet, out: &mut self.out, context: &context, summed: true };
        match sys::test_run(fd.as_fd(), &mut run) {
            Ok((action, len)) => Ok(Some((action, self.out.get(..len).unwrap_or_default()))),
            Err(error) if error.raw_os_error() == Some(libc::EBADMSG) => Ok(None),
            Err(source) => Err(TestRunError::Run { name: name.to_owned(), source }),
        }
    }

    /// A hash map, of whichever kind.
    ///
    /// # Errors
    /// There is none of that name and shape.
    pub fn hash<K: Pod, V: Pod>(
        &mut self,
        name: &str,
    ) -> Result<HashMap<&mut MapData, K, V>, TestRunError> {
        HashMap::try_from(self.map(name)?)
            .map_err(|source| TestRunError::Map { name: name.to_owned(), source })
    }

    /// The entries of a hash map.
    ///
    /// # Errors
    /// As above.
    pub fn entries<K: Pod + Default, V: Pod + Default>(
        &mut self,
        name: &str,
    ) -> Result<Vec<(K, V)>, TestRunError> {
        let mut entries = Vec::new();
        batch::each(&self.hash::<K, V>(name)?, |key, value| entries.push((key, value)))
            .map_err(|source| TestRunError::Map { name: name.to_owned(), source })?;
        Ok(entries)
    }

    /// An array.
    ///
    /// # Errors
    /// As above.
    pub fn array<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>, TestRunError> {
        Array::try_from(self.map(name)?)
            .map_err(|source| TestRunError::Map { name: name.to_owned(), source })
    }

    /// The marks, which nobody trusts at first.
    ///
    /// # Errors
    /// There are none.
    pub fn filter(&mut self) -> Result<Filter, TestRunError> {
        const NAME: &str = "FILTER";
        let Map::Array(data) = self.map(NAME)? else {
            return Err(TestRunError::Missing { name: NAME.to_owned() });
        };
        Filter::new(data.fd().as_fd()).map_err(|error| TestRunError::Map {
            name: NAME.to_owned(),
            source: MapError::IoError(error),
        })
    }

    /// Forgets all marks, and nobody trusts them any more.
    ///
    /// # Errors
    /// As above.
    pub fn forget_marks(&mut self) -> Result<(), TestRunError> {
        self.filter().map(|filter| filter.forget())
    }

    /// Puts a range into a trie.
    ///
    /// # Errors
    /// As above, or it is full.
    pub fn put_range<K: Pod, V: Pod>(
        &mut self,
        name: &str,
        bits: u32,
        key: K,
        value: V,
    ) -> Result<(), TestRunError> {
        let failed = |source| TestRunError::Map { name: name.to_owned(), source };
        let mut trie = aya::maps::LpmTrie::<_, K, V>::try_from(self.map(name)?).map_err(failed)?;
        trie.insert(&aya::maps::lpm_trie::Key::new(bits, key), value, 0).map_err(failed)
    }

    /// What was counted, by index, over all processors.
    ///
    /// # Errors
    /// As above.
    pub fn counters(&mut self) -> Result<Vec<u64>, TestRunError> {
        let failed = |source| TestRunError::Map { name: "COUNTERS".to_owned(), source };
        let map =
            aya::maps::PerCpuArray::<_, u64>::try_from(self.map("COUNTERS")?).map_err(failed)?;
        (0..map.len())
            .map(|index| map.get(&index, 0).map(|values| values.iter().sum()).map_err(failed))
            .collect()
    }

    /// What was counted at an index, over all processors.
    ///
    /// # Errors
    /// As above.
    pub fn counter(&mut self, index: u32) -> Result<u64, TestRunError> {
        let failed = |source| TestRunError::Map { name: "COUNTERS".to_owned(), source };
        let map =
            aya::maps::PerCpuArray::<_, u64>::try_from(self.map("COUNTERS")?).map_err(failed)?;
        map.get(&index, 0).map(|values| values.iter().sum()).map_err(failed)
    }

    /// Forgets how many answers were given this second.
    ///
    /// # Errors
    /// As above.
    pub fn forget_answers(&mut self) -> Result<(), TestRunError> {
        let failed = |source| TestRunError::Map { name: "ANSWERS".to_owned(), source };
        let mut map =
            aya::maps::PerCpuArray::<_, u64>::try_from(self.map("ANSWERS")?).map_err(failed)?;
        let values = map.get(&0, 0).map_err(failed)?;
        let none = aya::maps::PerCpuValues::try_from(vec![0; values.len()])
            .map_err(|source| failed(MapError::from(source)))?;
        map.set(0, none, 0).map_err(failed)
    }

    /// Empties a trie.
    ///
    /// # Errors
    /// As above.
    pub fn empty_trie<K: Pod, V: Pod>(&mut self, name: &str) -> Result<(), TestRunError> {
        let failed = |source| TestRunError::Map { name: name.to_owned(), source };
        let mut trie = aya::maps::LpmTrie::<_, K, V>::try_from(self.map(name)?).map_err(failed)?;
        let keys: Vec<_> = trie.keys().collect::<Result<_, _>>().map_err(failed)?;
        keys.iter().try_for_each(|key| trie.remove(key)).map_err(failed)
    }

    fn map(&mut self, name: &str) -> Result<&mut Map, TestRunError> {
        self.ebpf.map_mut(name).ok_or_else(|| TestRunError::Missing { name: name.to_owned() })
    }
}

/// The loopback device, which every namespace has, and the one by which the packet came.
fn context(came_by: u32) -> [u8; CONTEXT] {
    let mut context = [0; CONTEXT];
    for (at, value) in [(INGRESS_IFINDEX, came_by), (IFINDEX, 1)] {
        if let Some(field) = context.get_mut(at..at + 4) {
            field.copy_from_slice(&value.to_ne_bytes());
        }
    }
    context
}

pub(crate) fn failed(name: &str, source: ProgramError) -> TestRunError {
    TestRunError::Program { name: name.to_owned(), source: Box::new(source) }
}
