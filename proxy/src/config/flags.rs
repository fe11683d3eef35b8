//! The flags that a plan depends on, as typed; and what they mean.

use std::net::IpAddr;

use ipnet::IpNet;
use model::name::Family;
use thiserror::Error;

use crate::by_family::ByFamily;
use crate::config::{
    DetectLocal, ExternalIps, LocalhostNodePorts, NodeConfig, NodePortAddress, ProxyMode,
};

/// kube-proxy's flags that a plan depends on, as typed. An empty text is a flag not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFlags {
    /// `--hostname-override`.
    pub hostname_override: String,
    /// `--proxy-mode`.
    pub proxy_mode: String,
    /// `--bind-address`.
    pub bind_address: String,
    /// `--detect-local-mode`.
    pub detect_local_mode: String,
    /// `--cluster-cidr`.
    pub cluster_cidr: String,
    /// `--pod-bridge-interface`.
    pub pod_bridge_interface: String,
    /// `--pod-interface-name-prefix`.
    pub pod_interface_name_prefix: String,
    /// `--masquerade-all`.
    pub masquerade_all: bool,
    /// `--nodeport-addresses`.
    pub nodeport_addresses: String,
    /// `--iptables-localhost-nodeports=false`.
    pub no_localhost_nodeports: bool,
    /// `--feature-gates`.
    pub feature_gates: String,
    /// `--external-ip-cidrs`: the ranges in which external IPs are honoured.
    pub external_ip_cidrs: String,
    /// `--service-cidrs`: the ranges that cluster IPs come from.
    pub service_cidrs: String,
}

/// A flag's value that means nothing.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("--{flag}={value:?} {wrong}")]
pub struct ConfigError {
    flag: String,
    value: String,
    /// What is wrong, and what to do.
    wrong: &'static str,
}

impl NodeFlags {
    /// Takes a flag by its name, without dashes.
    ///
    /// # Errors
    /// No plan depends on a flag of that name, or it is neither true nor false.
    pub fn set(&mut self, flag: &str, value: &str) -> Result<(), ConfigError> {
        let is_true = || match value {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(error(flag, value, "is neither true nor false")),
        };
        let text = match flag {
            "hostname-override" => &mut self.hostname_override,
            "proxy-mode" => &mut self.proxy_mode,
            "bind-address" => &mut self.bind_address,
            "detect-local-mode" => &mut self.detect_local_mode,
            "cluster-cidr" => &mut self.cluster_cidr,
            "pod-bridge-interface" => &mut self.pod_bridge_interface,
            "pod-interface-name-prefix" => &mut self.pod_interface_name_prefix,
            "nodeport-addresses" => &mut self.nodeport_addresses,
            "feature-gates" => &mut self.feature_gates,
            "external-ip-cidrs" => &mut self.external_ip_cidrs,
            "service-cidrs" => &mut self.service_cidrs,
            "masquerade-all" => {
                self.masquerade_all = is_true()?;
                return Ok(());
            }
            "iptables-localhost-nodeports" => {
                self.no_localhost_nodeports = !is_true()?;
                return Ok(());
            }
            _ => return Err(error(flag, value, "is no flag that a plan depends on")),
        };
        value.clone_into(text);
        Ok(())
    }

    /// What the flags mean.
    ///
    /// # Errors
    /// A value that means nothing; it names the flag and what to write.
    pub fn meant(&self) -> Result<NodeConfig, ConfigError> {
        let node_name = self.hostname_override.trim().to_lowercase();
        if node_name.is_empty() {
            let wrong = "is blank; give the name of this node's Node object";
            return Err(error("hostname-override", &self.hostname_override, wrong));
        }
        let mode = self.mode()?;
        Ok(NodeConfig {
            bind_address: self.bind_address()?,
            detect_local: self.detect_local()?,
            masquerade_all: self.masquerade_all,
            node_port_addresses: self.node_port_addresses()?,
            localhost_node_ports: self.localhost_node_ports(mode),
            external_ips: self.external_ips()?,
            service_cidrs: nets("service-cidrs", &self.service_cidrs)?,
            at_sockets: mode == ProxyMode::Ebpf,
            ..NodeConfig::new(node_name)
        })
    }

    /// Which backend is asked for.
    ///
    /// # Errors
    /// No backend has that name.
    pub fn mode(&self) -> Result<ProxyMode, ConfigError> {
        if self.is_auto() {
            return Ok(ProxyMode::Ebpf);
        }
        let wrong = "is no mode; use auto, ebpf, nftables, iptables or ipvs";
        let mode = ProxyMode::parse(&self.proxy_mode);
        mode.ok_or_else(|| error("proxy-mode", &self.proxy_mode, wrong))
    }

    /// Whether a node chooses its backend itself. Where there is no node to ask it is eBPF.
    pub fn is_auto(&self) -> bool {
        matches!(self.proxy_mode.as_str(), "" | "auto")
    }

    /// The wildcard means what an absent flag does: the Node's own addresses.
    fn bind_address(&self) -> Result<Option<IpAddr>, ConfigError> {
        let text = self.bind_address.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let wrong = "is no address; write it as 192.0.2.1 or 2001:db8::1";
        let address: IpAddr =
            text.parse().ok().ok_or_else(|| error("bind-address", text, wrong))?;
        Ok((!address.is_unspecified()).then_some(address))
    }

    fn detect_local(&self) -> Result<DetectLocal, ConfigError> {
        match self.detect_local_mode.as_str() {
            "" | "ClusterCIDR" => Ok(DetectLocal::ClusterCidr(self.cluster_cidrs()?)),
            "NodeCIDR" => Ok(DetectLocal::NodeCidr),
            "BridgeInterface" => {
                let name = self.pod_bridge_interface.as_str();
                let wrong = "is empty; name the bridge that pods are connected to";
                required("pod-bridge-interface", name, wrong)?;
                Ok(DetectLocal::BridgeInterface(name.into()))
            }
            "InterfaceNamePrefix" => {
                let prefix = self.pod_interface_name_prefix.as_str();
                let wrong = "is empty; give what the names of pods' interfaces begin with";
                required("pod-interface-name-prefix", prefix, wrong)?;
                Ok(DetectLocal::InterfaceNamePrefix(prefix.into()))
            }
            other => {
                let wrong = "is no mode; use ClusterCIDR, NodeCIDR, BridgeInterface or \
                             InterfaceNamePrefix";
                Err(error("detect-local-mode", other, wrong))
            }
        }
    }

    fn cluster_cidrs(&self) -> Result<Vec<IpNet>, ConfigError> {
        let ranges = nets("cluster-cidr", &self.cluster_cidr)?;
        let families: Vec<Family> = ranges.iter().map(|net| Family::of(&net.addr())).collect();
        match *families {
            [] | [_] => Ok(ranges),
            [a, b] if a != b => Ok(ranges),
            _ => {
                let wrong = "has more than one range of a family; give one of each at most";
                Err(error("cluster-cidr", &self.cluster_cidr, wrong))
            }
        }
    }

    fn node_port_addresses(&self) -> Result<Vec<NodePortAddress>, ConfigError> {
        let wrong = "is neither a range nor primary, localhost or all";
        entries(&self.nodeport_addresses)
            .map(|entry| match entry {
                "primary" => Ok(NodePortAddress::Primary),
                "localhost" => Ok(NodePortAddress::Localhost),
                "all" => Ok(NodePortAddress::All),
                range => range
                    .parse()
                    .map(NodePortAddress::Cidr)
                    .ok()
                    .ok_or_else(|| error("nodeport-addresses", range, wrong)),
            })
            .collect()
    }

    /// What each backend can do: only at the socket can a node port on loopback be served in
    /// both families and without letting the network reach loopback addresses.
    const fn localhost_node_ports(&self, mode: ProxyMode) -> ByFamily<LocalhostNodePorts> {
        let (v4, v6) = match mode {
            _ if self.no_localhost_nodeports => {
                (LocalhostNodePorts::Never, LocalhostNodePorts::Never)
            }
            ProxyMode::Ebpf => (LocalhostNodePorts::Covered, LocalhostNodePorts::Covered),
            ProxyMode::Iptables => (LocalhostNodePorts::Covered, LocalhostNodePorts::Never),
            ProxyMode::Nftables | ProxyMode::Ipvs => {
                (LocalhostNodePorts::Never, LocalhostNodePorts::Never)
            }
        };
        ByFamily { v4, v6 }
    }

    fn external_ips(&self) -> Result<ExternalIps, ConfigError> {
        let mut allowed = true;
        for gate in entries(&self.feature_gates) {
            let wrong = "is no gate; write it as Name=true or Name=false";
            let (name, value) =
                gate.split_once('=').ok_or_else(|| error("feature-gates", gate, wrong))?;
            let value: bool =
                value.parse().ok().ok_or_else(|| error("feature-gates", gate, wrong))?;
            if name == "AllowServiceExternalIPs" {
                allowed = value;
            }
        }
        let ranges = nets("external-ip-cidrs", &self.external_ip_cidrs)?;
        Ok(match allowed {
            false => ExternalIps::Off,
            true if ranges.is_empty() => ExternalIps::Any,
            true => ExternalIps::Within(ranges),
        })
    }
}

fn error(flag: &str, value: &str, wrong: &'static str) -> ConfigError {
    ConfigError { flag: flag.to_owned(), value: value.to_owned(), wrong }
}

fn required(flag: &str, value: &str, wrong: &'static str) -> Result<(), ConfigError> {
    if value.is_empty() { Err(error(flag, value, wrong)) } else { Ok(()) }
}

fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

fn nets(flag: &str, list: &str) -> Result<Vec<IpNet>, ConfigError> {
    let wrong = "is no range; write it as 10.0.0.0/8 or fd00::/64";
    entries(list).map(|entry| entry.parse().ok().ok_or_else(|| error(flag, entry, wrong))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(change: impl FnOnce(&mut NodeFlags)) -> NodeFlags {
        let mut flags =
            NodeFlags { hostname_override: "Node-A ".to_owned(), ..NodeFlags::default() };
        change(&mut flags);
        flags
    }

    #[test]
    fn no_flag_at_all_means_the_defaults() {
        assert_eq!(flags(|_| {}).meant(), Ok(NodeConfig::new("node-a")));
    }

    #[test]
    fn a_value_that_means_nothing_is_refused_with_the_remedy() {
        let refusals: Vec<String> = [
            flags(|flags| flags.hostname_override = " ".to_owned()),
            flags(|flags| flags.proxy_mode = "userspace".to_owned()),
            flags(|flags| flags.bind_address = "here".to_owned()),
            flags(|flags| flags.detect_local_mode = "Magic".to_owned()),
            flags(|flags| flags.detect_local_mode = "BridgeInterface".to_owned()),
            flags(|flags| flags.detect_local_mode = "InterfaceNamePrefix".to_owned()),
            flags(|flags| flags.cluster_cidr = "10.0.0.0/8,11.0.0.0/8".to_owned()),
            flags(|flags| flags.nodeport_addresses = "secondary".to_owned()),
            flags(|flags| flags.feature_gates = "AllowServiceExternalIPs=maybe".to_owned()),
            flags(|flags| flags.service_cidrs = "10.96.0.0".to_owned()),
        ]
        .iter()
        .map(|flags| flags.meant().unwrap_err().to_string())
        .collect();
        expect_test::expect![[r#"
            --hostname-override=" " is blank; give the name of this node's Node object
            --proxy-mode="userspace" is no mode; use auto, ebpf, nftables, iptables or ipvs
            --bind-address="here" is no address; write it as 192.0.2.1 or 2001:db8::1
            --detect-local-mode="Magic" is no mode; use ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
            --pod-bridge-interface="" is empty; name the bridge that pods are connected to
            --pod-interface-name-prefix="" is empty; give what the names of pods' interfaces begin with
            --cluster-cidr="10.0.0.0/8,11.0.0.0/8" has more than one range of a family; give one of each at most
            --nodeport-addresses="secondary" is neither a range nor primary, localhost or all
            --feature-gates="AllowServiceExternalIPs=maybe" is no gate; write it as Name=true or Name=false
            --service-cidrs="10.96.0.0" is no range; write it as 10.0.0.0/8 or fd00::/64"#]].assert_eq(&refusals.join("\n"));
    }

    #[test]
    fn each_flag_reaches_the_configuration() {
        let config = flags(|flags| {
            flags.bind_address = "192.0.2.1".to_owned();
            flags.detect_local_mode = "InterfaceNamePrefix".to_owned();
            flags.pod_interface_name_prefix = "veth".to_owned();
            flags.masquerade_all = true;
            flags.nodeport_addresses = "primary, 10.0.0.0/8,localhost,all".to_owned();
            flags.no_localhost_nodeports = true;
            flags.external_ip_cidrs = "203.0.113.0/24".to_owned();
            flags.service_cidrs = "10.96.0.0/16,fd00:96::/112".to_owned();
        })
        .meant();
        let expected = NodeConfig {
            bind_address: Some("192.0.2.1".parse().unwrap()),
            detect_local: DetectLocal::InterfaceNamePrefix("veth".into()),
            masquerade_all: true,
            node_port_addresses: vec![
                NodePortAddress::Primary,
                NodePortAddress::Cidr("10.0.0.0/8".parse().unwrap()),
                NodePortAddress::Localhost,
                NodePortAddress::All,
            ],
            localhost_node_ports: ByFamily::default(),
            external_ips: ExternalIps::Within(vec!["203.0.113.0/24".parse().unwrap()]),
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
            ..NodeConfig::new("node-a")
        };
        assert_eq!(config, Ok(expected));
    }

    #[test]
    fn the_wildcard_binds_no_address() {
        let config = flags(|flags| flags.bind_address = "0.0.0.0".to_owned()).meant();
        assert_eq!(config.unwrap().bind_address, None);
    }

    #[test]
    fn a_gate_turns_external_ips_off() {
        let gates = "SomethingElse=true,AllowServiceExternalIPs=false";
        let config = flags(|flags| {
            flags.feature_gates = gates.to_owned();
            flags.external_ip_cidrs = "203.0.113.0/24".to_owned();
        })
        .meant();
        assert_eq!(config.unwrap().external_ips, ExternalIps::Off);
    }

    #[test]
    fn node_ports_on_loopback_depend_on_the_mode() {
        use LocalhostNodePorts::{Covered, Never};
        let served = ["auto", "ebpf", "nftables", "iptables", "ipvs"].map(|mode| {
            let config = flags(|flags| flags.proxy_mode = mode.to_owned()).meant().unwrap();
            (config.localhost_node_ports.v4, config.localhost_node_ports.v6)
        });
        assert_eq!(
            served,
            [
                (Covered, Covered),
                (Covered, Covered),
                (Never, Never),
                (Covered, Never),
                (Never, Never)
            ]
        );
    }
}
