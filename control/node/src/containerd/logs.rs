//! Logs that containerd writes and the agent sets aside when they are full, as kubelet does.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::cri::{
    self, ContainerFilter, ContainerName, ContainerState, Done, ListContainersRequest,
    ListContainersResponse,
};
use super::grpc::Client;
use super::{spec, watch};
use crate::log::{MAX_SIZE, set_aside};

/// How often logs are looked at, as kubelet's default has it.
const EVERY: Duration = Duration::from_secs(10);

/// Keeps the logs of a node's containers short, for ever.
pub(super) async fn keep_short(client: &Client, node: &str) {
    loop {
        tokio::time::sleep(EVERY).await;
        if let Err(error) = look_at_all(client, node).await {
            tracing::debug!(%error, "the logs will be looked at again");
        }
    }
}

async fn look_at_all(client: &Client, node: &str) -> io::Result<()> {
    let filter = ContainerFilter { label_selector: spec::selector(node, None) };
    let asked = ListContainersRequest { filter: Some(filter) };
    let list: ListContainersResponse = client.call(cri::RUNTIME, "ListContainers", &asked).await?;
    let running = ContainerState::Running as i32;
    for one in list.containers.into_iter().filter(|one| one.state == running) {
        let path = watch::look(client, &one.id).await?.log();
        if !set_aside_if_full(&path)? {
            continue;
        }
        let name = ContainerName { container_id: one.id };
        let _: Done = client.call(cri::RUNTIME, "ReopenContainerLog", &name).await?;
    }
    Ok(())
}

/// Whether it was full.
fn set_aside_if_full(path: &Path) -> io::Result<bool> {
    let is_full = fs::metadata(path).is_ok_and(|meta| meta.len() > MAX_SIZE);
    if is_full {
        set_aside(path)?;
    }
    Ok(is_full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_set_aside_and_another_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        assert!(!set_aside_if_full(&path).unwrap());
        let file = fs::File::create(&path).unwrap();
        file.set_len(MAX_SIZE).unwrap();
        assert!(!set_aside_if_full(&path).unwrap());
        file.set_len(MAX_SIZE + 1).unwrap();
        assert!(set_aside_if_full(&path).unwrap());
        assert!(dir.path().join("0.log.1").exists() && !path.exists());
    }
}
