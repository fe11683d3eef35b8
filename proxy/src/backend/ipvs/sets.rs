//! The kernel's sets, by the program `ipset`.

use std::collections::HashMap;
use std::fmt::Write as _;

use model::name::Family;

use super::item::{Key, Set, Value};
use crate::backend::program::{Program, ProgramError};

const IPSET: Program = Program { name: "ipset", package: "ipset" };

/// Entries, and what is said about them.
pub(super) type Entries = HashMap<Key, Value>;

/// Makes the sets that there are not.
pub(super) fn create(families: &[Family]) -> Result<(), ProgramError> {
    let mut text = String::new();
    for family in families {
        for set in Set::ALL {
            let inet = match family {
                Family::V4 => "inet",
                Family::V6 => "inet6",
            };
            let (name, kind, more) = (set.name(*family), set.kind(), set.options());
            // Writing to a string does not fail.
            _ = writeln!(text, "create {name} {kind} family {inet}{more}");
        }
    }
    restore(&text)
}

/// All entries of our sets.
pub(super) fn read() -> Result<Entries, ProgramError> {
    let text = IPSET.run(&["save"], &[])?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// Adds entries, or gives them another mark.
pub(super) fn add<'k>(
    entries: impl Iterator<Item = (&'k Key, &'k Value)>,
) -> Result<(), ProgramError> {
    let mut text = String::new();
    for (key, value) in entries {
        let Key::Entry(set, family, entry) = key else { continue };
        _ = write!(text, "add {} {}", set.name(*family), by_number(entry));
        if let Value::Mark(mark) = value {
            _ = write!(text, " skbmark {mark:#x}/0xffffffff");
        }
        text.push('\n');
    }
    restore(&text)
}

/// Removes entries.
pub(super) fn remove<'k>(entries: impl Iterator<Item = &'k Key>) -> Result<(), ProgramError> {
    let mut text = String::new();
    for key in entries {
        let Key::Entry(set, family, entry) = key else { continue };
        _ = writeln!(text, "del {} {}", set.name(*family), by_number(entry));
    }
    restore(&text)
}

/// Removes the sets. Nothing may ask them any more.
pub(super) fn destroy() -> Result<(), ProgramError> {
    let listed = IPSET.run(&["list", "-name"], &[])?;
    let listed = String::from_utf8_lossy(&listed);
    let mut text = String::new();
    for name in listed.lines().filter(|name| set_of(name).is_some()) {
        _ = writeln!(text, "destroy {name}");
    }
    restore(&text)
}

/// Whether there is any of our sets.
pub(super) fn are_there() -> bool {
    let listed = IPSET.run(&["list", "-name"], &[]).unwrap_or_default();
    String::from_utf8_lossy(&listed).lines().any(|name| set_of(name).is_some())
}

fn restore(text: &str) -> Result<(), ProgramError> {
    if text.is_empty() {
        return Ok(());
    }
    IPSET.run(&["-exist", "restore"], text.as_bytes()).map(drop)
}

/// Protocols, by the numbers that `ipset` knows wherever there is no `/etc/protocols`.
const PROTOCOLS: [(&str, &str); 3] = [(",tcp:", ",6:"), (",udp:", ",17:"), (",sctp:", ",132:")];

fn by_number(entry: &str) -> String {
    PROTOCOLS.iter().fold(entry.to_owned(), |it, (name, number)| it.replacen(name, number, 1))
}

fn by_name(entry: &str) -> String {
    PROTOCOLS.iter().fold(entry.to_owned(), |it, (name, number)| it.replacen(number, name, 1))
}

fn set_of(name: &str) -> Option<(Set, Family)> {
    let mut all = Family::ALL.into_iter().flat_map(|it| Set::ALL.map(|set| (set, it)));
    all.find(|(set, family)| set.name(*family) == name)
}

fn parse(text: &str) -> Entries {
    let names: HashMap<String, (Set, Family)> = Family::ALL
        .into_iter()
        .flat_map(|family| Set::ALL.map(|set| (set.name(family), (set, family))))
        .collect();
    let entry = |line: &str| {
        let mut words = line.strip_prefix("add ")?.split_whitespace();
        let (set, family) = *names.get(words.next()?)?;
        let key = Key::Entry(set, family, by_name(words.next()?));
        if !set.has_marks() {
            return Some((key, Value::There));
        }
        let mark = words.skip_while(|word| *word != "skbmark").nth(1).unwrap_or_default();
        let mark = mark.split('/').next()?.trim_start_matches("0x");
        Some((key, Value::Mark(u32::from_str_radix(mark, 16).unwrap_or_default())))
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_written_by_number() {
        assert_eq!(by_number("fd00::1,udp:53,fd00:1::/64"), "fd00::1,17:53,fd00:1::/64");
        assert_eq!(by_name("10.96.0.10,132:6"), "10.96.0.10,sctp:6");
    }

    #[test]
    fn what_ipset_prints_is_read() {
        let text = "create KUBE-CLUSTER-IP hash:ip,port family inet hashsize 1024 maxelem 65536\n\
                    add KUBE-CLUSTER-IP 10.96.0.10,tcp:80\n\
                    add KUBE-6-LOAD-BALANCER-SOURCE-CID fd00::1,17:53,fd00:1::/64\n\
                    add KUBE-ROUTE-POD 10.96.0.10,tcp:80 skbmark 0x21001\n\
                    add mine 10.0.0.1\n";
        let entry = |set, family, text: &str| Key::Entry(set, family, text.to_owned());
        let expected = Entries::from([
            (entry(Set::ClusterIp, Family::V4, "10.96.0.10,tcp:80"), Value::There),
            (entry(Set::SourceCidr, Family::V6, "fd00::1,udp:53,fd00:1::/64"), Value::There),
            (entry(Set::RoutePod, Family::V4, "10.96.0.10,tcp:80"), Value::Mark(0x21001)),
        ]);
        assert_eq!(parse(text), expected);
    }
}
