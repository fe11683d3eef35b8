//! The pods' network as a CNI plugin: containerd asks this program to link a sandbox, with the
//! addresses that the agent has chosen for it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ipnet::IpNet;
use sandbox::link;
use sandbox::netns::Netns;
use serde::Deserialize;
use serde_json::{Value, json};

use super::spec::{ADDRESSES, UID};
use crate::network::{LINK, Network, gateway};

/// The network's name, and its plugin's.
pub(super) const NETWORK: &str = "fairlead";
const PLUGIN: &str = "fairlead-cni";
/// containerd runs this one as well; ours stands in where nobody has installed another.
const LOOPBACK: &str = "loopback";
/// The capability by which a plugin is told a pod's annotations.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Tells containerd of the network: a file for each plugin that starts `program`, and the list.
pub(super) fn install(
    program: &Path,
    plugins: &Path,
    lists: &Path,
    network: &Network,
) -> io::Result<()> {
    let program = program.to_string_lossy().replace('\'', r"'\''");
    let script = format!("#!/bin/sh\nexec '{program}' cni\n");
    write(plugins, PLUGIN, &script, 0o755)?;
    if !plugins.join(LOOPBACK).exists() {
        write(plugins, LOOPBACK, &script, 0o755)?;
    }
    let list = json!({
        "cniVersion": "1.0.0",
        "name": NETWORK,
        "plugins": [{
            "type": PLUGIN, "ranges": network.ranges(), "mtu": network.mtu(),
            "capabilities": {ANNOTATIONS: true},
        }],
    });
    write(lists, "10-fairlead.conflist", &list.to_string(), 0o644)
}

/// A file that is there whole or not at all, and not written again in vain.
fn write(dir: &Path, name: &str, text: &str, mode: u32) -> io::Result<()> {
    let file = dir.join(name);
    if fs::read_to_string(&file).is_ok_and(|there| there == text) {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    let new = dir.join(format!(".{name}"));
    fs::write(&new, text)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
    fs::rename(new, file)
}

/// What a plugin is told on its standard input.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    cni_version: String,
    r#type: String,
    #[serde(default)]
    ranges: Vec<IpNet>,
    #[serde(default)]
    mtu: Option<u32>,
    #[serde(default)]
    runtime_config: BTreeMap<String, Value>,
}

/// What a plugin is told by its environment.
#[derive(Clone, Debug)]
struct Call {
    command: String,
    netns: PathBuf,
}

/// Answers one call of a CNI plugin: on standard output, as the specification has it.
///
/// # Errors
/// Standard output is closed.
pub fn answer() -> io::Result<ExitCode> {
    let of = |name: &str| std::env::var(name).unwrap_or_default();
    let call = Call { command: of("CNI_COMMAND"), netns: of("CNI_NETNS").into() };
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let (answer, code) = match carry_out(&call, &text) {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        // Codes from 100 on are the plugin's own.
        Err(why) => {
            (json!({"cniVersion": "1.0.0", "code": 100, "msg": why.to_string()}), ExitCode::FAILURE)
        }
    };
    if answer != Value::Null {
        io::stdout().write_all(answer.to_string().as_bytes())?;
    }
    Ok(code)
}

fn carry_out(call: &Call, text: &str) -> io::Result<Value> {
    if call.command == "VERSION" {
        return Ok(json!({"cniVersion": "1.0.0", "supportedVersions": VERSIONS}));
    }
    let asked: Asked = serde_json::from_str(text)?;
    match (asked.r#type.as_str(), call.command.as_str()) {
        (LOOPBACK, "ADD") => add_loopback(call, &asked),
        (PLUGIN, "ADD") => add(call, &asked),
        (PLUGIN, "DEL") => {
            let network = Network::of_another(Vec::new(), None).map_err(io::Error::other)?;
            network.disconnect(&annotation(&asked, UID)?).map_err(io::Error::other)?;
            Ok(Value::Null)
        }
        // The loopback device goes with its namespace; a link is there or the pod is not.
        (LOOPBACK | PLUGIN, "DEL" | "CHECK") => Ok(Value::Null),
        (form, command) => Err(io::Error::other(format!("{form}: no command {command:?}"))),
    }
}

fn add(call: &Call, asked: &Asked) -> io::Result<Value> {
    let uid = annotation(asked, UID)?;
    let addresses = annotation(asked, ADDRESSES)?;
    let parsed = addresses.split(',').filter(|one| !one.is_empty()).map(str::parse);
    let addresses: Vec<IpAddr> = parsed.collect::<Result<_, _>>().map_err(io::Error::other)?;
    let network = Network::of_another(asked.ranges.clone(), asked.mtu).map_err(io::Error::other)?;
    // The kernel may not be done with what an attempt that was given up has made.
    network.disconnect(&uid).map_err(io::Error::other)?;
    network.link(&uid, &call.netns, &addresses).map_err(io::Error::other)?;
    Ok(added(call, asked, &addresses))
}

/// What a pod has come to, as the specification has it.
fn added(call: &Call, asked: &Asked, addresses: &[IpAddr]) -> Value {
    let ips = addresses.iter().zip(&asked.ranges).map(|(address, range)| {
        let with_length = format!("{address}/{}", range.prefix_len());
        json!({"address": with_length, "gateway": gateway(range), "interface": 0})
    });
    json!({
        "cniVersion": asked.cni_version,
        "interfaces": [{"name": LINK, "sandbox": call.netns}],
        "ips": ips.collect::<Vec<Value>>(),
        "dns": {},
    })
}

fn add_loopback(call: &Call, asked: &Asked) -> io::Result<Value> {
    let pod = Netns::open(&call.netns)?;
    link::configure(&pod, async |links| links.set_up("lo", true).await)
        .map_err(io::Error::other)?;
    Ok(json!({
        "cniVersion": asked.cni_version,
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": call.netns}],
        "ips": [
            {"version": "4", "address": "127.0.0.1/8", "interface": 0},
            {"version": "6", "address": "::1/128", "interface": 0},
        ],
        "dns": {},
    }))
}

fn annotation(asked: &Asked, name: &str) -> io::Result<String> {
    let all = asked.runtime_config.get(ANNOTATIONS);
    let value = all.and_then(|all| all.get(name)?.as_str());
    let missing = || io::Error::other(format!("the runtime does not tell annotation {name}"));
    value.map(ToOwned::to_owned).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(command: &str) -> Call {
        Call { command: command.into(), netns: "/run/netns/pod".into() }
    }

    fn asked() -> Value {
        json!({
            "cniVersion": "1.0.0", "name": NETWORK, "type": PLUGIN,
            "ranges": ["10.244.1.0/24", "fd00::/64"],
            "runtimeConfig": {ANNOTATIONS: {UID: "a-b", ADDRESSES: "10.244.1.7,fd00::7"}},
        })
    }

    #[test]
    fn it_says_which_versions_it_speaks() {
        let answer = carry_out(&call("VERSION"), "").unwrap();
        assert_eq!(answer["supportedVersions"][3], "1.0.0");
    }

    #[test]
    fn an_answer_names_link_and_addresses() {
        let asked: Asked = serde_json::from_value(asked()).unwrap();
        let addresses = ["10.244.1.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        let answer = added(&call("ADD"), &asked, &addresses);
        assert_eq!(answer["ips"][0]["address"], "10.244.1.7/24");
        assert_eq!(answer["ips"][1]["gateway"], "fd00::");
        assert_eq!(answer["interfaces"][0]["name"], "eth0");
    }

    #[test]
    fn what_it_is_not_told_is_named() {
        let mut untold = asked();
        untold["runtimeConfig"] = json!({});
        let error = carry_out(&call("ADD"), &untold.to_string()).unwrap_err();
        assert!(error.to_string().contains(UID), "{error}");
        carry_out(&call("FLY"), &asked().to_string()).unwrap_err();
    }

    #[test]
    fn containerd_finds_the_network_and_another_s_loopback_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (plugins, lists) = (dir.path().join("bin"), dir.path().join("net.d"));
        fs::create_dir(&plugins).unwrap();
        fs::write(plugins.join(LOOPBACK), "theirs").unwrap();
        let ranges = vec!["10.244.1.0/24".parse().unwrap()];
        let network = Network::of_another(ranges, Some(1450)).unwrap();
        install(Path::new("/opt/it's"), &plugins, &lists, &network).unwrap();
        assert_eq!(fs::read_to_string(plugins.join(LOOPBACK)).unwrap(), "theirs");
        let script = fs::read_to_string(plugins.join(PLUGIN)).unwrap();
        assert_eq!(script, "#!/bin/sh\nexec '/opt/it'\\''s' cni\n");
        let list = fs::read_to_string(lists.join("10-fairlead.conflist")).unwrap();
        let list: Value = serde_json::from_str(&list).unwrap();
        assert_eq!(list["plugins"][0]["ranges"][0], "10.244.1.0/24");
        assert_eq!(list["plugins"][0]["mtu"], 1450);
    }
}
