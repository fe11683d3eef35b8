//! `fairlead loadtest`: what a Service costs beside its endpoints, and what clients see of change.

mod arms;
mod churn;
mod folder;
mod output;
mod screen;
mod server;
mod stage;
mod target;
mod worker;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use loadtest::experiment::{self, Arm, Timetable};
use loadtest::generator::{Hand, Threads};
use loadtest::kind::Kind;
use loadtest::server::Delay;

use self::churn::Churn;
use self::screen::Screen;
use self::stage::{Mode, Stage};
use self::target::Target;
use crate::interrupt::Interrupt;
use crate::node_args::SourceArgs;

pub(crate) use server::{Args as ServerArgs, run as serve};
pub(crate) use worker::{Args as WorkerArgs, run as generate};

/// Measure what a Service costs beside its endpoints, how fairly it spreads connections, and what
/// clients notice while endpoints come and go
///
/// Without a TARGET, a Service with servers of its own is brought up on this machine.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Services (`NS/NAME[:PORT]`), addresses (HOST:PORT), or a folder of YAML to bring up here
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    #[command(flatten)]
    source: SourceArgs,
    /// Where an address leads to: an endpoint to measure beside it; may be repeated
    #[arg(long, value_name = "ADDR:PORT")]
    direct: Vec<SocketAddr>,
    /// What to send: connect, tcp, rr, http, udp or dns [default: tcp to servers brought up here,
    /// http elsewhere]
    #[arg(long)]
    kind: Option<Kind>,
    /// Requests a second at a constant rate; without it, each as soon as the one before has ended
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Requests under way at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    concurrency: usize,
    /// Threads that send, each with its own epoll [default: one a processor]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Processors to keep the sending threads on, and servers brought up here
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    processors: Vec<usize>,
    /// The network namespace to send from, such as /proc/PID/ns/net of a pod's process
    #[arg(long, value_name = "FILE")]
    netns: Option<PathBuf>,
    /// Seconds of measuring for each thing that is compared
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    duration: Duration,
    /// Rounds: in each, everything that is compared has its turn
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds for each before anything counts
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = seconds)]
    warm_up: Duration,
    /// Bytes that a request carries beyond what it must
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    payload: usize,
    /// Requests on a connection, 0 for no bound [default: 1 for connect, tcp and udp]
    #[arg(long, value_name = "N")]
    requests_per_connection: Option<u32>,
    /// An address to send from; may be repeated
    #[arg(long, value_name = "ADDR")]
    source_address: Vec<IpAddr>,
    /// Seconds that a request may take
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    timeout: Duration,
    /// The Host of HTTP requests, or the name that DNS is asked for
    #[arg(long, default_value = "kubernetes.default.svc.cluster.local")]
    name: String,
    /// The path of HTTP requests
    #[arg(long, default_value = "/")]
    path: String,
    /// Shares that endpoints ought to have, as they answer: web-1=3,web-2=1
    #[arg(long, value_name = "NAME=N,…", value_delimiter = ',', value_parser = weight)]
    weights: Vec<(String, u32)>,
    /// Proxy modes to compare on this machine: ebpf, nftables, iptables, ipvs; direct is always in
    #[arg(long, value_name = "MODE,…", value_delimiter = ',')]
    compare: Vec<Mode>,
    /// Services to have on this machine, the tested one among them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    services: u32,
    /// Endpoints of each of the others
    #[arg(long, value_name = "M", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=100))]
    endpoints: u32,
    /// Servers behind the tested Service
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pods: u32,
    /// Changes of endpoints a second while the Service is measured
    #[arg(long, value_name = "N", default_value_t = 0.0, hide_default_value = true)]
    churn: f64,
    /// Milliseconds by which servers brought up here delay answers, in turn
    #[arg(long, value_name = "MS,…", hide = true)]
    delay: Option<Delay>,
    /// Write the report for machines
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as a page for a browser
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The sandbox's name, so that tests do not meet a run that somebody looks at
    #[arg(long, hide = true, default_value = "loadtest")]
    sandbox: String,
}

/// Everything that is there to be measured. Hands end before the pods that they are in.
struct Scene {
    hands: Vec<Box<dyn Hand>>,
    arms: Vec<Arm>,
    label: String,
    churn: Option<Churn>,
    _stage: Option<Stage>,
}

/// Measures, and reports.
///
/// # Errors
/// The target is unknown or does not answer, or the machine does not allow it; the message says
/// what to do.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    args.check()?;
    let outputs = output::Outputs::open(args)?;
    let interrupt = Interrupt::catch()?;
    let mut screen = Screen::new(interrupt.clone());
    let mut scene = match args.scene(&mut screen, &interrupt) {
        // Whatever failed, failed because the programs were told to end as well.
        Err(_) if interrupt.has_come() => bail!("interrupted; nothing is left behind"),
        scene => scene?,
    };
    let timetable = args.timetable(scene.churn.is_some());
    screen.begin(&scene.arms, timetable);
    let begun = std::time::Instant::now();
    let mut observer = screen::Watching { screen: &mut screen, churn: scene.churn.as_mut() };
    let measured = experiment::run(&mut scene.hands, &scene.arms, timetable, &mut observer);
    screen.clear();
    let measured = match measured {
        Err(_) if interrupt.has_come() => bail!("interrupted; nothing is left behind"),
        measured => measured?,
    };
    tracing::debug!(took = ?begun.elapsed(), "measured");
    let report = output::report(args, &scene, timetable, &measured)?;
    outputs.write(&report)?;
    if measured.is_cut_short {
        bail!("interrupted: what was measured until then is above");
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.churn >= 0.0 && self.churn <= 1000.0, "--churn: 0 to 1000 changes a second");
        let here = self.is_here()?;
        if !here {
            let refused = [
                ("--compare", !self.compare.is_empty()),
                ("--services", self.services > 1),
                ("--churn", self.churn > 0.0),
            ];
            if let Some((flag, _)) = refused.into_iter().find(|(_, given)| *given) {
                bail!(
                    "{flag} changes the proxy or its objects, and those of a running cluster are \
                     not touched: leave the TARGET out, or give a folder of YAML to bring up here"
                );
            }
        }
        ensure!(
            !here || self.netns.is_none(),
            "--netns: what is brought up here is measured from a pod of its own"
        );
        Ok(())
    }

    /// Whether the target is brought up on this machine.
    fn is_here(&self) -> anyhow::Result<bool> {
        let folders = self.targets.iter().filter(|it| PathBuf::from(it).is_dir()).count();
        ensure!(
            folders == 0 || self.targets.len() == 1,
            "a folder is brought up alone: give one TARGET"
        );
        Ok(folders == 1 || self.targets.is_empty())
    }

    fn scene(&self, screen: &mut Screen, interrupt: &Interrupt) -> anyhow::Result<Scene> {
        if self.is_here()? {
            return stage::scene(self, screen, interrupt);
        }
        let targets = self
            .targets
            .iter()
            .map(|text| Target::find(text, self))
            .collect::<anyhow::Result<Vec<_>>>()?;
        arms::of_targets(self, &targets)
    }

    /// Short slices, so that everything has its turn often; with churn, long enough for changes.
    fn timetable(&self, is_churning: bool) -> Timetable {
        const CHURNING: Duration = Duration::from_secs(2);
        const SHORTEST: Duration = Duration::from_millis(5);
        let nanos = |it: Duration| u64::try_from(it.as_nanos()).unwrap_or(u64::MAX).max(1);
        let wanted = self.duration / self.rounds;
        let least = if is_churning { CHURNING } else { SHORTEST };
        let slice = wanted.max(least).min(self.duration.max(SHORTEST));
        let times =
            |it: Duration| u32::try_from(nanos(it).div_ceil(nanos(slice))).unwrap_or(u32::MAX);
        let n_warm = if self.warm_up.is_zero() { 0 } else { times(self.warm_up) };
        Timetable {
            n_rounds: times(self.duration).max(1),
            n_warm,
            slice: nanos(slice),
            keeps_hits: is_churning,
        }
    }

    fn threads(&self) -> Threads {
        Threads {
            n_threads: self.threads,
            processors: self.processors.clone(),
            netns: self.netns.clone(),
        }
    }
}

fn seconds(text: &str) -> anyhow::Result<Duration> {
    let number = text.strip_suffix('s').unwrap_or(text).parse::<f64>();
    let duration = number.ok().and_then(|it| Duration::try_from_secs_f64(it).ok());
    let duration = duration.context("expected seconds, such as 10 or 0.5")?;
    ensure!(duration <= Duration::from_secs(86_400), "a day is the most");
    Ok(duration)
}

fn positive(text: &str) -> anyhow::Result<usize> {
    text.parse().ok().filter(|n| *n > 0).context("expected a number above 0")
}

fn weight(text: &str) -> anyhow::Result<(String, u32)> {
    let (name, weight) = text.split_once('=').context("expected NAME=N")?;
    Ok((name.to_owned(), weight.parse().context("expected NAME=N")?))
}

/// The command as it was typed.
fn command_line() -> String {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words = words.iter().map(|word| word.to_string_lossy());
    ["fairlead".into()].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}
