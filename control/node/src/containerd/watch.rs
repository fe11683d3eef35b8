//! What becomes of containers and sandboxes: their processes are watched, and containerd then says
//! how they ended.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::sleep;

use super::cri::{
    self, ContainerState, ContainerStatus, ContainerStatusRequest, ContainerStatusResponse,
    PodSandboxState, PodSandboxStatusRequest, PodSandboxStatusResponse,
};
use super::grpc::{CallError, Client};
use super::spec::LAST_WORDS;
use crate::identity::Identity;
use crate::runtime::{Ended, FoundState};

/// How soon containerd has taken in that a process has ended …
const LOOK: Duration = Duration::from_millis(20);
/// … and how often it is asked when it does not answer.
const AGAIN: Duration = Duration::from_secs(1);

/// A container, as containerd has it.
#[derive(Debug)]
pub(super) struct Seen {
    status: ContainerStatus,
    process: Option<Identity>,
}

impl Seen {
    pub(super) fn is_over(&self) -> bool {
        let begun = [ContainerState::Created, ContainerState::Running];
        begun.iter().all(|state| self.status.state != *state as i32)
    }

    /// Where containerd writes what it says.
    pub(super) fn log(&self) -> PathBuf {
        self.status.log_path.clone().into()
    }

    pub(super) fn into_found(self) -> FoundState {
        if self.is_over() {
            FoundState::Ended(end(self.status))
        } else {
            let since = time(self.status.started_at).unwrap_or_else(Timestamp::now);
            FoundState::Running { since }
        }
    }
}

/// Looks at a container once.
pub(super) async fn look(client: &Client, name: &str) -> Result<Seen, CallError> {
    let asked = ContainerStatusRequest { container_id: name.to_owned(), verbose: true };
    let answer: ContainerStatusResponse =
        client.call(cri::RUNTIME, "ContainerStatus", &asked).await?;
    let process = process(answer.info.get("info"));
    Ok(Seen { status: answer.status.unwrap_or_default(), process })
}

/// Returns a container's end.
pub(super) async fn ended(client: &Client, name: &str) -> Ended {
    loop {
        match look(client, name).await {
            Ok(seen) if seen.is_over() => return end(seen.status),
            Ok(seen) => until_ended(seen.process).await,
            Err(error) if error.is_not_found() => return Ended::lost(None),
            Err(error) => {
                tracing::debug!(%error, "a container will be looked at again");
                sleep(AGAIN).await;
            }
        }
    }
}

/// Returns when a sandbox is no longer whole.
pub(super) async fn sandbox_ended(client: &Client, id: &str) {
    loop {
        match sandbox(client, id).await {
            Ok((PodSandboxState::Ready, process)) => until_ended(process).await,
            Ok((PodSandboxState::NotReady, _)) => return,
            Err(error) if error.is_not_found() => return,
            Err(error) => {
                tracing::debug!(%error, "a sandbox will be looked at again");
                sleep(AGAIN).await;
            }
        }
    }
}

/// The process that holds a sandbox's namespaces, if it lives.
pub(super) async fn sandbox_pid(client: &Client, id: &str) -> Result<Option<Identity>, CallError> {
    Ok(sandbox(client, id).await?.1)
}

async fn sandbox(
    client: &Client,
    id: &str,
) -> Result<(PodSandboxState, Option<Identity>), CallError> {
    let asked = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
    let answer: PodSandboxStatusResponse =
        client.call(cri::RUNTIME, "PodSandboxStatus", &asked).await?;
    let state = answer.status.unwrap_or_default().state();
    Ok((state, process(answer.info.get("info"))))
}

/// Returns when a process has ended, and a moment later.
async fn until_ended(process: Option<Identity>) {
    if let Some(process) = process
        && let Err(error) = process.ended().await
    {
        tracing::warn!(%error, "watching a process failed");
    }
    sleep(LOOK).await;
}

/// The process that containerd's own words about something name, if it lives.
fn process(info: Option<&String>) -> Option<Identity> {
    let info: Value = serde_json::from_str(info?).ok()?;
    let pid = i32::try_from(info.get("pid")?.as_i64()?).ok().filter(|pid| *pid > 0)?;
    Identity::of(pid).ok()
}

fn end(status: ContainerStatus) -> Ended {
    if status.state == ContainerState::Unknown as i32 {
        return Ended::lost(time(status.started_at));
    }
    let words = || status.annotations.get(LAST_WORDS).map(|file| last_words(file));
    let message = if status.message.is_empty() {
        words().unwrap_or_default()
    } else {
        status.message.clone()
    };
    Ended {
        exit_code: status.exit_code,
        signal: None,
        message,
        started_at: time(status.started_at),
        finished_at: time(status.finished_at).unwrap_or_else(Timestamp::now),
        reason: status.reason,
    }
}

/// A time in nanoseconds since 1970; 0 says that it never was.
fn time(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds > 0).then(|| Timestamp::from_nanosecond(nanoseconds.into()).ok())?
}

/// What a container wrote to its termination log, 4 KiB at most.
fn last_words(file: &str) -> String {
    let mut words = Vec::new();
    let read = File::open(file).and_then(|file| file.take(4096).read_to_end(&mut words));
    match read {
        Ok(_) => String::from_utf8_lossy(&words).into_owned(),
        Err(error) => {
            let expected = error.kind() == io::ErrorKind::NotFound;
            tracing::debug!(%error, expected, "a container's last words are lost");
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: ContainerState) -> ContainerStatus {
        ContainerStatus { state: state.into(), started_at: 1_000_000_000, ..Default::default() }
    }

    #[test]
    fn a_container_runs_or_has_ended_as_containerd_says() {
        let found = |status| Seen { status, process: None }.into_found();
        let FoundState::Running { since } = found(status(ContainerState::Running)) else {
            panic!("it runs")
        };
        assert_eq!(since.as_second(), 1);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "good-bye").unwrap();
        let words = file.path().display().to_string();
        let exited = ContainerStatus {
            exit_code: 3,
            reason: "Error".into(),
            finished_at: 2_000_000_000,
            annotations: [(LAST_WORDS.to_owned(), words)].into(),
            ..status(ContainerState::Exited)
        };
        let FoundState::Ended(ended) = found(exited) else { panic!("it has ended") };
        assert_eq!((ended.exit_code, ended.message.as_str()), (3, "good-bye"));
        assert_eq!(ended.finished_at.as_second(), 2);
        let FoundState::Ended(unknown) = found(status(ContainerState::Unknown)) else {
            panic!("nobody knows")
        };
        assert_eq!(unknown.reason, "ContainerStatusUnknown");
    }

    #[test]
    fn a_process_is_found_in_what_containerd_says() {
        let own = format!("{{\"pid\": {}, \"other\": 1}}", std::process::id());
        assert_eq!(process(Some(&own)), Some(Identity::own().unwrap()));
        assert_eq!(process(Some(&"{\"pid\": 0}".to_owned())), None);
        assert_eq!(process(None), None);
    }
}
