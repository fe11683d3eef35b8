//! Programs that stay pinned, so that the next start need not have them verified again.
//!
//! ```text
//!  programs/connect4-89abcdef01234567    a digest of the object that it is of and of the maps that it uses
//! ```
//!
//! Verifying takes most of a start. A start with the same object on the same maps takes the programs as
//! they are; one with another looks for other names, loads its own and removes what it did not look for.
//! Maps that are not pinned are the programs' own: nobody else reads them.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::{fs, io};

use aya::Ebpf;
use aya::maps::Map;
use aya::programs::{
    CgroupSock, CgroupSockAddr, CgroupSockAddrAttachType, CgroupSockAttachType, Program,
    ProgramError, SchedClassifier,
};
use tracing::debug;

use crate::pins::{self, MAPS, Pins, ReplaceError};

/// The programs of one object on certain maps.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pins: Pins,
    digest: u64,
}

impl Kept {
    /// Those of an object, once its maps are there. `None` if a reader of the programs' log would read that
    /// of other programs.
    pub(crate) fn of(object: &[u8], ebpf: &Ebpf, pins: &Pins) -> Option<Self> {
        if ebpf.map("AYA_LOGS").is_some() {
            return None;
        }
        let maps: Option<Vec<u32>> = MAPS.iter().map(|name| id(ebpf.map(name)?)).collect();
        Some(Self { pins: pins.clone(), digest: digest(object, &maps?) })
    }

    /// Has a program loaded, by a former process if that left one.
    pub(crate) fn load(
        this: Option<&Self>,
        name: &str,
        program: &mut Program,
    ) -> Result<(), ProgramError> {
        let left = this.and_then(|kept| kept.left(name, program));
        if let Some(left) = left {
            debug!(name, "the program of a former process");
            *program = left;
            return Ok(());
        }
        match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            _ => Err(ProgramError::UnexpectedProgramType),
        }
    }

    /// What a former process left of a program that is like this one.
    fn left(&self, name: &str, like: &Program) -> Option<Program> {
        let path = self.path(name);
        let left = match like {
            Program::CgroupSockAddr(_) => {
                CgroupSockAddr::from_pin(path, attach_type(name)?).map(Program::CgroupSockAddr)
            }
            Program::CgroupSock(_) => CgroupSock::from_pin(path, CgroupSockAttachType::SockRelease)
                .map(Program::CgroupSock),
            Program::SchedClassifier(_) => {
                SchedClassifier::from_pin(path).map(Program::SchedClassifier)
            }
            _ => return None,
        };
        left.ok()
    }

    /// Pins a loaded program for the next start. What cannot be pinned is loaded again then.
    pub(crate) fn keep(&self, name: &str, program: &mut Program) {
        let path = self.path(name);
        if path.exists() {
            return;
        }
        let made = fs::create_dir_all(self.pins.programs_dir());
        let kept = made
            .map_err(ReplaceError::Rename)
            .and_then(|()| pins::replace(&path, |fresh| program.pin(fresh)));
        if let Err(error) = kept {
            debug!(name, ?error, "the next start loads the program again");
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.pins.programs_dir().join(format!("{name}{}", self.suffix()))
    }

    fn suffix(&self) -> String {
        format!("-{:016x}", self.digest)
    }
}

/// Removes the pins of all programs but these.
pub(crate) fn sweep(kept: Option<&Kept>, pins: &Pins) -> io::Result<()> {
    let suffix = kept.map(Kept::suffix);
    for path in pins::entries(&pins.programs_dir()) {
        let is_kept =
            suffix.as_ref().is_some_and(|suffix| path.to_string_lossy().ends_with(suffix));
        if !is_kept {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// By what pins of the same programs are told.
fn digest(object: &[u8], maps: &[u32]) -> u64 {
    // Another version of it has the programs loaded once more.
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    maps.hash(&mut hasher);
    hasher.finish()
}

/// The number of a map that is pinned, which no other has as long as the machine is up.
fn id(map: &Map) -> Option<u32> {
    let (Map::Array(data)
    | Map::HashMap(data)
    | Map::LpmTrie(data)
    | Map::LruHashMap(data)
    | Map::PerCpuArray(data)
    | Map::PerCpuHashMap(data)
    | Map::PerCpuLruHashMap(data)
    | Map::RingBuf(data)
    | Map::SkStorage(data)
    | Map::SockHash(data)
    | Map::SockMap(data)) = map
    else {
        return None;
    };
    data.info().ok().map(|info| info.id())
}

/// Where the program of that name is attached: what its pin does not tell.
fn attach_type(name: &str) -> Option<CgroupSockAddrAttachType> {
    Some(match name {
        "bind4" => CgroupSockAddrAttachType::Bind4,
        "bind6" => CgroupSockAddrAttachType::Bind6,
        "connect4" => CgroupSockAddrAttachType::Connect4,
        "connect6" => CgroupSockAddrAttachType::Connect6,
        "getpeername4" => CgroupSockAddrAttachType::GetPeerName4,
        "getpeername6" => CgroupSockAddrAttachType::GetPeerName6,
        "recvmsg4" => CgroupSockAddrAttachType::UDPRecvMsg4,
        "recvmsg6" => CgroupSockAddrAttachType::UDPRecvMsg6,
        "sendmsg4" => CgroupSockAddrAttachType::UDPSendMsg4,
        "sendmsg6" => CgroupSockAddrAttachType::UDPSendMsg6,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::digest;

    #[test]
    fn programs_of_another_object_or_of_other_maps_are_not_taken_for_these() {
        let these = digest(b"object", &[7, 8]);
        assert_eq!(these, digest(b"object", &[7, 8]));
        assert_ne!(these, digest(b"objecu", &[7, 8]));
        assert_ne!(these, digest(b"object", &[7, 9]));
        assert_ne!(these, digest(b"object", &[8, 7]));
    }
}
