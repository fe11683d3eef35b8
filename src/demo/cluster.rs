//! The demo's cluster: a machine with the companion and a node agent, and what is made through the API.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use sandbox::{
    Addresses, BuildError, Guest, Node, Process, Sandbox,
    fairlead::{AgentOptions, Fairlead, Proxy},
    traffic::{Load, Protocol, Tally, Until},
};
use serde_json::json;

use super::{
    api::Api,
    keep,
    objects::{self, CLIENT, NAME, NODE_PORT, Web},
    screen::Screen,
};
use crate::interrupt::Interrupt;

/// The node's name.
pub(super) const NODE: &str = "node-a";
/// Its pods are known by the ranges in its Node object.
pub(super) const DETECT_LOCAL: &str = "--detect-local-mode=NodeCIDR";
/// How long a program or a pod may take; the agent loads its programs into the kernel first.
const WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(50);
/// The last lines of a log that an error shows.
const LOG_LINES: usize = 5;

/// All of it. What runs ends before what it runs in.
#[derive(Debug)]
pub(super) struct Cluster {
    /// Routes the node's Services, answers its names and runs its pods.
    pub(super) agent: Proxy,
    _companion: Process,
    pub(super) api: Api,
    pub(super) client: Guest,
    pub(super) client_addresses: Addresses,
    /// Another machine, which is no node of the cluster.
    pub(super) outside: Node,
    node: Node,
    service: [SocketAddr; 2],
    pub(super) kubeconfig: PathBuf,
    pub(super) bpffs: PathBuf,
    pub(super) fairlead: Fairlead,
    _sandbox: Sandbox,
}

impl Cluster {
    /// Builds it, and waits until its Service is in force.
    pub(super) fn build(
        screen: &mut Screen,
        interrupt: &Interrupt,
        name: &str,
    ) -> anyhow::Result<Self> {
        screen.step("Two machines, out of network namespaces: one with the Kubernetes API")?;
        let started = Instant::now();
        let sandbox = claim(name)?;
        let (node, outside) = (sandbox.node(NODE)?, sandbox.node("outside")?);
        for (machine, what) in [(&node, "the API server and a node"), (&outside, "another machine")]
        {
            let Addresses { v4, v6 } = machine.addresses();
            screen.line(&format!("{:<12}{v4:<14}{v6:<19}{what}", machine.name()))?;
        }
        screen.line(&format!("built in {} ms", started.elapsed().as_millis()))?;

        let fairlead = Fairlead::this();
        let kubeconfig = sandbox.dir().join("kubeconfig");
        let companion = fairlead.companion(&node, &sandbox.dir().join("control"), &kubeconfig)?;
        let api = Api::new(node.netns(), &kubeconfig);
        let companion = wait_served(screen, interrupt, &kubeconfig, companion)?;
        let bpffs = node.bpffs()?;
        let mut agent = start_agent(&fairlead, &sandbox, &node, &kubeconfig)?;
        wait_in_sync(screen, interrupt, &mut agent, || fairlead.is_in_sync(&node, &bpffs))?;

        screen.step("A Deployment, a pod to ask from, and a Service, made through that API")?;
        let made = make(screen, interrupt, &api, &node);
        let (client, client_addresses, service) = made.map_err(|error| beside(&error, &agent))?;
        let cluster = Self {
            agent,
            _companion: companion,
            api,
            client,
            client_addresses,
            outside,
            node,
            service,
            kubeconfig,
            bpffs,
            fairlead,
            _sandbox: sandbox,
        };
        let waited = cluster.wait_in_force(screen, interrupt);
        waited.map_err(|error| beside(&error, &cluster.agent))?;
        Ok(cluster)
    }

    /// The Service's node port, over IPv4 and IPv6.
    pub(super) fn node_ports(&self) -> [SocketAddr; 2] {
        self.node.addresses().both().map(|address| (address, NODE_PORT).into())
    }

    /// The Service's own addresses, IPv4 first.
    pub(super) fn service(&self) -> [SocketAddr; 2] {
        self.service
    }

    /// The pods that serve, as the API has them.
    pub(super) fn webs(&self) -> anyhow::Result<Vec<Web>> {
        Ok(objects::webs(&self.api.get(objects::WEBS)?))
    }

    /// Lets the Service keep the source of what comes from outside.
    pub(super) fn keep_source(&self) -> anyhow::Result<()> {
        let patch = json!({"spec": {"externalTrafficPolicy": "Local"}});
        self.api.merge(&format!("{}/{NAME}", objects::SERVICES), &patch).map(drop)
    }

    /// A few requests from the client to each address of the Service, from outside to each node port,
    /// and the Service's name asked for: until all are answered.
    fn wait_in_force(&self, screen: &mut Screen, interrupt: &Interrupt) -> anyhow::Result<()> {
        let started = Instant::now();
        let names: BTreeSet<String> = self.webs()?.into_iter().map(|web| web.name).collect();
        screen.progress("the node hears of it ...")?;
        until(interrupt, "the Service is not in force", || {
            for target in self.service {
                let tally = self.fairlead.client_in(&self.client, &few(target))?.finish()?;
                if !has_all(&tally, &names) {
                    return Ok(None);
                }
            }
            for target in self.node_ports() {
                let tally = self.fairlead.client_on(&self.outside, &few(target))?.finish()?;
                if !has_all(&tally, &names) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })?;
        screen.line(&format!("in force after {} ms", started.elapsed().as_millis()))?;
        let expected = self.service.map(|address| address.ip());
        until(interrupt, "the Service has no name", || {
            let asked = self.client.command_inside("getent").args(["ahosts", NAME]).output()?;
            let told = addresses(&String::from_utf8_lossy(&asked.stdout));
            Ok((told == BTreeSet::from(expected)).then_some(()))
        })?;
        Ok(screen.line(&format!(
            "called {NAME}.default.svc.cluster.local by the node's own DNS server"
        ))?)
    }
}

/// Asks again and again until there is something, which `not_yet` says there is not.
pub(super) fn until<T>(
    interrupt: &Interrupt,
    not_yet: &str,
    mut ask: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + WITHIN;
    loop {
        if let Some(found) = ask()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("{not_yet} after {} s", WITHIN.as_secs());
        }
        interrupt.wait_until(LOOK, || false)?;
    }
}

fn claim(name: &str) -> anyhow::Result<Sandbox> {
    Sandbox::create(name).map_err(|error| match error {
        BuildError::Running { pid, .. } => anyhow!(
            "a demo is running in process {pid}: end it with `{} demo --stop`",
            keep::this()
        ),
        other => other.into(),
    })
}

fn wait_served(
    screen: &mut Screen,
    interrupt: &Interrupt,
    kubeconfig: &std::path::Path,
    mut companion: Process,
) -> anyhow::Result<Process> {
    let started = Instant::now();
    screen.progress("fairlead control makes what every cluster has ...")?;
    until(interrupt, "fairlead control does not serve", || {
        if let Some(ended) = companion.try_wait()? {
            bail!("fairlead control did not start: {ended}");
        }
        Ok(kubeconfig.exists().then_some(()))
    })?;
    screen.line(&format!(
        "serving after {} ms: fairlead control, the companion",
        started.elapsed().as_millis()
    ))?;
    Ok(companion)
}

fn start_agent(
    fairlead: &Fairlead,
    sandbox: &Sandbox,
    node: &Node,
    kubeconfig: &std::path::Path,
) -> anyhow::Result<Proxy> {
    for cgroup in ::node::limit_cgroups(node.cgroup(), NODE)? {
        sandbox.take_along(&cgroup)?;
    }
    let options = AgentOptions {
        kubeconfig: kubeconfig.to_owned(),
        bpffs: node.bpffs()?,
        dir: sandbox.dir().to_owned(),
        more: vec![DETECT_LOCAL.into()],
    };
    Ok(fairlead.agent(node, &options, &sandbox.dir().join("node.log"))?)
}

/// Makes everything, and waits until the pods are ready.
fn make(
    screen: &mut Screen,
    interrupt: &Interrupt,
    api: &Api,
    node: &Node,
) -> anyhow::Result<(Guest, Addresses, [SocketAddr; 2])> {
    let started = Instant::now();
    api.create(objects::DEPLOYMENTS, &objects::deployment())?;
    api.create(objects::PODS, &objects::client())?;
    let service = api.create(objects::SERVICES, &objects::service())?;
    let service = objects::frontends(&service).context("the Service has no addresses")?;
    screen.progress("the pods start ...")?;
    let webs = until(interrupt, "the pods are not ready", || {
        let webs = objects::webs(&api.get(objects::WEBS)?);
        Ok((webs.len() == objects::N_PODS).then_some(webs))
    })?;
    let (client, uid) = until(interrupt, "the client is not ready", || {
        let pod = api.get(&format!("{}/{CLIENT}", objects::PODS))?;
        let uid = objects::at(&pod, "/metadata/uid").as_str().unwrap_or_default().to_owned();
        Ok(objects::ready(&pod).map(|client| (client, uid)))
    })?;
    for Web { name, addresses: Addresses { v4, v6 } } in webs.iter().chain([&client]) {
        screen.line(&format!("{name:<24}{v4:<14}{v6}"))?;
    }
    screen.line(&format!("ready after {} ms", started.elapsed().as_millis()))?;
    let [v4, v6] = service;
    screen.line(&format!("{NAME:<24}{} and {}, port {}", v4.ip(), v6.ip(), v4.port()))?;
    screen.line(&format!("{:<24}node port {NODE_PORT}/TCP", ""))?;
    let cgroup = node.cgroup().join(format!("fairlead-{NODE}/pod{uid}/{CLIENT}"));
    Ok((Guest::enter(CLIENT, node, &cgroup)?, client.addresses, service))
}

fn few(target: SocketAddr) -> Load {
    let timeout = Duration::from_secs(5);
    Load { target, protocol: Protocol::Http, rate: 200, until: Until::Sent(30), timeout }
}

fn has_all(tally: &Tally, names: &BTreeSet<String>) -> bool {
    tally.failed == 0 && tally.answers.keys().cloned().collect::<BTreeSet<_>>() == *names
}

/// The first words of the lines that `getent ahosts` prints.
fn addresses(lines: &str) -> BTreeSet<IpAddr> {
    lines.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

fn wait_in_sync(
    screen: &mut Screen,
    interrupt: &Interrupt,
    agent: &mut Proxy,
    mut is_in_sync: impl FnMut() -> Result<bool, sandbox::SpawnError>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    screen.progress("fairlead node loads its programs into the kernel ...")?;
    let waited = until(interrupt, "fairlead node is not in sync", || {
        if agent.has_ended()? {
            bail!("fairlead node did not start");
        }
        Ok(is_in_sync().context("asking the node for its status")?.then_some(()))
    });
    waited.map_err(|error| beside(&error, agent))?;
    let took = started.elapsed().as_millis();
    Ok(screen.line(&format!("in sync after {took} ms: fairlead node, the node's agent"))?)
}

/// An error, and the end of what the agent has said.
fn beside(error: &anyhow::Error, agent: &Proxy) -> anyhow::Error {
    let log = agent.log();
    let lines: Vec<_> = log.lines().collect();
    let last = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
    anyhow!("{error:#}. fairlead node said:\n  {}", last.join("\n  "))
}
