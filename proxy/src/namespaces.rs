//! The network namespaces of this machine: found by way of their processes and names.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One file for each of them: this process's own first.
pub(crate) fn all() -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        })
        .map(|path| path.join("ns/net"));
    let named = fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()));
    let mut seen = BTreeSet::new();
    std::iter::once(PathBuf::from("/proc/self/ns/net"))
        .chain(processes)
        .chain(named)
        .filter(|path| fs::metadata(path).is_ok_and(|data| seen.insert((data.dev(), data.ino()))))
        .collect()
}

/// The addresses that a namespace has, from proc(5): of a process's directory `net`.
pub(crate) fn addresses(net: &Path) -> BTreeSet<IpAddr> {
    let read = |file| fs::read_to_string(net.join(file)).unwrap_or_default();
    v4_addresses(&read("fib_trie")).chain(v6_addresses(&read("if_inet6"))).collect()
}

/// Local addresses of a `fib_trie`: a `/32 host LOCAL` line stands under its address.
fn v4_addresses(fib_trie: &str) -> impl Iterator<Item = IpAddr> {
    let lines: Vec<&str> = fib_trie.lines().map(str::trim).collect();
    let found: Vec<IpAddr> = lines
        .iter()
        .zip(lines.iter().skip(1))
        .filter(|(_, below)| below.starts_with("/32 host LOCAL"))
        .filter_map(|(line, _)| line.strip_prefix("|-- ")?.parse::<Ipv4Addr>().ok())
        .map(IpAddr::from)
        .collect();
    found.into_iter()
}

/// The first column of `if_inet6`: 32 hexadecimal digits.
fn v6_addresses(if_inet6: &str) -> impl Iterator<Item = IpAddr> {
    if_inet6.lines().filter_map(|line| {
        let digits = line.split(' ').next()?;
        let bits = u128::from_str_radix(digits, 16).ok()?;
        (digits.len() == 32).then(|| IpAddr::from(Ipv6Addr::from_bits(bits)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_proc() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.0.0\n        /24 link UNICAST\n\
                    Local:\n     |-- 10.1.0.2\n        /32 host LOCAL\n     |-- 10.1.0.255\n        \
                    /32 link BROADCAST\n";
        let found: Vec<_> = v4_addresses(trie).collect();
        assert_eq!(found, [IpAddr::from([10, 1, 0, 2])]);

        let v6 = "fd000000000000000000000000000002 02 40 00 80     eth0\nbroken\n";
        let found: Vec<_> = v6_addresses(v6).collect();
        assert_eq!(found, ["fd00::2".parse::<IpAddr>().unwrap()]);
    }
}
