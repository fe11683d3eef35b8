//! The images that consist of this program, and what of the host's they show to look around with.

/// An image that is this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BuiltIn {
    pub(crate) name: &'static str,
    pub(crate) entrypoint: &'static [&'static str],
    pub(crate) command: &'static [&'static str],
}

/// Where such a container finds this program.
pub(crate) const PROGRAM: &str = "/fairlead";

/// All of them; their tag is `latest`.
pub(crate) const ALL: [BuiltIn; 3] = [
    BuiltIn { name: "fairlead/hello", entrypoint: &[PROGRAM, "hello"], command: &[] },
    BuiltIn { name: "fairlead/pause", entrypoint: &[PROGRAM, "pod-process", "idle"], command: &[] },
    // A place to ask from: idle, unless told what to run.
    BuiltIn {
        name: "fairlead/client",
        entrypoint: &[],
        command: &[PROGRAM, "pod-process", "idle"],
    },
];

/// Programs of the host's, and what they need.
pub(crate) const HOST_DIRS: [&str; 8] = [
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/usr",
    "/etc/ssl",
    "/etc/alternatives",
    "/etc/ca-certificates",
];
/// Files of the host's that these containers have copies of.
pub(crate) const HOST_FILES: [&str; 4] =
    ["/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/services", "/etc/protocols"];
/// Directories that everybody expects.
pub(crate) const OWN_DIRS: [&str; 8] =
    ["/etc", "/proc", "/dev", "/sys", "/run", "/var/tmp", "/tmp", "/root"];
/// Those that everybody may write to.
pub(crate) const SHARED_DIRS: [&str; 2] = ["/tmp", "/var/tmp"];
/// Files that everybody expects.
pub(crate) const OWN_FILES: [(&str, &str); 3] = [
    ("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"),
    ("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
];
