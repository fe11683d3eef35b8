//! Ports that the kernel must not give to sockets that ask for any: node ports, lest a connection of
//! the node's own look like an answer from one. They are kept in `ip_local_reserved_ports` beside
//! those that the administrator put there, and are taken out again by `fairlead cleanup`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use abi::flow::{SNAT_FIRST, SNAT_MASK};

use crate::plan::{At, Plan};

/// The kernel's list, of the network namespace of whoever opens it.
const SYSCTL: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Every node port of a plan. `[pure]`
pub fn node_ports(plan: &Plan) -> BTreeSet<u16> {
    plan.frontends
        .keys()
        .filter(|key| matches!(key.at, At::NodePort(_)))
        .map(|key| key.port)
        .collect()
}

/// The source ports of connections that the packet programs masquerade. `[pure]`
pub fn masquerade_ports() -> RangeInclusive<u16> {
    SNAT_FIRST..=SNAT_FIRST + SNAT_MASK
}

/// The source ports that netfilter may take for what it masquerades on our account: none of those above,
/// so that a node that changes its mode has no two connections with the same ends.
pub const NETFILTER_PORTS: RangeInclusive<u16> = 1024..=SNAT_FIRST - 1;

/// The file in which is noted what was put into the kernel's list, beside a status file.
pub fn file_of(status: &Path) -> PathBuf {
    status.with_extension("ports")
}

/// Makes the kernel's list hold these ports, besides those that others put there. Says whether that
/// was news.
///
/// # Errors
/// The list, or the note of what was put there, cannot be read or written.
pub fn reserve(file: &Path, ports: &BTreeSet<u16>) -> io::Result<bool> {
    reserve_in(Path::new(SYSCTL), file, ports)
}

/// Takes out of the kernel's list what was put there.
///
/// # Errors
/// As [`reserve`].
pub fn release(file: &Path) -> io::Result<()> {
    if !file.exists() {
        return Ok(());
    }
    reserve(file, &BTreeSet::new())?;
    fs::remove_file(file)
}

fn reserve_in(sysctl: &Path, file: &Path, ports: &BTreeSet<u16>) -> io::Result<bool> {
    let listed = parse(&fs::read_to_string(sysctl)?);
    let noted = match fs::read_to_string(file) {
        Ok(text) => parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
        Err(error) => return Err(error),
    };
    let others: BTreeSet<u16> = listed.difference(&noted).copied().collect();
    let ours: BTreeSet<u16> = ports.difference(&others).copied().collect();
    let desired = others.union(&ours).copied().collect();
    if listed == desired && noted == ours {
        return Ok(false);
    }
    // Whoever dies in between has noted at least what it put there.
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(file, print(&noted.union(&ours).copied().collect()))?;
    // An empty write is none; the kernel takes a line for an empty list.
    fs::write(sysctl, format!("{}\n", print(&desired)))?;
    fs::write(file, print(&ours))?;
    Ok(true)
}

/// Ports and ranges as the kernel prints them: `8080,9148-9150`.
fn parse(text: &str) -> BTreeSet<u16> {
    text.trim()
        .split(',')
        .filter_map(|part| match part.split_once('-') {
            Some((first, last)) => Some(first.parse().ok()?..=last.parse().ok()?),
            None => part.parse().ok().map(|port| port..=port),
        })
        .flatten()
        .collect()
}

fn print(ports: &BTreeSet<u16>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*port) => *last = *port,
            _ => ranges.push((*port, *port)),
        }
    }
    let mut text = String::new();
    for (first, last) in ranges {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a string cannot fail.
        _ = if first == last {
            write!(text, "{comma}{first}")
        } else {
            write!(text, "{comma}{first}-{last}")
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_printed_as_they_are_read() {
        for text in ["", "8080", "8080,9148-9150", "1-2,65534-65535"] {
            assert_eq!(print(&parse(text)), text);
        }
        assert_eq!(parse("9-8,x,7\n"), BTreeSet::from([7]));
    }

    #[test]
    fn what_others_reserved_stays_and_ours_goes_again() {
        let dir = std::env::temp_dir().join(format!("fairlead-reserved-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (sysctl, file) = (dir.join("sysctl"), dir.join("noted"));
        fs::write(&sysctl, "30000,40000-40001\n").unwrap();
        let list = || fs::read_to_string(&sysctl).unwrap();

        assert!(reserve_in(&sysctl, &file, &BTreeSet::from([30_000, 30_080])).unwrap());
        assert_eq!(list(), "30000,30080,40000-40001\n");
        assert!(!reserve_in(&sysctl, &file, &BTreeSet::from([30_000, 30_080])).unwrap());
        // An administrator adds one meanwhile.
        fs::write(&sysctl, "5,30000,30080,40000-40001\n").unwrap();
        assert!(reserve_in(&sysctl, &file, &BTreeSet::from([30_081])).unwrap());
        assert_eq!(list(), "5,30000,30081,40000-40001\n");
        assert!(reserve_in(&sysctl, &file, &BTreeSet::new()).unwrap());
        assert_eq!(list(), "5,30000,40000-40001\n");
        fs::remove_dir_all(&dir).unwrap();
    }
}
