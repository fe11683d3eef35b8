//! The binary `fairlead`: a file per subcommand, nothing else.

mod cleanup;
mod client;
mod cni;
mod control;
mod demo;
mod dig;
mod dns;
mod explain;
mod hello;
mod interrupt;
mod loadtest;
mod monitor;
mod node;
mod node_args;
mod plan;
mod pod_process;
mod pods;
mod proxy;
mod status;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The service dataplane of a Kubernetes node: routes Services in the kernel, in the place of
/// kube-proxy.
#[derive(Debug, Parser)]
#[command(name = "fairlead", version, max_term_width = 80, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Proxy(Box<proxy::Args>),
    Plan(Box<plan::Args>),
    Explain(Box<explain::Args>),
    Dns(dns::Args),
    Node(Box<node::Args>),
    Dig(dig::Args),
    Status(status::Args),
    Monitor(monitor::Args),
    Cleanup(cleanup::Args),
    Control(control::Args),
    Demo(demo::Args),
    Loadtest(Box<loadtest::Args>),
    #[command(hide = true)]
    LoadServer(loadtest::ServerArgs),
    #[command(hide = true)]
    LoadGenerator(loadtest::WorkerArgs),
    #[command(hide = true)]
    Hello(hello::Args),
    #[command(hide = true)]
    Client(client::Args),
    #[command(hide = true)]
    Cni(cni::Args),
    #[command(hide = true)]
    PodProcess(pod_process::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Proxy(args) => proxy::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Dns(args) => dns::run(&args),
        Command::Node(args) => node::run(&args),
        Command::Dig(args) => dig::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Monitor(args) => monitor::run(&args),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::Control(args) => control::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Loadtest(args) => loadtest::run(&args),
        Command::LoadServer(args) => loadtest::serve(args),
        Command::LoadGenerator(args) => loadtest::generate(args),
        Command::Hello(args) => hello::run(args),
        Command::Client(args) => client::run(args),
        Command::Cni(args) => cni::run(&args),
        Command::PodProcess(args) => pod_process::run(args),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// The one place where an error is printed: what, where and why, on one line.
#[expect(clippy::print_stderr, reason = "the error of the command")]
fn complain(error: &anyhow::Error) {
    eprintln!("fairlead: {error:#}");
}

/// Logs to standard error; `RUST_LOG` or `-v` say how much.
fn log(verbosity: u8) {
    use tracing_subscriber::EnvFilter;

    let level = match verbosity {
        0 => "info",
        1..=3 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}
