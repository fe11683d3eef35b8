//! `fairlead explain`: what becomes of one connection, and why.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use model::cluster::Snapshot;
use model::name::{Family, Protocol};
use model::parse::parse_ip;
use proxy::plan::trace::{Decision, Masquerading, Packet, Verdict, View, trace};
use proxy::plan::{At, FrontendKey, plan};
use proxy::status::{Status, file_of};
use serde::Serialize;

mod kernel;

use crate::node_args::{NodeArgs, SourceArgs};
use crate::plan::{Output, snapshot, supports};

/// Say what becomes of a connection as this node sees it, line by line: which Service, which rule,
/// which endpoints and why the others not.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The client: an address; a port after it is allowed, and does not matter.
    #[arg(value_name = "SRC_IP", value_parser = source)]
    source_ip: IpAddr,
    /// Where it connects to: `10.96.0.10:53/udp`, `[fd00::10]:80/tcp`.
    #[arg(value_name = "DST_IP:PORT/PROTO", value_parser = destination)]
    to: Destination,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    node: NodeArgs,
    /// The interface on which the packet arrives, where pods are told by it.
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// The directory that this node's proxy was started with: what the kernel holds is read there.
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf/fairlead")]
    bpffs: PathBuf,
    /// Addresses of this node besides those of its Node object, comma-separated.
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    host_addresses: Vec<IpAddr>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug)]
struct Destination {
    socket: SocketAddr,
    protocol: Protocol,
}

/// Prints the decision.
///
/// # Errors
/// The flags mean nothing, or the objects cannot be listed.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    explain(args, &mut std::io::stdout().lock())?;
    Ok(ExitCode::SUCCESS)
}

fn explain(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    anyhow::ensure!(
        Family::of(&args.source_ip) == Family::of(&args.to.socket.ip()),
        "{} and {} are of different families; give both of one",
        args.source_ip,
        args.to.socket.ip(),
    );
    let mut config = args.node.meant()?;
    // What the proxy there leaves out, since its own process serves it.
    config.answers_names = Status::read(&file_of(&args.bpffs))
        .is_ok_and(|status| status.answers_names && *status.node == *config.node_name);
    let mode = args.node.as_typed()?.mode()?;
    let snapshot = snapshot(&args.source, &config.node_name)?;
    let plan = plan(&snapshot, &config);
    let host = host(args, &snapshot);
    let view = View { plan: &plan, snapshot: &snapshot, config: &config, host: &host };
    let packet = Packet {
        source: args.source_ip,
        interface: args.interface.as_deref().map(Into::into),
        destination: args.to.socket,
        protocol: args.to.protocol,
    };
    let mut decision = trace(&view, &packet);
    let mut unsupported = false;
    if let Some((_, frontend)) = &decision.frontend
        && let Err(what) = supports(mode, frontend)
    {
        unsupported = true;
        decision.why.push(format!("beyond --proxy-mode={}: {what}", mode.name()));
    }
    let destination = FrontendKey {
        at: At::Address(args.to.socket.ip()),
        port: args.to.socket.port(),
        protocol: args.to.protocol,
    };
    let kernel = kernel::lines(
        &kernel::Asked {
            mode,
            bpffs: &args.bpffs,
            node: &config.node_name,
            key: decision.frontend.as_ref().map_or(destination, |(key, _)| *key),
            unsupported,
        },
        &decision,
    );
    match args.output {
        Output::Json => {
            serde_json::to_writer(&mut *out, &Explanation::new(&decision, &kernel))?;
            writeln!(out)?;
        }
        Output::Text => print(out, &packet, &decision, &kernel)?,
    }
    Ok(())
}

fn host(args: &Args, snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    let own = snapshot.node.iter().flat_map(|node| node.addresses.iter());
    own.chain(&args.host_addresses).copied().collect()
}

/// What `-o json` prints; the form is fixed.
#[derive(Debug, Serialize)]
struct Explanation {
    verdict: &'static str,
    endpoints: Vec<String>,
    masquerade: bool,
    service: Option<String>,
    frontend: Option<&'static str>,
    why: Vec<String>,
}

impl Explanation {
    fn new(decision: &Decision, kernel: &[String]) -> Self {
        let kernel = kernel.iter().map(|line| format!("kernel: {line}"));
        Self {
            verdict: match &decision.verdict {
                Verdict::Endpoints(_) => "endpoints",
                Verdict::Drop => "drop",
                Verdict::Reject => "reject",
                Verdict::NotOurs => "not-ours",
            },
            endpoints: endpoints(decision),
            masquerade: decision.masquerade == Masquerading::Yes,
            service: decision.service().map(ToString::to_string),
            frontend: decision.kind().map(proxy::plan::FrontendKind::name),
            why: decision.why.iter().cloned().chain(kernel).collect(),
        }
    }
}

/// In the order of their text.
fn endpoints(decision: &Decision) -> Vec<String> {
    let Verdict::Endpoints(set) = &decision.verdict else { return Vec::new() };
    let mut endpoints: Vec<String> =
        set.iter().map(|endpoint| endpoint.address.to_string()).collect();
    endpoints.sort();
    endpoints
}

fn print(
    out: &mut impl Write,
    packet: &Packet,
    decision: &Decision,
    kernel: &[String],
) -> std::io::Result<()> {
    let protocol = packet.protocol.to_string().to_lowercase();
    writeln!(out, "{} → {}/{protocol}", packet.source, packet.destination)?;
    if let (Some(service), Some(kind)) = (decision.service(), decision.kind()) {
        writeln!(out, "Service   {service} ({})", kind.name())?;
    }
    let outcome = match &decision.verdict {
        Verdict::Endpoints(_) => format!("to {}", endpoints(decision).join(" or ")),
        Verdict::Drop => "DROP, without an answer".to_owned(),
        Verdict::Reject => "REJECT, with ICMP port unreachable".to_owned(),
        Verdict::NotOurs => "not ours".to_owned(),
    };
    let masquerade = match (&decision.verdict, decision.masquerade) {
        (_, Masquerading::Yes) => ", masqueraded",
        (_, Masquerading::IfItself) => ", masqueraded only if sent to itself",
        (Verdict::Endpoints(_), Masquerading::No) => ", not masqueraded",
        (_, Masquerading::No) => "",
    };
    writeln!(out, "outcome   {outcome}{masquerade}")?;
    listed(out, "because", &decision.why)?;
    listed(out, "kernel", kernel)
}

/// Lines under one title.
fn listed(out: &mut impl Write, title: &str, lines: &[String]) -> std::io::Result<()> {
    for (idx, line) in lines.iter().enumerate() {
        let title = if idx == 0 { title } else { "" };
        writeln!(out, "{title:<9} {line}")?;
    }
    Ok(())
}

fn source(text: &str) -> anyhow::Result<IpAddr> {
    parse_ip(text)
        .or_else(|| text.parse().ok().map(|socket: SocketAddr| socket.ip().to_canonical()))
        .context("is no address; write it as 10.0.0.7 or fd00::7")
}

fn destination(text: &str) -> anyhow::Result<Destination> {
    const FORM: &str = "is no destination; write it as 10.96.0.10:53/udp or [fd00::10]:80/tcp";
    let (socket, protocol) = text.rsplit_once('/').context(FORM)?;
    let socket = match socket.parse::<SocketAddr>() {
        Ok(socket) => SocketAddr::new(socket.ip().to_canonical(), socket.port()),
        Err(_) => {
            let (address, port) = socket.rsplit_once(':').context(FORM)?;
            let address = parse_ip(address).filter(IpAddr::is_ipv4).context(FORM)?;
            SocketAddr::new(address, port.parse().ok().context(FORM)?)
        }
    };
    let protocol = Protocol::parse(&protocol.to_uppercase())?;
    Ok(Destination { socket, protocol })
}

#[cfg(test)]
mod tests;
