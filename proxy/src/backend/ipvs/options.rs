//! What kube-proxy's flags of this mode say.

use std::time::Duration;

use ipnet::IpNet;

/// What the flags `--ipvs-…` say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How endpoints are chosen; one of [`SCHEDULERS`].
    pub scheduler: String,
    /// Virtual services at these addresses are somebody else's, whatever device has them.
    pub exclude_cidrs: Vec<IpNet>,
    /// A device answers for its own addresses only.
    pub strict_arp: bool,
    /// For how long connections are kept: of TCP, after FIN, of UDP. Zero leaves it as it is.
    pub timeouts: [Duration; 3],
    /// `--masquerade-all`.
    pub masquerade_all: bool,
}

/// What `--ipvs-scheduler` may be.
pub const SCHEDULERS: [&str; 11] =
    ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh"];

impl Default for Options {
    fn default() -> Self {
        Self {
            scheduler: "rr".to_owned(),
            exclude_cidrs: Vec::new(),
            strict_arp: false,
            timeouts: [Duration::ZERO; 3],
            masquerade_all: false,
        }
    }
}
