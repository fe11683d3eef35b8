//! What the agent must know of a containerd, as it says itself: its version, its sandboxes' image,
//! and where it looks for networks.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::cni::NETWORK;
use super::cri::{self, StatusRequest, StatusResponse, VersionRequest, VersionResponse};
use super::grpc::{CallError, Client};

/// How soon containerd has read a new network.
const READ_WITHIN: Duration = Duration::from_secs(30);

/// A containerd's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// As a node's status says it.
    pub(super) version: String,
    pub(super) sandbox_image: String,
    /// Where the plugins of networks are.
    pub(super) plugins: PathBuf,
    /// Where networks are described.
    pub(super) networks: PathBuf,
}

impl Settings {
    pub(super) async fn ask(client: &Client) -> io::Result<Self> {
        let asked = VersionRequest::default();
        let version: VersionResponse = client.call(cri::RUNTIME, "Version", &asked).await?;
        let VersionResponse { runtime_name, runtime_version } = version;
        let status = status(client).await?;
        let text = status.info.get("config").map(String::as_str).unwrap_or_default();
        let config = serde_json::from_str(text)?;
        Self::read(format!("{runtime_name}://{runtime_version}"), &config)
    }

    fn read(version: String, config: &Value) -> io::Result<Self> {
        let cgroups = config.pointer("/containerd/runtimes/runc/options/SystemdCgroup");
        if cgroups.and_then(Value::as_bool) == Some(true) {
            return Err(io::Error::other(
                "SystemdCgroup = true in containerd's configuration is not supported: the agent \
                 makes its pods' cgroups itself; set it to false",
            ));
        }
        let text = |name: &str, places: &[&str]| {
            let missing = || io::Error::other(format!("containerd does not say its {name}"));
            let said = places.iter().find_map(|place| config.pointer(place)?.as_str());
            said.map(ToOwned::to_owned).ok_or_else(missing)
        };
        Ok(Self {
            version,
            sandbox_image: text("sandbox_image", &["/sandboxImage"])?,
            // Newer ones have several places for plugins.
            plugins: text("CNI bin_dir", &["/cni/binDir", "/cni/binDirs/0"])?.into(),
            networks: text("CNI conf_dir", &["/cni/confDir"])?.into(),
        })
    }
}

async fn status(client: &Client) -> Result<StatusResponse, CallError> {
    client.call(cri::RUNTIME, "Status", &StatusRequest { verbose: true }).await
}

/// Returns when containerd has read the pods' network.
pub(super) async fn until_network(client: &Client) -> io::Result<()> {
    let deadline = Instant::now() + READ_WITHIN;
    loop {
        let status = status(client).await?;
        let networks = status.info.get("cniconfig").map(String::as_str).unwrap_or_default();
        let has_ours = networks.contains(&format!("\"{NETWORK}\""));
        let conditions = status.status.unwrap_or_default().conditions;
        let missing = conditions.into_iter().find(|one| !one.status);
        match missing {
            None if has_ours => return Ok(()),
            missing if Instant::now() > deadline => {
                let why = missing.map_or_else(
                    || {
                        "another network comes first among containerd's: remove it from the CNI \
                         conf_dir"
                            .to_owned()
                    },
                    |one| format!("{} is false: {}", one.r#type, one.message),
                );
                return Err(io::Error::other(why));
            }
            _ => sleep(Duration::from_millis(50)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containerd_says_where_networks_are() {
        let config = json!({
            "sandboxImage": "fairlead/pause",
            "cni": {"binDir": "/usr/lib/cni", "confDir": "/etc/cni/net.d"},
        });
        let read = Settings::read("containerd://1.6.20".into(), &config).unwrap();
        assert_eq!(read.plugins, PathBuf::from("/usr/lib/cni"));
        let newer = json!({
            "sandboxImage": "p", "cni": {"binDirs": ["/opt/cni/bin"], "confDir": "/c"},
        });
        let read = Settings::read(String::new(), &newer).unwrap();
        assert_eq!(read.plugins, PathBuf::from("/opt/cni/bin"));
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        let read = |config: &Value| Settings::read(String::new(), config).unwrap_err().to_string();
        assert!(read(&json!({})).contains("sandbox_image"));
        let options = json!({"options": {"SystemdCgroup": true}});
        let systemd = json!({"containerd": {"runtimes": {"runc": options}}});
        assert!(read(&systemd).contains("SystemdCgroup"));
    }
}
