//! The flags about connections, with kube-proxy's names and defaults. They hold for eBPF mode's own
//! table; netfilter's is left as it is.

use std::thread::available_parallelism;
use std::time::Duration;

use load::Capacity;
use load::flows::Lifetimes;

/// How many connections are remembered, and for how long.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct ConntrackArgs {
    /// How many connections are remembered for each processor; with 0 it is 131,072 in all.
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    conntrack_max_per_core: u32,
    /// How many connections are remembered at least.
    #[arg(long, value_name = "N", default_value_t = 131_072)]
    conntrack_min: u32,
    /// For how long an idle TCP connection is remembered.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = super::duration)]
    conntrack_tcp_timeout_established: Duration,
    /// For how long a TCP connection is remembered that one end has closed.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = super::duration)]
    conntrack_tcp_timeout_close_wait: Duration,
    /// For how long a UDP flow without an answer is remembered.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = super::duration)]
    conntrack_udp_timeout: Duration,
    /// For how long a UDP flow with answers is remembered.
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = super::duration)]
    conntrack_udp_timeout_stream: Duration,
}

impl ConntrackArgs {
    /// How many connections are remembered.
    pub(super) fn connections(&self) -> u32 {
        let cores = available_parallelism().map_or(1, usize::from);
        let cores = u32::try_from(cores).unwrap_or(1);
        match self.conntrack_max_per_core.saturating_mul(cores) {
            0 => Capacity::default().flows,
            of_cores => of_cores.max(self.conntrack_min),
        }
    }

    /// For how long.
    pub(super) fn lifetimes(&self) -> Lifetimes {
        Lifetimes {
            established: self.conntrack_tcp_timeout_established,
            close_wait: self.conntrack_tcp_timeout_close_wait,
            udp_stream: self.conntrack_udp_timeout_stream,
            udp: self.conntrack_udp_timeout,
            ..Lifetimes::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser as _;
    use load::flows::Lifetimes;

    use super::ConntrackArgs;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: ConntrackArgs,
    }

    fn args(text: &str) -> ConntrackArgs {
        Cli::parse_from(std::iter::once("test").chain(text.split_whitespace())).args
    }

    #[test]
    fn connections_are_as_many_as_kube_proxys_flags_say() {
        assert_eq!(args("--conntrack-max-per-core=1 --conntrack-min=5000").connections(), 5000);
        assert_eq!(args("--conntrack-max-per-core=0 --conntrack-min=1").connections(), 131_072);
        let per_core = args("--conntrack-max-per-core=1000 --conntrack-min=0").connections();
        assert!(per_core >= 1000 && per_core.is_multiple_of(1000), "{per_core}");
    }

    #[test]
    fn connections_live_as_long_as_kube_proxys_flags_say() {
        assert_eq!(args("").lifetimes(), Lifetimes::default());
        let told = args("--conntrack-tcp-timeout-established=2h --conntrack-udp-timeout=7s");
        let (established, udp) = (Duration::from_secs(7200), Duration::from_secs(7));
        assert_eq!(told.lifetimes(), Lifetimes { established, udp, ..Lifetimes::default() });
    }
}
