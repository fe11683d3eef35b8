//! What a container's processes may do: capabilities and user.

use std::io;

use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities,
};

use crate::runtime::Security;

/// What containers may by default, as every runtime has it.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Takes away what a container may not, for ever; then becomes its user.
pub(super) fn drop_to(security: &Security) -> io::Result<()> {
    let keep = allowed(security)?;
    for (_, one) in CapabilitySet::all().iter_names() {
        if !keep.contains(one) {
            match remove_capability_from_bounding_set(one) {
                // A capability that this kernel does not know.
                Err(rustix::io::Errno::INVAL) => {}
                removed => removed?,
            }
        }
    }
    let groups: Vec<Gid> = security.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups)?;
    setgid(Gid::from_raw(security.group.unwrap_or(0)))?;
    setuid(Uid::from_raw(security.user.unwrap_or(0)))?;
    if security.user.unwrap_or(0) == 0 {
        let had = capabilities(None)?;
        let kept = had.permitted & keep;
        set_capabilities(
            None,
            CapabilitySets {
                effective: kept,
                permitted: kept,
                inheritable: CapabilitySet::empty(),
            },
        )?;
    }
    if security.no_new_privileges {
        nix::sys::prctl::set_no_new_privs()?;
    }
    Ok(())
}

fn allowed(security: &Security) -> io::Result<CapabilitySet> {
    if security.privileged {
        return Ok(CapabilitySet::all());
    }
    let all = |names: &[String]| names.iter().any(|name| name == "ALL");
    let mut set = CapabilitySet::empty();
    if all(&security.add) {
        set = CapabilitySet::all();
    } else if !all(&security.drop) {
        for name in DEFAULT {
            set |= named(name)?;
        }
    }
    for name in security.drop.iter().filter(|name| *name != "ALL") {
        set &= !named(name)?;
    }
    for name in security.add.iter().filter(|name| *name != "ALL") {
        set |= named(name)?;
    }
    Ok(set)
}

fn named(name: &str) -> io::Result<CapabilitySet> {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    CapabilitySet::from_name(name)
        .ok_or_else(|| io::Error::other(format!("unknown capability to add or drop: {name:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(add: &[&str], drop: &[&str]) -> CapabilitySet {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        allowed(&Security { add: names(add), drop: names(drop), ..Security::default() }).unwrap()
    }

    #[test]
    fn capabilities_are_the_default_less_dropped_and_added() {
        assert!(with(&[], &[]).contains(CapabilitySet::NET_RAW));
        assert!(!with(&[], &[]).contains(CapabilitySet::SYS_ADMIN));
        assert_eq!(with(&["NET_ADMIN"], &["ALL"]), CapabilitySet::NET_ADMIN);
        assert!(!with(&[], &["CAP_NET_RAW"]).contains(CapabilitySet::NET_RAW));
        let unknown = Security { add: vec!["FLY".into()], ..Security::default() };
        assert!(allowed(&unknown).unwrap_err().to_string().contains("FLY"));
    }
}
