//! Runs the packet programs by hand (`BPF_PROG_TEST_RUN`), on maps of their own: for tests and
//! benches. Nothing is pinned or attached.

use std::time::Duration;

pub use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use thiserror::Error;

use crate::object::{self, ReadObjectError};

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
        let object = object::read(None)?;
        let mut ebpf = EbpfLoader::new().load(&object)?;
        for (name, program) in ebpf.programs_mut() {
            if let aya::programs::Program::SchedClassifier(program) = program {
                program.load().map_err(|source| failed(name, source))?;
            }
        }
        Ok(Self { ebpf, out: vec![0; 1 << 16] })
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
        let mut context = [0; CONTEXT];
        // The loopback device, which every namespace has.
        for (at, value) in [(INGRESS_IFINDEX, came_by), (IFINDEX, 1)] {
            if let Some(field) = context.get_mut(at..at + 4) {
                field.copy_from_slice(&value.to_ne_bytes());
            }
        }
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

    /// An array.
    ///
    /// # Errors
    /// As above.
    pub fn array<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>, TestRunError> {
        Array::try_from(self.map(name)?)
            .map_err(|source| TestRunError::Map { name: name.to_owned(), source })
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

fn failed(name: &str, source: ProgramError) -> TestRunError {
    TestRunError::Program { name: name.to_owned(), source: Box::new(source) }
}
