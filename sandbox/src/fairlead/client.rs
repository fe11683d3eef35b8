//! A client in a pod, and what it has counted so far.

use std::{
    io::{self, BufRead, BufReader},
    process::{ChildStdin, ChildStdout, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use super::Fairlead;
use crate::{
    error::SpawnError,
    guest::Guest,
    node::Node,
    pod::Pod,
    process::{Launch, Process},
    traffic::{
        Load, Tally, Until,
        compare::{Comparison, Costs},
    },
    wait,
};

/// How long a client may take to count its last request.
const LAST_WORD: Duration = Duration::from_secs(15);

/// Why there is nothing to be learnt from a client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// What it prints cannot be read.
    #[error("reading what the client in {pod} counted")]
    Read {
        /// Where.
        pod: String,
        /// What went wrong.
        source: io::Error,
    },
    /// It ended before its work was done.
    #[error("the client in {pod} failed: {words}")]
    Failed {
        /// Where.
        pod: String,
        /// What it said.
        words: String,
    },
}

/// A client that is sending.
#[derive(Debug)]
pub struct Client {
    pod: String,
    process: Process,
    stdin: Option<ChildStdin>,
    tally: Arc<Mutex<Tally>>,
    reader: Option<JoinHandle<io::Result<()>>>,
}

impl Fairlead {
    /// Starts to send `load` from `pod`.
    ///
    /// # Errors
    /// When the client cannot be started.
    pub fn client(&self, pod: &Pod, load: &Load) -> Result<Client, ClientError> {
        self.send(pod.name(), pod.command(self.path()), load)
    }

    /// The same from a pod that an agent runs.
    ///
    /// # Errors
    /// As [`Fairlead::client`].
    pub fn client_in(&self, guest: &Guest, load: &Load) -> Result<Client, ClientError> {
        self.send(guest.name(), guest.command(self.path()), load)
    }

    /// The same from `node` itself.
    ///
    /// # Errors
    /// As [`Fairlead::client`].
    pub fn client_on(&self, node: &Node, load: &Load) -> Result<Client, ClientError> {
        self.send(node.name(), node.command(self.path()), load)
    }

    fn send(&self, place: &str, launch: Launch, load: &Load) -> Result<Client, ClientError> {
        let mut launch = launch
            .args(["client", "--target", &load.target.to_string()])
            .args(["--protocol", &load.protocol.to_string()])
            .args(["--rate", &load.rate.to_string()])
            .args(["--timeout-ms", &load.timeout.as_millis().to_string()]);
        launch = match load.until {
            Until::Told => launch,
            Until::Over(time) => launch.args(["--duration-ms", &time.as_millis().to_string()]),
            Until::Sent(n) => launch.args(["--count", &n.to_string()]),
        };
        let mut process = launch.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (stdin, stdout) = (process.stdin(), process.stdout());
        let tally = Arc::<Mutex<Tally>>::default();
        let reader = stdout.map(|stdout| {
            let tally = Arc::clone(&tally);
            thread::spawn(move || read_tallies(stdout, &tally))
        });
        Ok(Client { pod: place.to_owned(), process, stdin, tally, reader })
    }

    /// Measures two ways to the same servers from a pod that an agent runs.
    ///
    /// # Errors
    /// When a request fails, or the client cannot be run.
    pub fn compare(&self, guest: &Guest, comparison: &Comparison) -> Result<Costs, ClientError> {
        let direct = comparison.direct.iter().flat_map(|d| ["--direct".to_owned(), d.to_string()]);
        let output = guest
            .command(self.path())
            .args(["client", "--target", &comparison.service.to_string()])
            .args(["--protocol", &comparison.protocol.to_string()])
            .args(direct)
            .args(["--rounds", &comparison.n_rounds.to_string()])
            .args(["--requests", &comparison.n_requests.to_string()])
            .output()?;
        let pod = guest.name().to_owned();
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(ClientError::Failed { pod, words });
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| ClientError::Read { pod, source: error.into() })
    }
}

impl Client {
    /// What it has counted so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets it send until it has done `n` requests more, or until `timeout` is over.
    pub fn after(&self, n: u64, timeout: Duration) -> bool {
        let goal = self.tally().requests + n;
        wait::until(timeout, || self.tally().requests >= goal)
    }

    /// Tells it to stop, if it does not know when, and returns its last word.
    ///
    /// # Errors
    /// When it ended before its work was done.
    pub fn finish(mut self) -> Result<Tally, ClientError> {
        drop(self.stdin.take());
        // A client that knows when to stop needs as long as that; without news it is given up.
        let mut seen = self.tally();
        while !seen.done {
            let news = wait::value(LAST_WORD, || Some(self.tally()).filter(|now| *now != seen));
            match news {
                Some(now) => seen = now,
                None => return Err(self.failure("no word from it")),
            }
        }
        match self.reader.take().map(JoinHandle::join) {
            Some(Ok(Ok(()))) | None => Ok(self.tally()),
            Some(Ok(Err(source))) => Err(ClientError::Read { pod: self.pod.clone(), source }),
            Some(Err(_)) => Err(self.failure("its reader panicked")),
        }
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    fn failure(&self, words: &str) -> ClientError {
        ClientError::Failed { pod: self.pod.clone(), words: words.to_owned() }
    }
}

/// A line a tally, each counting from the start.
fn read_tallies(stdout: ChildStdout, tally: &Mutex<Tally>) -> io::Result<()> {
    for line in BufReader::new(stdout).lines() {
        let now: Tally = serde_json::from_str(&line?)?;
        *tally.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
    Ok(())
}
