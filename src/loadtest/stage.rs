//! A Service brought up on this machine: a node for each mode, and two without a proxy, whose
//! endpoints are the baseline and the baseline again.
//!
//! Each mode has a node of its own in place of one node whose mode is switched: then the modes take
//! turns within milliseconds, and none leaves anything in the kernel that the others pay for.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use loadtest::experiment::{Arm, Role};
use loadtest::generator::Hand;
use loadtest::kind::Kind;
use loadtest::remote::Remote;
use sandbox::fairlead::{Fairlead, Proxy, ProxyOptions};
use sandbox::manifest::{self, Folder};
use sandbox::{Node, Pod, Process, Sandbox};

use super::churn::{Churn, Place as ChurnPlace};
use super::folder::{Given, Tested};
use super::screen::Screen;
use super::target::{Endpoint, Target};
use super::{Args, Scene, arms};
use crate::interrupt::Interrupt;

/// Where every server listens.
const PORT: u16 = 8080;
/// How long a proxy may take, and how much more for each Service.
const IN_SYNC_WITHIN: Duration = Duration::from_secs(60);
const FOR_A_SERVICE: Duration = Duration::from_millis(20);
/// The last lines of a proxy's log that an error shows.
const LOG_LINES: usize = 3;
/// Services in a file.
const IN_A_FILE: u32 = 1000;

/// What `--compare` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Ebpf,
    Nftables,
    Iptables,
    Ipvs,
    /// No proxy, which is in every comparison.
    Direct,
}

impl Mode {
    const ALL: [Self; 5] = [Self::Ebpf, Self::Nftables, Self::Iptables, Self::Ipvs, Self::Direct];

    const fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
            Self::Direct => "direct",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mode {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == text);
        found.with_context(|| {
            format!("{text:?} is no mode: there are ebpf, nftables, iptables, ipvs and direct")
        })
    }
}

/// What was brought up. What runs ends before what it runs in.
#[derive(Debug)]
pub(super) struct Stage {
    _places: Vec<Place>,
    _sandbox: Sandbox,
}

/// A node with its pods.
#[derive(Debug)]
struct Place {
    proxy: Option<Proxy>,
    servers: Vec<Process>,
    _generator: Process,
    _pods: Vec<Pod>,
    node: Node,
    folder: Folder,
    endpoints: Vec<Endpoint>,
}

/// Brings it all up, and waits until every proxy is in sync.
///
/// # Errors
/// The machine does not allow it, or a mode is not in this build.
pub(super) fn scene(
    args: &Args,
    screen: &mut Screen,
    interrupt: &Interrupt,
) -> anyhow::Result<Scene> {
    let kind = args.kind.unwrap_or(Kind::Tcp);
    let given = Given::read(args, kind)?;
    let modes = modes(args);
    let sandbox = Sandbox::create(&args.sandbox)?;
    let fairlead = Fairlead::this();
    let mut hands: Vec<Box<dyn Hand>> = Vec::new();
    let (mut places, mut tested) = (Vec::new(), Vec::new());
    for (name, mode) in [("direct", None), ("again", None)]
        .into_iter()
        .chain(modes.iter().map(|mode| (mode.name(), Some(*mode))))
    {
        screen.say(&format!("bringing up {name} ..."));
        interrupt.wait_until(Duration::ZERO, || true)?;
        let build = Build { args, given: &given, sandbox: &sandbox, fairlead: &fairlead };
        let (place, hand) = build.place(name, mode)?;
        hands.push(hand);
        places.push(place);
        tested.push((name, mode));
    }
    for (place, (name, mode)) in places.iter_mut().zip(&tested) {
        if mode.is_some() {
            screen.say(&format!("waiting for {name} with {} Services ...", args.services));
            wait_in_sync(place, name, args, &fairlead, interrupt)?;
        }
    }
    let arms = places.iter().zip(&tested).enumerate();
    let arms: Vec<Arm> = arms
        .map(|(hand, (place, (name, mode)))| arm(args, &given, place, (name, *mode), hand))
        .collect();
    let churn = (args.churn > 0.0).then(|| {
        let candidates = arms.iter().enumerate().zip(&places);
        let candidates = candidates.filter(|((_, arm), _)| arm.role == Role::Candidate);
        let place = |((arm_idx, _), place): ((usize, &Arm), &Place)| ChurnPlace {
            arm_idx,
            folder: place.folder.clone(),
            tested: given.tested.clone(),
            endpoints: place.endpoints.clone(),
        };
        Churn::new(args.churn, candidates.map(place).collect())
    });
    let label = given.tested.label();
    Ok(Scene {
        hands,
        arms,
        label,
        churn,
        _stage: Some(Stage { _places: places, _sandbox: sandbox }),
    })
}

/// Those with a proxy.
fn modes(args: &Args) -> Vec<Mode> {
    let mut modes: Vec<Mode> = Vec::new();
    for mode in args.compare.iter().copied().filter(|mode| *mode != Mode::Direct) {
        if !modes.contains(&mode) {
            modes.push(mode);
        }
    }
    if modes.is_empty() {
        modes.push(Mode::Ebpf);
    }
    modes
}

fn arm(
    args: &Args,
    given: &Given,
    place: &Place,
    (name, mode): (&str, Option<Mode>),
    hand: usize,
) -> Arm {
    let kind = args.kind.unwrap_or(Kind::Tcp);
    let mut arm = match (mode, name) {
        (Some(_), _) => {
            let address = SocketAddr::new(given.tested.ip, given.tested.port);
            let endpoints = place.endpoints.clone();
            let target = Target { label: given.tested.label(), address, endpoints };
            arms::candidate(args, kind, name, hand, &target)
        }
        (None, "direct") => {
            arms::direct(args, kind, ("direct", Role::Baseline), hand, &place.endpoints)
        }
        (None, _) => {
            arms::direct(args, kind, ("direct again", Role::Again), hand, &place.endpoints)
        }
    };
    arm.servers = place.servers.iter().map(Process::id).collect();
    arm
}

/// What places are built of.
struct Build<'a> {
    args: &'a Args,
    given: &'a Given,
    sandbox: &'a Sandbox,
    fairlead: &'a Fairlead,
}

impl Build<'_> {
    fn place(&self, name: &str, mode: Option<Mode>) -> anyhow::Result<(Place, Box<dyn Hand>)> {
        let Self { args, given, sandbox, .. } = self;
        let node = sandbox.node(name)?;
        let folder = Folder::create(&sandbox.dir().join(format!("objects-{name}")))?;
        let (mut pods, mut servers, mut endpoints) = (Vec::new(), Vec::new(), Vec::new());
        for wanted in &given.endpoints {
            let pod = node.pod(&format!("{name}-{}", pods.len() + 1))?;
            servers.push(self.server(&pod, &wanted.name)?);
            let ip: IpAddr = match given.tested.ip {
                IpAddr::V4(_) => pod.addresses().v4.into(),
                IpAddr::V6(_) => pod.addresses().v6.into(),
            };
            endpoints.push(Endpoint {
                name: Some(wanted.name.clone()),
                address: SocketAddr::new(ip, PORT),
                weight: wanted.weight,
            });
            pods.push(pod);
        }
        let client = node.pod(&format!("{name}-client"))?;
        let (generator, hand) = self.generator(&client)?;
        pods.push(client);
        let mut proxy = None;
        if let Some(mode) = mode {
            folder.write("node", &manifest::node_yaml(&node))?;
            folder.write("services", &given.others)?;
            folder.write("endpoints", &given.tested.slices_yaml(&endpoints))?;
            for (number, first) in (1..args.services).step_by(IN_A_FILE as usize).enumerate() {
                let yaml: String = (first..args.services.min(first + IN_A_FILE))
                    .map(|number| super::folder::filler(number, args.endpoints))
                    .collect();
                folder.write(&format!("filler-{number}"), &yaml)?;
            }
            let options = ProxyOptions {
                objects: folder.path().to_owned(),
                cgroup: node.cgroup().to_owned(),
                bpffs: node.bpffs()?,
                names: false,
                more: vec![format!("--proxy-mode={mode}").into()],
            };
            let log = sandbox.dir().join(format!("proxy-{name}.log"));
            proxy = Some(self.fairlead.proxy(&node, &options, &log)?);
        }
        let place =
            Place { proxy, servers, _generator: generator, _pods: pods, node, folder, endpoints };
        Ok((place, hand))
    }

    /// A server in a pod, once it listens. It ends with this process, however that ends.
    fn server(&self, pod: &Pod, name: &str) -> anyhow::Result<Process> {
        let mut launch = pod
            .command(self.fairlead.path())
            .args(["load-server", "--until-eof", "--name", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if !self.args.processors.is_empty() {
            launch = launch.arg("--processors").arg(listed(&self.args.processors));
        }
        if let Some(delay) = &self.args.delay {
            let millis = delay.in_turn.iter().map(|it| it.as_secs_f64() * 1000.0);
            launch = launch.arg("--delay").arg(listed(&millis.collect::<Vec<_>>()));
        }
        let mut server = launch.spawn()?;
        let mut line = String::new();
        let stdout = server.stdout().context("the server's output is piped")?;
        BufReader::new(stdout).read_line(&mut line)?;
        if line.is_empty() {
            bail!("the server in {} did not come up", pod.name());
        }
        // Its input stays open as long as the process is ours.
        Ok(server)
    }

    fn generator(&self, pod: &Pod) -> anyhow::Result<(Process, Box<dyn Hand>)> {
        let mut generator = pod
            .command(self.fairlead.path())
            .arg("load-generator")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (answers, orders) = (generator.stdout(), generator.stdin());
        let answers = BufReader::new(answers.context("the generator's output is piped")?);
        let orders = orders.context("the generator's input is piped")?;
        Ok((generator, hand(answers, orders, self.args)?))
    }
}

fn hand(
    answers: BufReader<impl Read + 'static>,
    orders: impl Write + 'static,
    args: &Args,
) -> anyhow::Result<Box<dyn Hand>> {
    Ok(Box::new(Remote::start(answers, orders, &args.threads())?))
}

fn listed(numbers: &[impl ToString]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Until the kernel holds everything; an error if the proxy ends or takes too long.
fn wait_in_sync(
    place: &mut Place,
    name: &str,
    args: &Args,
    fairlead: &Fairlead,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let Place { proxy: Some(proxy), node, .. } = place else { return Ok(()) };
    let bpffs = node.bpffs()?;
    let timeout = IN_SYNC_WITHIN + FOR_A_SERVICE * args.services;
    let (mut in_sync, mut has_ended) = (Ok(false), false);
    interrupt.wait_until(timeout, || {
        has_ended = proxy.has_ended().unwrap_or(true);
        in_sync = fairlead.is_in_sync(node, &bpffs);
        has_ended || !matches!(in_sync, Ok(false))
    })?;
    if in_sync.context("asking the proxy for its status")? && !has_ended {
        return refuse_problems(name, &fairlead.status(node, &bpffs)?.stdout);
    }
    let log = proxy.log();
    let lines: Vec<&str> = log.lines().collect();
    let last = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n  ");
    if has_ended {
        bail!("{name} cannot be compared: its proxy did not start. It said:\n  {last}");
    }
    bail!("{name} is not in sync after {} s. Its proxy said:\n  {last}", timeout.as_secs())
}

/// What a proxy leaves out is not measured in silence.
fn refuse_problems(name: &str, status: &[u8]) -> anyhow::Result<()> {
    let status = String::from_utf8_lossy(status);
    let mut lines = status.lines().skip_while(|line| !line.starts_with("problems"));
    let n = lines.next().and_then(|line| line.split_whitespace().nth(1)).unwrap_or("0");
    match lines.next() {
        Some(first) if n != "0" => bail!("{name} leaves {n} things out: {}", first.trim()),
        _ => Ok(()),
    }
}

impl Tested {
    /// Its slices: one for each weight, and in one text so that they change together.
    pub(super) fn slices_yaml(&self, endpoints: &[Endpoint]) -> String {
        let mut weights: Vec<u32> = endpoints.iter().map(|it| it.weight).collect();
        weights.sort_unstable();
        weights.dedup();
        if weights.is_empty() {
            weights.push(1);
        }
        let slice = |weight: &u32| {
            let own = endpoints.iter().filter(|it| it.weight == *weight);
            self.slice_yaml(*weight, own)
        };
        weights.iter().map(slice).collect()
    }
}
