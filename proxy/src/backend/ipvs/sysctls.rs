//! What IPVS needs of the node's network besides itself.

use std::fs;
use std::io;

use tracing::warn;

/// Without these nothing works: connections are netfilter's as well, so that they can be
/// masqueraded, and packets are forwarded.
const NEEDED: [(&str, &str); 2] = [("ipv4/vs/conntrack", "1"), ("ipv4/ip_forward", "1")];

/// Connections to endpoints that have gone are given up at once, and so are clients' memories.
const USEFUL: [(&str, &str); 3] = [
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv4/vs/expire_nodest_conn", "1"),
    ("ipv4/vs/expire_quiescent_template", "1"),
];

/// A device answers for its own addresses only: not for those of `kube-ipvs0`.
const STRICT_ARP: [(&str, &str); 2] =
    [("ipv4/conf/all/arp_ignore", "1"), ("ipv4/conf/all/arp_announce", "2")];

/// Sets them.
pub(super) fn set(strict_arp: bool) -> io::Result<()> {
    for (name, value) in NEEDED {
        write(name, value)?;
    }
    let strict = STRICT_ARP.into_iter().filter(|_| strict_arp);
    for (name, value) in USEFUL.into_iter().chain(strict) {
        if let Err(error) = write(name, value) {
            warn!("{error}; let the proxy write it");
        }
    }
    Ok(())
}

fn write(name: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/{name}");
    if fs::read_to_string(&path).is_ok_and(|held| held.trim() == value) {
        return Ok(());
    }
    let cannot = |error| io::Error::other(format!("cannot write {value} to {path}: {error}"));
    fs::write(&path, value).map_err(cannot)
}
