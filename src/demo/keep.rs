//! What is left to do with a demo: look around, send requests, end it.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::Path,
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sandbox::{Sandbox, wait};

use super::{
    cluster::{Cluster, DETECT_LOCAL, NODE},
    objects::{CLIENT, NAME},
    screen::Screen,
};
use crate::interrupt::Interrupt;

/// For ever, as far as a person at a terminal is concerned.
const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a demo may take to end.
const END_WITHIN: Duration = Duration::from_secs(30);

/// Keeps all of it until Ctrl-C, and says what can be done meanwhile.
pub(super) fn hold(
    screen: &mut Screen,
    interrupt: &Interrupt,
    cluster: Cluster,
) -> anyhow::Result<()> {
    let this = this();
    let (kubeconfig, bpffs) = (cluster.kubeconfig.display(), cluster.bpffs.display());
    let [service, _] = cluster.service();
    let [node_port, _] = cluster.node_ports();
    let on_node = format!("{this} demo --in {NODE} --");
    screen.line("")?;
    screen.line("All of it goes on running. In another terminal, as root:")?;
    for (what, command) in [
        ("ask the Service, as the pod `client`", {
            format!("{this} demo --in {CLIENT} -- curl -s http://{}", service.ip())
        }),
        ("ask its node port, from another machine", {
            format!("{this} demo --in outside -- curl -s http://{node_port}/source")
        }),
        ("ask why that goes where it goes", {
            format!(
                "{on_node} {this} explain {} {service}/tcp --hostname-override {NODE} \
                 {DETECT_LOCAL} --kubeconfig {kubeconfig} --bpffs {bpffs}",
                cluster.client_addresses.v4,
            )
        }),
        ("ask the node how it is", format!("{this} status --bpffs {bpffs}")),
        ("change what there is, with any kubectl", {
            format!(
                "{on_node} kubectl --kubeconfig {kubeconfig} scale deployment {NAME} --replicas=5"
            )
        }),
        ("kill the node's agent: the pods and the Service go on", {
            format!("kill -9 {}", cluster.agent.id())
        }),
        ("end the demo (or Ctrl-C here)", format!("{this} demo --stop")),
    ] {
        screen.line("")?;
        screen.line(&format!("# {what}"))?;
        screen.line(&command)?;
    }
    interrupt.wait_until(A_YEAR, || false).map(drop).or_else(|_| {
        drop(cluster);
        screen.success("Ended; nothing is left behind.").map_err(Into::into)
    })
}

/// What to try next, when nothing is left running.
pub(super) fn suggest(screen: &mut Screen) -> anyhow::Result<()> {
    let this = this();
    screen.line("Nothing is left behind. Next:")?;
    screen.line("")?;
    screen.line(&format!("{:<43} # the same, left running", format!("{this} demo --keep")))?;
    screen.line(&format!("{:<43} # on a node of a cluster", format!("{this} proxy --help")))?;
    Ok(())
}

/// Ends the demo that is running, if one is, and sweeps up after one that was killed.
pub(super) fn stop(screen: &mut Screen, name: &str) -> anyhow::Result<()> {
    if let Some(pid) = Sandbox::owner(name) {
        kill(Pid::from_raw(pid), Signal::SIGTERM)
            .with_context(|| format!("ending the demo in process {pid}"))?;
        if !wait::until(END_WITHIN, || Sandbox::owner(name) != Some(pid)) {
            bail!("the demo in process {pid} has not ended within {} s", END_WITHIN.as_secs());
        }
        screen.line(&format!("ended the demo in process {pid}"))?;
    }
    Sandbox::sweep()?;
    Ok(screen.line("no demo is running, and nothing is left behind")?)
}

/// Runs a command in a pod, and ends as it ends.
pub(super) fn run_in(
    name: &str,
    pod: &str,
    program: &OsStr,
    arguments: &[OsString],
) -> anyhow::Result<ExitCode> {
    if Sandbox::owner(name).is_none() {
        bail!("no demo is running: start one with `{} demo --keep`", this());
    }
    let launch = Sandbox::command_in(name, pod, program)
        .with_context(|| format!("the demo has no pod {pod}"))?;
    let mut process = launch.args(arguments).in_foreground().stdin(Stdio::inherit()).spawn()?;
    let code = process.wait(A_YEAR)?.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// How this program was called, so that the next command can be copied.
pub(super) fn this() -> String {
    let called = env::args_os().next().unwrap_or_else(|| "fairlead".into());
    let here = env::current_dir().unwrap_or_default();
    let called = Path::new(&called);
    called.strip_prefix(here).unwrap_or(called).display().to_string()
}
