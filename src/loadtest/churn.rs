//! Endpoints that come and go while the Service is measured.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use loadtest::change::{Change, Effect, effects};
use loadtest::clock;
use loadtest::experiment::Round;
use sandbox::manifest::Folder;

use super::folder::Tested;
use super::target::Endpoint;

/// Whose endpoints change.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) arm_idx: usize,
    pub(super) folder: Folder,
    pub(super) tested: Tested,
    pub(super) endpoints: Vec<Endpoint>,
}

/// The changes, and what was noticed of them.
#[derive(Debug)]
pub(super) struct Churn {
    every: Duration,
    places: Vec<Place>,
    running: Option<Running>,
    /// All effects, in the order of their changes.
    pub(super) effects: Vec<Effect>,
    /// What went wrong with the writing.
    pub(super) failures: Vec<String>,
}

#[derive(Debug)]
struct Running {
    /// Dropped, it ends the thread.
    stop: Sender<()>,
    thread: JoinHandle<anyhow::Result<Vec<Change>>>,
}

impl Churn {
    /// `rate` changes a second.
    pub(super) fn new(rate: f64, places: Vec<Place>) -> Self {
        let every = Duration::from_secs_f64(1.0 / rate.max(1e-3));
        Self { every, places, running: None, effects: Vec::new(), failures: Vec::new() }
    }

    /// Begins to change the endpoints of an arm, if they are to change.
    pub(super) fn begin(&mut self, arm_idx: usize) {
        let Some(place) = self.places.iter().find(|it| it.arm_idx == arm_idx).cloned() else {
            return;
        };
        let (stop, stopped) = channel();
        let every = self.every;
        let thread = thread::spawn(move || {
            let mut changes = Vec::new();
            // The first comes after half a period, so that the slice begins as it ends: whole.
            let mut wait = every / 2;
            for n in 0_usize.. {
                match stopped.recv_timeout(wait) {
                    Err(RecvTimeoutError::Timeout) => changes.push(place.change(n)?),
                    _ => break,
                }
                wait = every;
            }
            place.write(&place.endpoints)?;
            Ok(changes)
        });
        self.running = Some(Running { stop, thread });
    }

    /// Ends the changes, and looks at what clients noticed.
    pub(super) fn end(&mut self, round: &Round) {
        let Some(Running { stop, thread }) = self.running.take() else { return };
        drop(stop);
        match thread.join() {
            Ok(Ok(changes)) => {
                let end = round.tally.end;
                let within: Vec<Change> = changes.into_iter().filter(|it| it.at < end).collect();
                self.effects.extend(effects(&within, &round.tally.hits, end));
            }
            Ok(Err(error)) => self.failures.push(format!("{error:#}")),
            Err(_) => self.failures.push("the thread that changes endpoints died".to_owned()),
        }
    }
}

impl Place {
    /// Change number `n`: an endpoint goes, then it comes back, then it is the next one's turn.
    fn change(&self, n: usize) -> anyhow::Result<Change> {
        let is_added = n % 2 == 1;
        let turn = (n / 2).checked_rem(self.endpoints.len()).unwrap_or_default();
        let away = self.endpoints.get(turn).context("there are no endpoints to change")?;
        let left = self.endpoints.iter().filter(|it| is_added || it.name != away.name).cloned();
        let at = clock::now();
        self.write(&left.collect::<Vec<_>>())?;
        Ok(Change { at, endpoint: away.name.clone().unwrap_or_default(), is_added })
    }

    fn write(&self, endpoints: &[Endpoint]) -> anyhow::Result<()> {
        let place = self.folder.path().display();
        self.folder
            .write("endpoints", &self.tested.slices_yaml(endpoints))
            .with_context(|| format!("writing the endpoints to {place}"))
    }
}
