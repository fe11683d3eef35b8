//! The program that holds a sandbox's namespaces: 69 bytes of machine code that wait for SIGTERM.
//!
//! A sandbox costs a page or two in this way, and the image needs no compiler and no library.

/// A program for this machine, as an ELF file; none where nobody has written one.
pub(super) fn program() -> Option<Vec<u8>> {
    (std::env::consts::ARCH == "x86_64").then(|| elf(0x3e, &X86_64))
}

/// What the first process of a PID namespace blocks is kept for it, and not thrown away.
const X86_64: [u8; 69] = [
    0xb8, 14, 0, 0, 0, // mov eax, SYS_rt_sigprocmask
    0x31, 0xff, // xor edi, edi          SIG_BLOCK
    0x48, 0x8d, 0x35, 47, 0, 0, 0, // lea rsi, [set]
    0x31, 0xd2, // xor edx, edx
    0x41, 0xba, 8, 0, 0, 0, // mov r10d, 8           the set's size
    0x0f, 0x05, // syscall
    0xb8, 128, 0, 0, 0, // wait: mov eax, SYS_rt_sigtimedwait
    0x48, 0x8d, 0x3d, 25, 0, 0, 0, // lea rdi, [set]
    0x31, 0xf6, // xor esi, esi          whose it was does not matter
    0x31, 0xd2, // xor edx, edx          nor how long it takes
    0x41, 0xba, 8, 0, 0, 0, // mov r10d, 8
    0x0f, 0x05, // syscall
    0x85, 0xc0, // test eax, eax
    0x78, 0xe4, // js wait               interrupted
    0xb8, 60, 0, 0, 0, // mov eax, SYS_exit
    0x31, 0xff, // xor edi, edi
    0x0f, 0x05, // syscall
    0x02, 0x40, 0, 0, 0, 0, 0, 0, // set: SIGINT and SIGTERM
];

/// Where the program is loaded, headers and all.
const BASE: u64 = 0x40_0000;
const HEADER: u16 = 64;
const PROGRAM_HEADER: u16 = 56;

/// An ELF file of one segment that is read and executed, entered at its code's first byte.
fn elf(machine: u16, code: &[u8]) -> Vec<u8> {
    let headers = HEADER + PROGRAM_HEADER;
    let size = u64::from(headers) + code.len() as u64;
    let mut file = Vec::new();
    // 64 bits, little-endian, version 1.
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // An executable.
    file.extend_from_slice(&2_u16.to_le_bytes());
    file.extend_from_slice(&machine.to_le_bytes());
    file.extend_from_slice(&1_u32.to_le_bytes());
    // Entry, the place of the program headers, and no section headers.
    for word in [BASE + u64::from(headers), u64::from(HEADER), 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&0_u32.to_le_bytes());
    for half in [HEADER, PROGRAM_HEADER, 1, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    // PT_LOAD; PF_R and PF_X.
    for word in [1_u32, 5] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    // Offset, the two addresses, the two sizes, alignment.
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(code);
    file
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn it_waits_until_it_is_told_to_end() {
        let Some(program) = program() else { return };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pause");
        fs::write(&file, program).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        #[expect(clippy::disallowed_methods, reason = "the program is to be run")]
        let mut child = Command::new(&file).spawn().unwrap();
        let syscall = format!("/proc/{}/syscall", child.id());
        // SYS_rt_sigtimedwait, before which it has blocked both signals.
        while !fs::read_to_string(&syscall).unwrap().starts_with("128 ") {
            assert_eq!(child.try_wait().unwrap(), None);
            std::thread::yield_now();
        }
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}
