//! `fairlead hello`: a server that answers with its pod's name over HTTP, TCP and UDP.

use std::{
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
};

use anyhow::Context;
use sandbox::hello::Hello;
use tokio::{
    io::sink,
    signal::unix::{SignalKind, signal},
};

/// Answer with a name: to HTTP requests, lines over TCP and datagrams, on one port
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The name to answer with [default: the host's]
    #[arg(long, env = "POD_NAME")]
    name: Option<String>,
    /// Where to listen, for TCP and UDP
    #[arg(long, default_value_t = Hello::default_address())]
    listen: SocketAddr,
    /// End when standard input does
    #[arg(long, hide = true)]
    until_eof: bool,
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let name = match args.name {
        Some(name) => name,
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")
            .context("reading the host's name")?
            .trim()
            .to_owned(),
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(serve(&name, args.listen, args.until_eof));
    // A read of standard input may still be under way, and nobody waits for it.
    runtime.shutdown_background();
    served.map(|()| ExitCode::SUCCESS)
}

async fn serve(name: &str, listen: SocketAddr, until_eof: bool) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let server =
        Hello::bind(name, listen).await.with_context(|| format!("listening on {listen}"))?;
    writeln!(io::stdout(), "{name} listens on {}", server.local_addr()?)?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = end_of_input(), if until_eof => {}
        }
    };
    server.serve(stop).await.context("serving")
}

/// Resolves when there is nothing left to read from standard input.
pub(crate) async fn end_of_input() {
    if let Err(error) = tokio::io::copy(&mut tokio::io::stdin(), &mut sink()).await {
        tracing::debug!(%error, "reading standard input failed");
    }
}
