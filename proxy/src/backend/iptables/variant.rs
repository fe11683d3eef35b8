//! Which of iptables' two variants this node uses, and its programs.
//!
//! As kube-proxy's image does: the one in which the kubelet has its chains; else the one that has
//! more rules; else the one on nftables.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use iptables::IPTables;
use model::name::Family;

use super::read::{self, Found};
use crate::backend::program::{Program, ProgramError};

/// How long to wait for others who change the tables.
const WAIT: &str = "5";
/// How long such a wait may take.
pub(in crate::backend) const PATIENCE: Duration = Duration::from_secs(5);

/// A variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backend) enum Variant {
    /// On the kernel's xtables.
    Legacy,
    /// On nftables.
    Nft,
    /// Whatever it is that has no other name.
    Plain,
}

/// The programs of one variant and family.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend) struct Programs {
    command: &'static str,
    save: Program,
    restore: Program,
}

impl Variant {
    /// The one that this node uses. Where a variant is not installed, the other one.
    ///
    /// # Errors
    /// There is none.
    pub(in crate::backend) fn detect() -> Result<Self, ProgramError> {
        let nft = Self::Nft.found();
        let legacy = Self::Legacy.found();
        match (nft, legacy) {
            (Err(ProgramError::Run { .. }), Err(ProgramError::Run { .. })) => {
                Programs::of(Self::Plain, Family::V4).find().map(|_| Self::Plain)
            }
            (Err(ProgramError::Run { .. }), _) => Ok(Self::Legacy),
            (_, Err(ProgramError::Run { .. })) => Ok(Self::Nft),
            (nft, legacy) => Ok(choose(&nft.unwrap_or_default(), &legacy.unwrap_or_default())),
        }
    }

    /// Whether there is anything of a service proxy's in its tables.
    pub(super) fn has_some_of_ours(self) -> bool {
        let found = |family| Programs::of(self, family).find();
        self != Self::Plain
            && Family::ALL.into_iter().any(|it| found(it).is_ok_and(|it| !it.held.is_empty()))
    }

    /// What stands in its tables, of both families together.
    fn found(self) -> Result<Seen, ProgramError> {
        let mut seen = Seen::default();
        for family in Family::ALL {
            match Programs::of(self, family).find() {
                Ok(found) => {
                    seen.has_hint |= found.has_hint;
                    seen.n_rules += found.n_others + found.shape.values().sum::<usize>();
                }
                Err(error) if family == Family::V4 => return Err(error),
                // A node without IPv6.
                Err(_) => {}
            }
        }
        Ok(seen)
    }
}

/// What is seen of a variant.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    has_hint: bool,
    n_rules: usize,
}

fn choose(nft: &Seen, legacy: &Seen) -> Variant {
    let is_legacy = !nft.has_hint && (legacy.has_hint || legacy.n_rules > nft.n_rules);
    if is_legacy { Variant::Legacy } else { Variant::Nft }
}

impl Programs {
    /// Those of a variant and family.
    pub(in crate::backend) const fn of(variant: Variant, family: Family) -> Self {
        let (command, save, restore) = match (variant, family) {
            (Variant::Legacy, Family::V4) => {
                ("iptables-legacy", "iptables-legacy-save", "iptables-legacy-restore")
            }
            (Variant::Legacy, Family::V6) => {
                ("ip6tables-legacy", "ip6tables-legacy-save", "ip6tables-legacy-restore")
            }
            (Variant::Nft, Family::V4) => {
                ("iptables-nft", "iptables-nft-save", "iptables-nft-restore")
            }
            (Variant::Nft, Family::V6) => {
                ("ip6tables-nft", "ip6tables-nft-save", "ip6tables-nft-restore")
            }
            (Variant::Plain, Family::V4) => ("iptables", "iptables-save", "iptables-restore"),
            (Variant::Plain, Family::V6) => ("ip6tables", "ip6tables-save", "ip6tables-restore"),
        };
        Self {
            command,
            save: Program { name: save, package: "iptables" },
            restore: Program { name: restore, package: "iptables" },
        }
    }

    /// Reads the tables.
    pub(super) fn find(self) -> Result<Found, ProgramError> {
        Ok(read::parse(&self.save()?))
    }

    /// What stands in the tables, as `iptables-save` prints it.
    pub(in crate::backend) fn save(self) -> Result<String, ProgramError> {
        let text = self.save.run(&[], &[])?;
        Ok(String::from_utf8(text).unwrap_or_else(|error| {
            // Comments are what somebody typed.
            String::from_utf8_lossy(error.as_bytes()).into_owned()
        }))
    }

    /// Carries out a transaction; each of its tables is changed at once.
    pub(in crate::backend) fn restore(self, text: &str) -> Result<(), ProgramError> {
        self.restore_by(|pipe| pipe.write_all(text.as_bytes()))
    }

    /// The same, written piece by piece.
    pub(super) fn restore_by(
        self,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), ProgramError> {
        self.restore.talk(&["--noflush", "--wait", WAIT], write, drop)
    }

    /// For one rule or chain at a time.
    pub(in crate::backend) fn single(self) -> IPTables {
        IPTables { cmd: self.command, has_check: true, has_wait: true, is_numeric: true }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
            Self::Plain => "iptables",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_hint_decides_then_the_number_of_rules_then_nft() {
        let seen = |has_hint, n_rules| Seen { has_hint, n_rules };
        let cases = [
            (seen(true, 0), seen(true, 9), Variant::Nft),
            (seen(false, 9), seen(true, 0), Variant::Legacy),
            (seen(false, 1), seen(false, 2), Variant::Legacy),
            (seen(false, 2), seen(false, 2), Variant::Nft),
        ];
        for (nft, legacy, variant) in cases {
            assert_eq!(choose(&nft, &legacy), variant, "{nft:?} {legacy:?}");
        }
    }
}
