//! The demo's cluster: a node with three servers and a client, a Service in YAML, and the proxy.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use sandbox::{
    Addresses, BuildError, Node, Pod, Process, Sandbox,
    fairlead::{Fairlead, Proxy, ProxyOptions},
    hello,
    manifest::{self, Endpoint, Folder, Service},
};

use super::{keep, screen::Screen};
use crate::interrupt::Interrupt;

/// The Service's addresses, from the range that Kubernetes documents use.
const CLUSTER_IP_V4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const CLUSTER_IP_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xa);
/// The node's name.
pub(super) const NODE: &str = "node-a";
/// Its pods are known by the ranges in its Node object.
pub(super) const DETECT_LOCAL: &str = "--detect-local-mode=NodeCIDR";
/// The Service's port.
const PORT: u16 = 80;
/// The port of the node that leads there.
const NODE_PORT: u16 = 30_080;
/// How long the proxy may take; it loads its programs into the kernel first.
const IN_SYNC_WITHIN: Duration = Duration::from_secs(60);
/// The last lines of the proxy's log that an error shows.
const LOG_LINES: usize = 5;

/// A pod that serves.
#[derive(Debug)]
pub(super) struct Web {
    pub(super) pod: Pod,
    pub(super) server: Process,
}

/// All of it. What runs ends before what it runs in.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) proxy: Proxy,
    pub(super) webs: Vec<Web>,
    pub(super) client: Pod,
    /// Another machine, which is no node of the cluster.
    pub(super) outside: Node,
    node_addresses: Addresses,
    pub(super) service: Service,
    pub(super) folder: Folder,
    pub(super) bpffs: PathBuf,
    pub(super) fairlead: Fairlead,
    _sandbox: Sandbox,
}

impl Cluster {
    /// Builds it, and waits until the proxy is in sync.
    pub(super) fn build(
        screen: &mut Screen,
        interrupt: &Interrupt,
        name: &str,
    ) -> anyhow::Result<Self> {
        screen.step("A node and its pods, out of network namespaces and cgroups")?;
        let started = Instant::now();
        let fairlead = Fairlead::this();
        let sandbox = Sandbox::create(name).map_err(|error| match error {
            BuildError::Running { pid, .. } => anyhow!(
                "a demo is running in process {pid}: end it with `{} demo --stop`",
                keep::this()
            ),
            other => other.into(),
        })?;
        let node = sandbox.node(NODE)?;
        let webs = ["web-1", "web-2", "web-3"]
            .into_iter()
            .map(|name| {
                let pod = node.pod(name)?;
                let server = fairlead.hello(&pod)?;
                Ok(Web { pod, server })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let client = node.pod("client")?;
        let outside = sandbox.node("outside")?;
        for pod in webs.iter().map(|web| &web.pod).chain([&client]) {
            let Addresses { v4, v6 } = pod.addresses();
            screen.line(&format!("{:<8}{v4:<14}{v6}", pod.name()))?;
        }
        let Addresses { v4, v6 } = outside.addresses();
        screen.line(&format!("{:<8}{v4:<14}{v6}  another machine", outside.name()))?;
        screen.line(&format!("built in {} ms", started.elapsed().as_millis()))?;

        screen.step("A Service in front of them, from a folder of YAML")?;
        let service = Service::new("default", "hello")
            .cluster_ip(CLUSTER_IP_V4)
            .cluster_ip(CLUSTER_IP_V6)
            .tcp("http", PORT, hello::PORT)
            .node_port(NODE_PORT)
            .udp("udp", PORT, hello::PORT);
        let endpoints: Vec<_> = webs.iter().map(|web| Endpoint::of(&web.pod)).collect();
        let folder = Folder::create(&sandbox.dir().join("objects"))?;
        folder.write(NODE, &manifest::node_yaml(&node))?;
        folder.write_service(&service, &endpoints)?;
        screen.line(&format!(
            "{:<8}{CLUSTER_IP_V4} and {CLUSTER_IP_V6}, port {PORT}/TCP and {PORT}/UDP",
            service.name()
        ))?;
        screen.line(&format!("        node port {NODE_PORT}/TCP"))?;
        let bpffs = node.bpffs()?;
        let options = ProxyOptions {
            objects: folder.path().to_owned(),
            cgroup: node.cgroup().to_owned(),
            bpffs: bpffs.clone(),
            names: false,
            more: vec![DETECT_LOCAL.into()],
        };
        let log = sandbox.dir().join("proxy.log");
        let mut proxy = fairlead.proxy(&node, &options, &log)?;
        wait_in_sync(screen, interrupt, &mut proxy, || fairlead.is_in_sync(&node, &bpffs))?;
        let _sandbox = sandbox;
        let node_addresses = node.addresses();
        Ok(Self {
            proxy,
            webs,
            client,
            outside,
            node_addresses,
            service,
            folder,
            bpffs,
            fairlead,
            _sandbox,
        })
    }

    /// The Service's node port, over IPv4 and IPv6.
    pub(super) fn node_ports(&self) -> [SocketAddr; 2] {
        self.node_addresses.both().map(|address| (address, NODE_PORT).into())
    }

    /// Lets the Service keep the source of what comes from outside.
    pub(super) fn keep_source(&mut self) -> anyhow::Result<()> {
        self.service = self.service.clone().external_traffic_local();
        let endpoints: Vec<_> = self.webs.iter().map(|web| Endpoint::of(&web.pod)).collect();
        Ok(self.folder.write_service(&self.service, &endpoints)?)
    }

    /// The Service over IPv4.
    pub(super) fn service_v4(&self) -> SocketAddr {
        (CLUSTER_IP_V4, PORT).into()
    }

    /// The Service over IPv6.
    pub(super) fn service_v6(&self) -> SocketAddr {
        (CLUSTER_IP_V6, PORT).into()
    }

    /// The names of the pods that serve.
    pub(super) fn web_names(&self) -> impl Iterator<Item = &str> {
        self.webs.iter().map(|web| web.pod.name())
    }
}

fn wait_in_sync(
    screen: &mut Screen,
    interrupt: &Interrupt,
    proxy: &mut Proxy,
    mut is_in_sync: impl FnMut() -> Result<bool, sandbox::SpawnError>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    screen.progress("fairlead proxy loads its programs into the kernel ...")?;
    let (mut in_sync, mut has_ended) = (Ok(false), false);
    interrupt.wait_until(IN_SYNC_WITHIN, || {
        has_ended = proxy.has_ended().unwrap_or(true);
        in_sync = is_in_sync();
        has_ended || !matches!(in_sync, Ok(false))
    })?;
    if in_sync.context("asking the proxy for its status")? && !has_ended {
        let took = started.elapsed().as_millis();
        return Ok(screen.line(&format!("in force after {took} ms: fairlead proxy is in sync"))?);
    }
    let log = proxy.log();
    let lines: Vec<_> = log.lines().collect();
    let last = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n  ");
    if has_ended {
        bail!("fairlead proxy did not start. It said:\n  {last}");
    }
    bail!("fairlead proxy is not in sync after {} s. It said:\n  {last}", IN_SYNC_WITHIN.as_secs())
}
