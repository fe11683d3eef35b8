//! `fairlead client`: requests at an open rate, or two ways compared, as the demo and the tests
//! start it in a pod.

use std::{
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use sandbox::traffic::{self, Load, Protocol, Tally, Until, compare};
use serde::Serialize;

/// How often the tally is printed.
const REPORT_EVERY: Duration = Duration::from_millis(20);

/// Send requests to a Service and print, as JSON, who answered
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The Service's address and port
    #[arg(long)]
    target: SocketAddr,
    /// tcp, tcp-kept, http, http-source, udp, udp-unconnected or udp-connected
    #[arg(long, default_value_t = Protocol::Tcp)]
    protocol: Protocol,
    /// Requests a second
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// For how long; without it, until standard input ends
    #[arg(long)]
    duration_ms: Option<u64>,
    /// That many requests, however long they take
    #[arg(long, conflicts_with = "duration_ms")]
    count: Option<u32>,
    /// How long a request may take
    #[arg(long, default_value_t = 2000)]
    timeout_ms: u64,
    /// An endpoint to compare the Service with; may be repeated
    #[arg(long)]
    direct: Vec<SocketAddr>,
    /// Rounds of a comparison
    #[arg(long, default_value_t = 100)]
    rounds: u32,
    /// Requests in a round
    #[arg(long, default_value_t = 20)]
    requests: u32,
}

/// Sends, and prints a tally a line, each counting from the start.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if !args.direct.is_empty() {
        let comparison = compare::Comparison {
            protocol: args.protocol,
            direct: args.direct,
            service: args.target,
            n_rounds: args.rounds,
            n_requests: args.requests,
        };
        print(&compare::run(&comparison).context("a request failed")?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let load = Load {
        target: args.target,
        protocol: args.protocol,
        rate: args.rate,
        until: match (args.duration_ms, args.count) {
            (Some(ms), _) => Until::Over(Duration::from_millis(ms)),
            (None, Some(n)) => Until::Sent(n),
            (None, None) => Until::Told,
        },
        timeout: Duration::from_millis(args.timeout_ms),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stop = async {
        match load.until {
            Until::Over(_) | Until::Sent(_) => std::future::pending().await,
            Until::Told => crate::hello::end_of_input().await,
        }
    };
    let sent =
        runtime.block_on(traffic::run(&load, stop, REPORT_EVERY, |tally: &Tally| print(tally)));
    // A read of standard input may still be under way, and nobody waits for it.
    runtime.shutdown_background();
    sent?;
    Ok(ExitCode::SUCCESS)
}

fn print(value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    io::stdout().lock().write_all(&line)
}
