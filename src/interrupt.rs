//! Ctrl-C and SIGTERM, as something to ask about between two steps: what was built is taken down
//! in order, not torn away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use sandbox::wait;
use tokio::signal::unix::{SignalKind, signal};

/// Whether somebody wants this to end.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    has_come: Arc<AtomicBool>,
}

impl Interrupt {
    /// From now on signals are noted, and no longer end the process.
    pub(crate) fn catch() -> anyhow::Result<Self> {
        let has_come = Arc::new(AtomicBool::new(false));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("preparing to catch signals")?;
        let in_runtime = runtime.enter();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        drop(in_runtime);
        let note = Arc::clone(&has_come);
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
            });
            note.store(true, Ordering::Relaxed);
        })?;
        Ok(Self { has_come })
    }

    /// Whether one has come.
    pub(crate) fn has_come(&self) -> bool {
        self.has_come.load(Ordering::Relaxed)
    }

    /// Waits for a condition; an error if a signal comes first.
    pub(crate) fn wait_until(
        &self,
        timeout: Duration,
        mut condition: impl FnMut() -> bool,
    ) -> anyhow::Result<bool> {
        let mut held = false;
        wait::until(timeout, || {
            held = condition();
            held || self.has_come()
        });
        if self.has_come() {
            bail!("interrupted");
        }
        Ok(held)
    }
}
