//! kube-proxy's flags of the IPVS mode.

use std::time::Duration;

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use ipnet::IpNet;
use proxy::backend::ipvs::{Options, SCHEDULERS};

use super::duration_or_zero;

/// Flags that only the IPVS mode heeds.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct IpvsArgs {
    /// In IPVS mode: how endpoints are chosen; where they have weights, rr is wrr and lc is wlc.
    #[arg(long, value_name = "NAME", default_value = "rr", value_parser = PossibleValuesParser::new(SCHEDULERS))]
    ipvs_scheduler: String,
    /// In IPVS mode: ranges in which virtual services are somebody else's, comma-separated.
    #[arg(long, value_name = "CIDRS", default_value = "", hide_default_value = true)]
    ipvs_exclude_cidrs: String,
    /// In IPVS mode: let each device answer ARP for its own addresses only.
    #[arg(long)]
    ipvs_strict_arp: bool,
    /// In IPVS mode: for how long an idle TCP connection is kept; 0s leaves it as it is.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration_or_zero)]
    ipvs_tcp_timeout: Duration,
    /// In IPVS mode: for how long a TCP connection is kept after FIN; 0s leaves it as it is.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration_or_zero)]
    ipvs_tcpfin_timeout: Duration,
    /// In IPVS mode: for how long an idle UDP flow is kept; 0s leaves it as it is.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration_or_zero)]
    ipvs_udp_timeout: Duration,
}

impl IpvsArgs {
    /// What they mean.
    ///
    /// # Errors
    /// A range is none.
    pub(super) fn meant(&self, masquerade_all: bool) -> anyhow::Result<Options> {
        let ranges = self.ipvs_exclude_cidrs.split(',').map(str::trim);
        let ranges = ranges.filter(|text| !text.is_empty()).map(|text| {
            text.parse::<IpNet>().with_context(|| {
                format!("--ipvs-exclude-cidrs: {text:?} is no range; write it as 10.0.0.0/8")
            })
        });
        Ok(Options {
            scheduler: self.ipvs_scheduler.clone(),
            exclude_cidrs: ranges.collect::<anyhow::Result<_>>()?,
            strict_arp: self.ipvs_strict_arp,
            timeouts: [self.ipvs_tcp_timeout, self.ipvs_tcpfin_timeout, self.ipvs_udp_timeout],
            masquerade_all,
        })
    }
}
