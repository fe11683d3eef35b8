//! The few bpf(2) commands that aya does not offer, and one socket option.

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;

/// Attach type of `connect4`, from `enum bpf_attach_type`.
const BPF_CGROUP_INET4_CONNECT: u32 = 10;

/// Opens what is pinned at a path.
pub(crate) fn object_get(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Attr { pathname: path.as_ptr().addr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: `attr` and the string that it points to outlive the call; BPF_OBJ_GET takes these.
    let fd = unsafe { bpf(BPF_OBJ_GET, &attr) }?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts another program behind a link. Every call of the hook runs the old program or the new one.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let attr = Attr {
        link_fd: link.as_raw_fd().cast_unsigned(),
        new_prog_fd: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: `attr` outlives the call; BPF_LINK_UPDATE takes these.
    unsafe { bpf(BPF_LINK_UPDATE, &attr) }.map(drop)
}

/// Waits until every program that runs now has returned.
pub(crate) fn wait_for_programs() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    // SAFETY: takes numbers only. It returns when a grace period of RCU has gone by, under which programs
    // run.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What a program is run on by hand, and where it leaves what it made of it.
pub(crate) struct TestRun<'a> {
    /// The packet before.
    pub(crate) packet: &'a [u8],
    /// Room for the packet after.
    pub(crate) out: &'a mut [u8],
    /// `struct __sk_buff`.
    pub(crate) context: &'a [u8],
    /// As if a device had summed the packet: the kernel compares its sum afterwards.
    pub(crate) summed: bool,
}

/// Runs a program by hand, once; what it returned, and how long the packet is after it.
pub(crate) fn test_run(program: BorrowedFd<'_>, run: &mut TestRun<'_>) -> io::Result<(i32, usize)> {
    const BPF_F_TEST_SKB_CHECKSUM_COMPLETE: u32 = 1 << 2;
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        ctx_size_in: u32,
        ctx_size_out: u32,
        ctx_in: u64,
        ctx_out: u64,
        flags: u32,
        cpu: u32,
        batch_size: u32,
        pad: u32,
    }
    let size = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(io::Error::other);
    let mut attr = Attr {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        retval: 0,
        data_size_in: size(run.packet)?,
        data_size_out: size(run.out)?,
        data_in: run.packet.as_ptr().addr() as u64,
        data_out: run.out.as_mut_ptr().addr() as u64,
        repeat: 1,
        duration: 0,
        ctx_size_in: size(run.context)?,
        ctx_size_out: 0,
        ctx_in: run.context.as_ptr().addr() as u64,
        ctx_out: 0,
        flags: if run.summed { BPF_F_TEST_SKB_CHECKSUM_COMPLETE } else { 0 },
        cpu: 0,
        batch_size: 0,
        pad: 0,
    };
    // SAFETY: `attr` and the slices outlive the call; BPF_PROG_TEST_RUN takes these, writes at most
    // `data_size_out` bytes to `data_out`, and its results to `attr`.
    unsafe { bpf_mut(BPF_PROG_TEST_RUN, &mut attr) }?;
    Ok((attr.retval.cast_signed(), attr.data_size_out as usize))
}

/// What a look into a hash map found.
pub(crate) struct Found {
    /// How many entries.
    pub(crate) n: usize,
    /// The bucket to go on with, if those were not all.
    pub(crate) next: Option<u32>,
}

/// Copies the entries of a hash map's buckets from one on, as many buckets as there is room for. `ENOSPC`
/// if there is none for the first.
pub(crate) fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    bucket: Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<Found> {
    #[repr(C)]
    struct Attr {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map_fd: u32,
        elem_flags: u64,
        flags: u64,
    }
    let mut next = 0u32;
    let count = u32::try_from(keys.len().min(values.len())).map_err(io::Error::other)?;
    let mut attr = Attr {
        in_batch: bucket.as_ref().map_or(0, |bucket| std::ptr::from_ref(bucket).addr() as u64),
        out_batch: (&raw mut next).addr() as u64,
        keys: keys.as_mut_ptr().addr() as u64,
        values: values.as_mut_ptr().addr() as u64,
        count,
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: `attr` and all that it points to outlive the call; BPF_MAP_LOOKUP_BATCH takes these, writes
    // at most `count` keys and values, any bytes of which are valid, and its results to `attr` and `next`.
    let looked = unsafe { bpf_mut(BPF_MAP_LOOKUP_BATCH, &mut attr) };
    let n = attr.count as usize;
    match looked {
        Ok(_) => Ok(Found { n, next: Some(next) }),
        // There are no more buckets.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Found { n, next: None }),
        Err(error) => Err(error),
    }
}

/// Where a packet program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// On what arrives.
    Ingress,
    /// On what leaves.
    Egress,
}

impl Hook {
    /// The name of the program, and of its pin.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "tc_ingress",
            Self::Egress => "tc_egress",
        }
    }

    /// The one whose program has that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Ingress, Self::Egress].into_iter().find(|hook| hook.name() == name)
    }

    /// From `enum bpf_attach_type`.
    const fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }
}

/// Attaches a program to a device, behind those that are there (kernel 6.6).
pub(crate) fn tcx_attach(program: BorrowedFd<'_>, ifindex: u32, hook: Hook) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        target_ifindex: u32,
        attach_type: u32,
        flags: u32,
        relative_fd: u32,
        pad: u32,
        expected_revision: u64,
    }
    let attr = Attr {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_ifindex: ifindex,
        attach_type: hook.attach_type(),
        flags: 0,
        relative_fd: 0,
        pad: 0,
        expected_revision: 0,
    };
    // SAFETY: `attr` outlives the call; BPF_LINK_CREATE takes these.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &attr) }?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The device of a tcx link; zero when it has gone.
pub(crate) fn tcx_ifindex(link: BorrowedFd<'_>) -> io::Result<u32> {
    // `struct bpf_link_info` has the device where a cgroup link has the low half of its cgroup.
    #[expect(clippy::cast_possible_truncation, reason = "the low half")]
    link_info(link).map(|info| info.cgroup_id as u32)
}

/// Pins an object at a path.
pub(crate) fn object_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Attr {
        pathname: path.as_ptr().addr() as u64,
        bpf_fd: object.as_raw_fd().cast_unsigned(),
        file_flags: 0,
    };
    // SAFETY: `attr` and the string that it points to outlive the call; BPF_OBJ_PIN takes these.
    unsafe { bpf(BPF_OBJ_PIN, &attr) }.map(drop)
}

/// What the kernel tells of a cgroup link: `struct bpf_link_info` up to its cgroup part.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct CgroupLinkInfo {
    link_type: u32,
    id: u32,
    /// The program that the link runs.
    pub(crate) program_id: u32,
    pad: u32,
    /// The inode number of the cgroup's directory.
    pub(crate) cgroup_id: u64,
    attach_type: u32,
    pad2: u32,
}

/// Asks for it.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<CgroupLinkInfo> {
    #[repr(C)]
    struct Attr {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    // SAFETY: integers only; zero is a valid value of each.
    let mut info: CgroupLinkInfo = unsafe { zeroed() };
    let attr = Attr {
        bpf_fd: link.as_raw_fd().cast_unsigned(),
        info_len: u32::try_from(size_of::<CgroupLinkInfo>()).unwrap_or(u32::MAX),
        info: (&raw mut info).addr() as u64,
    };
    // SAFETY: `attr` and `info` outlive the call, and the kernel writes at most `info_len` bytes.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) }?;
    Ok(info)
}

/// The programs that run on `connect()` in a cgroup by attachment to it (not to its parents).
pub(crate) fn connect4_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    #[repr(C)]
    struct Attr {
        target_fd: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
        pad: u32,
    }
    // BPF_CGROUP_MAX_PROGS of the kernel.
    let mut ids = vec![0u32; 64];
    let attr = Attr {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_INET4_CONNECT,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr().addr() as u64,
        prog_cnt: 64,
        pad: 0,
    };
    // SAFETY: `attr` and `ids` outlive the call, and the kernel writes at most `prog_cnt` words.
    unsafe { bpf(BPF_PROG_QUERY, &attr) }?;
    ids.retain(|id| *id != 0);
    Ok(ids)
}

/// The cookie of the network namespace in which a socket was made.
///
/// # Errors
/// The kernel is older than 5.14.
pub fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    cookie(socket, libc::SO_NETNS_COOKIE)
}

/// The cookie of a socket, by which programs know it.
///
/// # Errors
/// The kernel refuses.
pub fn socket_cookie(socket: impl AsFd) -> io::Result<u64> {
    cookie(socket, libc::SO_COOKIE)
}

fn cookie(socket: impl AsFd, option: libc::c_int) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or(8);
    // SAFETY: `cookie` has room for the eight bytes that `length` promises.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if done == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// # Safety
/// `attr` is what the command takes, and what it points to is valid for the call.
unsafe fn bpf<A>(command: libc::c_long, attr: &A) -> io::Result<RawFd> {
    // SAFETY: the caller's promise.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<A>()) };
    done(result)
}

/// # Safety
/// As above, and the command may write to `attr`.
unsafe fn bpf_mut<A>(command: libc::c_long, attr: &mut A) -> io::Result<RawFd> {
    // SAFETY: the caller's promise.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    done(result)
}

fn done(result: libc::c_long) -> io::Result<RawFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}
