//! How large the programs are, and what the kernel's verifier goes through for each: to see growth.

use aya::Ebpf;
use aya::programs::Program;

use crate::object;
use crate::test_run::{TestRunError, failed};

/// What a loaded program is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    /// Its name.
    pub name: String,
    /// Its instructions, with all functions that it calls.
    pub instructions: u32,
    /// The instructions that the verifier went through, each as often as a state came to it.
    pub verified: u32,
}

/// Loads every program once that this kernel is given, and says what it is.
///
/// # Errors
/// The kernel refuses one.
pub fn sizes() -> Result<Vec<Size>, TestRunError> {
    const INSTRUCTION: u32 = 8;
    let mut ebpf = Ebpf::load(&object::read(None)?)?;
    let mut sizes = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            _ => continue,
        }
        .map_err(|source| failed(name, source))?;
        let info = program.info().map_err(|source| failed(name, source))?;
        sizes.push(Size {
            name: name.to_owned(),
            instructions: info.size_translated().unwrap_or(0) / INSTRUCTION,
            verified: info.verified_instruction_count().unwrap_or(0),
        });
    }
    sizes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sizes)
}
