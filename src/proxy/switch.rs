//! Takes new connections over from the mode that this node had before, and removes what that left
//! once nothing needs it.
//!
//! ```text
//!  this mode: apply ─▶ activate ─┐
//!  the others:                   └─▶ drain ─▶ established connections end ─▶ retire
//! ```
//!
//! Whoever drains leaves new connections alone and goes on with those that it has. The eBPF mode keeps
//! its frontends until the next look, since a connection that is being opened is found by its frontend.
//! What it leaves then stays until `fairlead cleanup`: the kernel does not tell which sockets need the
//! way back.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use load::pins::Pins;
use load::{Config, probe};
use proxy::backend::Backend;
use proxy::backend::ebpf::{Ebpf, Sockets};
use proxy::backend::iptables::Iptables;
use proxy::backend::ipvs::{Ipvs, Options};
use proxy::backend::nftables::{self, Nftables};
use proxy::config::ProxyMode;
use proxy::conntrack;
use proxy::delta::Op;
use proxy::plan::Settings;
use proxy::sync::Round;
use tokio::sync::watch;
use tracing::{info, warn};

/// How often it is looked whether established connections have ended.
const PERIOD: Duration = Duration::from_secs(10);

/// A node's change of mode.
#[derive(Debug)]
pub(super) struct Switch {
    mode: ProxyMode,
    config: Config,
    sockets: Sockets,
    left: Vec<ProxyMode>,
    /// The eBPF mode leaves new connections alone since the last look.
    is_ebpf_drained: bool,
}

/// What is left to do about one mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Nothing.
    Nothing,
    /// To look again.
    Something,
}

impl Switch {
    /// From whatever there is to a mode.
    pub(super) fn to(mode: ProxyMode, config: Config, sockets: Sockets) -> Self {
        let all = [ProxyMode::Ebpf, ProxyMode::Nftables, ProxyMode::Iptables, ProxyMode::Ipvs];
        let left = all.into_iter().filter(|other| *other != mode).collect();
        Self { mode, config, sockets, left, is_ebpf_drained: false }
    }

    /// Waits until the new mode is in charge, then sees to the others; for ever.
    pub(super) async fn see_to(mut self, mut seen: watch::Receiver<Option<Arc<Round>>>) {
        let is_active = |round: &Option<Arc<Round>>| round.as_ref().is_some_and(|it| it.is_active);
        if seen.wait_for(is_active).await.is_err() {
            return std::future::pending().await;
        }
        while !self.left.is_empty() {
            let step = tokio::task::spawn_blocking(move || {
                self.step();
                self
            });
            match step.await {
                Ok(back) => self = back,
                Err(_) => break,
            }
            tokio::time::sleep(PERIOD).await;
        }
        std::future::pending::<()>().await;
    }

    fn step(&mut self) {
        let left = std::mem::take(&mut self.left);
        self.left = left.into_iter().filter(|mode| self.see_to_one(*mode)).collect();
    }

    /// Says whether there is something left to do.
    fn see_to_one(&mut self, mode: ProxyMode) -> bool {
        let done = match mode {
            ProxyMode::Ebpf => self.drain_ebpf(),
            ProxyMode::Nftables => self.retire(Nftables::new(), nftables::is_there()),
            ProxyMode::Iptables => self.retire(Iptables::new(), Iptables::is_there()),
            ProxyMode::Ipvs => self.retire(Ipvs::new(Options::default()), Ipvs::is_there()),
        };
        match done {
            Ok(left) => left == Left::Something,
            Err(error) => {
                warn!("what the mode {} left is still there: {error:#}", mode.name());
                true
            }
        }
    }

    /// Its hooks stay as long as translated connections need any.
    fn retire(&self, mut old: impl Backend, is_there: bool) -> anyhow::Result<Left> {
        if !is_there {
            return Ok(Left::Nothing);
        }
        old.prepare()?;
        let drained = old.drain()?;
        // Its connections are its own.
        if drained.flows.is_some_and(|n| n > 0) {
            return Ok(Left::Something);
        }
        // Where this mode translates by netfilter itself, its own hooks do for them.
        if self.mode == ProxyMode::Ebpf && conntrack::n_translated()? > 0 {
            return Ok(Left::Something);
        }
        old.retire()?;
        info!("removed what the mode {} left", old.name());
        Ok(Left::Nothing)
    }

    /// Connections that the programs know go on; at the second look they know of no frontend any more.
    fn drain_ebpf(&mut self) -> anyhow::Result<Left> {
        let bpffs: PathBuf = self.config.bpffs.clone();
        if probe::bpffs(&bpffs).is_err() || Pins::new(bpffs).is_empty() {
            return Ok(Left::Nothing);
        }
        let config = self.config.clone();
        let mut old = Ebpf::new(config).with_sockets(self.sockets);
        let actual = old.prepare()?;
        old.drain()?;
        if !self.is_ebpf_drained {
            self.is_ebpf_drained = true;
            info!("the mode ebpf leaves new connections alone");
            return Ok(Left::Something);
        }
        let mut ops: Vec<Op> = Vec::new();
        ops.push(Op::Settings(Arc::new(Settings::default())));
        // An address without a frontend would be refused as long as it is a Service's.
        ops.extend(actual.addresses.keys().map(|address| Op::Disown { address: *address }));
        ops.extend(actual.frontends.keys().map(|key| Op::Remove { key: *key }));
        let n = ops.len();
        for result in old.apply(&ops).results {
            result?;
        }
        info!(n, "removed what the mode ebpf left but for its connections");
        Ok(Left::Nothing)
    }
}
