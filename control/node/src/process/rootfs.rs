//! What a container sees: its root, its volumes, `/proc`, `/dev` and `/sys`.
//!
//! The old root stays reachable below the new one until everything is mounted, so that no symbolic
//! link in an image leads out of it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::pivot_root;

use super::files::{Launch, Root};
use crate::built_in::{HOST_DIRS, HOST_FILES, OWN_DIRS, OWN_FILES, PROGRAM, SHARED_DIRS};
use crate::runtime::Mount;

/// Where the old root is, for a moment.
const OLD: &str = "/.host";

/// The devices that every container has.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Files of `/proc` that tell or do more than a container may.
const MASKED: [&str; 5] =
    ["/proc/kcore", "/proc/keys", "/proc/sysrq-trigger", "/proc/timer_list", "/proc/sched_debug"];

/// Makes the container's root out of `dir` and moves there.
pub(super) fn enter(dir: &Path, launch: &Launch) -> io::Result<()> {
    let spec = &launch.spec;
    let own = own_program(launch)?;
    // Not before: whoever shares the namespace would be moved along.
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What the host mounts and unmounts is followed; what is mounted here stays here.
    change("/", MsFlags::MS_REC | MsFlags::MS_SLAVE)?;
    let root = dir.join("root");
    make_root(dir, &root, launch)?;
    let old = root.join(OLD.trim_start_matches('/'));
    fs::create_dir_all(&old)?;
    pivot_root(&root, &old)?;
    std::env::set_current_dir("/")?;
    if launch.root == Root::BuiltIn {
        fill_built_in(&own)?;
    }
    mount_system(spec.security.privileged)?;
    let mut mounts: Vec<&Mount> = spec.mounts.iter().chain([&spec.last_words]).collect();
    mounts.sort_by_key(|mount| mount.target.components().count());
    for mount in mounts {
        bind(&below_old(&mount.source), &mount.target, mount.read_only)?;
    }
    if !spec.working_dir.is_empty() && !Path::new(&spec.working_dir).exists() {
        fs::create_dir_all(&spec.working_dir)?;
    }
    umount2(OLD, MntFlags::MNT_DETACH)?;
    fs::remove_dir(OLD)?;
    if spec.security.read_only_root {
        remount_read_only(Path::new("/"))?;
    }
    Ok(())
}

/// This program's own file, for the image that consists of it.
fn own_program(launch: &Launch) -> io::Result<PathBuf> {
    match launch.root {
        Root::BuiltIn => fs::read_link("/proc/self/exe"),
        Root::Dir(_) => Ok(PathBuf::new()),
    }
}

fn make_root(dir: &Path, root: &Path, launch: &Launch) -> io::Result<()> {
    fs::create_dir_all(root)?;
    match &launch.root {
        Root::BuiltIn => {
            mount(Some("tmpfs"), root, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
        }
        Root::Dir(image) => {
            let (upper, work) = (dir.join("upper"), dir.join("work"));
            fs::create_dir_all(&upper)?;
            fs::create_dir_all(&work)?;
            let layers = format!(
                "lowerdir={},upperdir={},workdir={}",
                escaped(image),
                escaped(&upper),
                escaped(&work)
            );
            mount(Some("overlay"), root, Some("overlay"), MsFlags::empty(), Some(layers.as_str()))
                .map_err(|errno| io::Error::other(format!("mounting an overlay: {errno}")))?;
        }
    }
    Ok(())
}

/// Overlay's options have commas and colons between them.
fn escaped(path: &Path) -> String {
    let path = path.to_string_lossy().replace('\\', "\\\\");
    path.replace(',', "\\,").replace(':', "\\:")
}

/// A root of little: this program, the host's programs, and the files that everybody expects.
fn fill_built_in(own: &Path) -> io::Result<()> {
    for dir in OWN_DIRS {
        fs::create_dir_all(dir)?;
    }
    for dir in SHARED_DIRS {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o1777))?;
    }
    for dir in HOST_DIRS.into_iter().map(Path::new) {
        let host = below_old(dir);
        if let Ok(target) = fs::read_link(&host) {
            symlink(target, dir)?;
        } else if host.is_dir() {
            bind(&host, dir, true)?;
        }
    }
    for file in HOST_FILES.into_iter().map(Path::new) {
        if below_old(file).is_file() {
            fs::copy(below_old(file), file)?;
        }
    }
    for (file, text) in OWN_FILES {
        fs::write(file, text)?;
    }
    bind(&below_old(own), Path::new(PROGRAM), true)
}

fn mount_system(privileged: bool) -> io::Result<()> {
    for dir in ["/proc", "/dev", "/sys"] {
        fs::create_dir_all(dir)?;
    }
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), safe, None::<&str>)?;
    let options = Some("mode=755,size=65536k");
    mount(Some("tmpfs"), "/dev", Some("tmpfs"), MsFlags::MS_NOSUID, options)?;
    for device in DEVICES {
        let device = Path::new("/dev").join(device);
        bind(&below_old(&device), &device, false)?;
    }
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("pts/ptmx", "/dev/ptmx"),
    ] {
        symlink(target, link)?;
    }
    for dir in ["/dev/pts", "/dev/shm"] {
        fs::create_dir(dir)?;
    }
    let options = Some("newinstance,ptmxmode=0666,mode=620");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("devpts"), "/dev/pts", Some("devpts"), flags, options)?;
    mount(Some("shm"), "/dev/shm", Some("tmpfs"), safe, Some("mode=1777,size=65536k"))?;
    let read_only = if privileged { safe } else { safe | MsFlags::MS_RDONLY };
    mount(Some("sysfs"), "/sys", Some("sysfs"), read_only, None::<&str>)?;
    if !privileged {
        for file in MASKED.into_iter().map(Path::new).filter(|file| file.exists()) {
            bind(Path::new("/dev/null"), file, true)?;
        }
        bind(Path::new("/proc/sys"), Path::new("/proc/sys"), true)?;
    }
    Ok(())
}

/// Makes `source` visible at `target`, which is made if it is not there.
fn bind(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    let doing = |error: io::Error| {
        let shown = source.strip_prefix(OLD).unwrap_or(source).display();
        let message = format!("mounting {shown} at {}: {error}", target.display());
        io::Error::new(error.kind(), message)
    };
    let made = || -> io::Result<()> {
        if target.components().any(|part| part == Component::ParentDir) {
            return Err(io::Error::other("the path has .. in it"));
        }
        if source.is_dir() {
            fs::create_dir_all(target)?;
        } else if !target.exists() {
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent)?;
            }
            File::create(target)?;
        }
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(source), target, None::<&str>, flags, None::<&str>)?;
        if read_only { remount_read_only(target) } else { Ok(()) }
    };
    made().map_err(doing)
}

/// Flags that the mount below has cannot be taken from it here, so they are kept.
fn remount_read_only(target: &Path) -> io::Result<()> {
    let base = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    let kept = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME;
    let remount = |flags| mount(None::<&str>, target, None::<&str>, flags, None::<&str>);
    match remount(base) {
        Err(nix::errno::Errno::EPERM) => Ok(remount(base | kept)?),
        done => Ok(done?),
    }
}

fn change(target: &str, flags: MsFlags) -> io::Result<()> {
    Ok(mount(None::<&str>, target, None::<&str>, flags, None::<&str>)?)
}

fn below_old(path: &Path) -> PathBuf {
    Path::new(OLD).join(path.strip_prefix("/").unwrap_or(path))
}
