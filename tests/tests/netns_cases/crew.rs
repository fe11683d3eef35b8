//! The actors of a stage, and all that they have told so far.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sandbox::{Launch, Process};
use tests::actor::{Answer, Arrival, Probe, Report, Request};
use tests::pace::Pace;

/// How long anything may take that ought to happen: a lost packet is sent again after 1 s and 3 s.
const PATIENCE: Duration = Duration::from_secs(8);

/// Everybody on the stage.
#[derive(Debug, Default)]
pub(crate) struct Crew {
    actors: HashMap<String, Actor>,
    heard: Arc<Heard>,
}

#[derive(Debug)]
struct Actor {
    stdin: ChildStdin,
    // Killed with the crew.
    _process: Process,
}

/// What was told of each packet since the numbers began anew.
#[derive(Debug, Default)]
struct Heard {
    told: Mutex<Told>,
    more: Condvar,
}

/// What was told of the packets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    n_ready: usize,
    n_closed: usize,
    /// Where the first packet was delivered, and how it looked there.
    pub(crate) arrivals: HashMap<u16, (String, Arrival)>,
    /// What the one who sent it heard.
    pub(crate) answers: HashMap<u16, Answer>,
}

impl Crew {
    /// Adds an actor where `launch` puts it.
    pub(crate) fn join(&mut self, name: &str, launch: Launch) {
        let mut process = launch.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (process.stdin().unwrap(), process.stdout().unwrap());
        let (heard, place) = (Arc::clone(&self.heard), name.to_owned());
        thread::spawn(move || listen(&place, stdout, &heard));
        self.actors.insert(name.to_owned(), Actor { stdin, _process: process });
    }

    /// Waits until all of them listen.
    pub(crate) fn wait_ready(&self) {
        let n = self.actors.len();
        assert!(self.wait(|told| told.n_ready == n), "not every actor came up");
    }

    /// Lets one of them begin connections.
    pub(crate) fn send(&mut self, name: &str, probes: Vec<Probe>) {
        self.tell(name, &Request::Send(probes));
    }

    /// Gives up what is not decided, and forgets what was told.
    pub(crate) fn close(&mut self) {
        let names: Vec<String> = self.actors.keys().cloned().collect();
        let goal = self.told().n_closed + names.len();
        for name in names {
            self.tell(&name, &Request::Close);
        }
        assert!(self.wait(|told| told.n_closed == goal), "not every actor closes");
        let mut told = self.heard.told.lock().unwrap();
        told.arrivals.clear();
        told.answers.clear();
    }

    /// Waits until what was told is enough, and says whether it was in time.
    pub(crate) fn wait(&self, enough: impl Fn(&Told) -> bool) -> bool {
        let deadline = Instant::now() + Pace::of_this_machine().time(PATIENCE);
        let mut told = self.heard.told.lock().unwrap();
        while !enough(&told) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            told = self.heard.more.wait_timeout(told, left).unwrap().0;
        }
        true
    }

    /// What was told so far.
    pub(crate) fn told(&self) -> Told {
        self.heard.told.lock().unwrap().clone()
    }

    fn tell(&mut self, name: &str, request: &Request) {
        let actor = self.actors.get_mut(name).unwrap_or_else(|| panic!("no actor {name}"));
        let mut line = serde_json::to_vec(request).unwrap();
        line.push(b'\n');
        actor.stdin.write_all(&line).unwrap();
    }
}

fn listen(place: &str, stdout: ChildStdout, heard: &Heard) {
    for line in BufReader::new(stdout).lines() {
        let Ok(line) = line else { return };
        let report = serde_json::from_str(&line).unwrap();
        let mut told = heard.told.lock().unwrap();
        match report {
            Report::Ready => told.n_ready += 1,
            Report::Closed => told.n_closed += 1,
            // The first one counts; what is sent again is the same.
            Report::Arrival(arrival) => {
                told.arrivals.entry(arrival.id).or_insert_with(|| (place.to_owned(), arrival));
            }
            Report::Answer { id, answer } => {
                told.answers.insert(id, answer);
            }
        }
        heard.more.notify_all();
    }
}
