//! `fairlead load-server`: something to send load to.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context;
use loadtest::server::{Answering, Delay, Server};
use sandbox::hello::Hello;

/// Answer every kind of request of `fairlead loadtest` with a name, on one port
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The name to answer with [default: the host's]
    #[arg(long, env = "POD_NAME")]
    name: Option<String>,
    /// Where to listen, for TCP and UDP
    #[arg(long, default_value_t = Hello::default_address())]
    listen: SocketAddr,
    /// Threads that answer
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Processors to keep them on
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    processors: Vec<usize>,
    /// Milliseconds by which answers are delayed, in turn
    #[arg(long, value_name = "MS,…", default_value = "0", hide_default_value = true)]
    delay: Delay,
    /// End when standard input does
    #[arg(long, hide = true)]
    until_eof: bool,
}

/// Answers until killed.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let name = args.name.map_or_else(crate::node_args::host_name, Ok)?;
    let is_late = args.delay.in_turn.iter().any(|it| !it.is_zero());
    let answering = Answering {
        name: name.clone(),
        listen: args.listen,
        n_threads: args.threads,
        processors: args.processors,
        delay: if is_late { args.delay } else { Delay::default() },
    };
    let server =
        Server::start(&answering).with_context(|| format!("listening on {}", args.listen))?;
    writeln!(io::stdout(), "{name} listens on {}", server.address())?;
    if args.until_eof {
        io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    } else {
        server.wait();
    }
    Ok(ExitCode::SUCCESS)
}
