//! Rules about this node's own DNS server, in a table of their own, whatever the proxy mode.
//!
//! ```text
//!  question ─▶ raw: not tracked ─▶ the server          a port that is closed since it was killed:
//!  answer   ◀─ raw: not tracked ◀─ the server          its ICMP error is dropped
//! ```
//!
//! Questions are never tracked: two that leave one socket at once are what conntrack loses. The closed
//! port is silent because libraries give up at once when they are refused, and ask again when they are
//! not. In the nftables mode a question to the Service is led to the server here, by its addresses
//! alone: while a socket is open that stands for the server, which the kernel looks up itself.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::program::{self, NftError};

/// The table; `cleanup` removes it.
const TABLE: &str = "inet fairlead-dns";

/// One family's server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnServer {
    /// Where it answers.
    pub server: SocketAddr,
    /// Where it answers what was led to it packet by packet; zero is nowhere.
    pub packet_port: u16,
    /// The cluster IP and port whose questions are led to it; `None` if packets are led by others.
    pub service: Option<SocketAddr>,
}

/// What the rules are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnDnsRules {
    /// The servers.
    pub servers: Vec<OwnServer>,
    /// Whose questions are led.
    pub clients: Vec<IpNet>,
}

/// The rules are not in force.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct OwnDnsRulesError(#[from] NftError);

impl OwnDnsRules {
    /// Puts the rules in force, in the place of those before.
    ///
    /// # Errors
    /// nft is not installed, or refuses.
    pub fn apply(&self) -> Result<(), OwnDnsRulesError> {
        Ok(program::transact(&self.text())?)
    }

    /// Removes the table.
    ///
    /// # Errors
    /// nft is not installed, or refuses.
    pub fn remove() -> Result<(), OwnDnsRulesError> {
        Ok(program::transact(&format!("table {TABLE}\ndelete table {TABLE}\n"))?)
    }

    /// One transaction. `[pure]`
    fn text(&self) -> String {
        let mut arrives = String::new();
        let mut leaves = String::new();
        for own in &self.servers {
            own.untracked(&mut arrives, &mut leaves);
            own.silent(&mut leaves);
            if let Some(service) = own.service.filter(|_| own.packet_port != 0) {
                own.led(service, &self.clients, &mut arrives, &mut leaves);
            }
        }
        format!(
            "table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n\
             \tchain arrives {{\n\t\ttype filter hook prerouting priority raw; policy accept;\n\
             {arrives}\t}}\n\
             \tchain leaves {{\n\t\ttype filter hook output priority raw; policy accept;\n\
             {leaves}\t}}\n}}\n"
        )
    }
}

impl OwnServer {
    fn untracked(&self, arrives: &mut String, leaves: &mut String) {
        let (ip, address) = (family(&self.server), self.server.ip());
        let ports = self.ports();
        let all = "meta l4proto { tcp, udp }";
        line(arrives, &format!("{ip} daddr {address} {all} th dport {ports} notrack"));
        line(leaves, &format!("{ip} saddr {address} {all} th sport {ports} notrack"));
        line(leaves, &format!("{ip} daddr {address} {all} th dport {ports} notrack"));
    }

    fn ports(&self) -> String {
        match (self.server.port(), self.packet_port) {
            (port, 0) => format!("{{ {port} }}"),
            (port, packets) => format!("{{ {port}, {packets} }}"),
        }
    }

    /// The error quotes the packet that met no socket: its protocol, destination and port stand at
    /// fixed places behind the eight octets of the error's header.
    fn silent(&self, leaves: &mut String) {
        let port = self.server.port();
        let (error, protocol, address, at_port) = match self.server.ip() {
            IpAddr::V4(ip) => (
                "icmp type destination-unreachable icmp code port-unreachable",
                "@th,136,8",
                format!("@th,192,32 {:#x}", ip.to_bits()),
                "@th,240,16",
            ),
            IpAddr::V6(ip) => (
                "icmpv6 type destination-unreachable icmpv6 code port-unreachable",
                "@th,112,8",
                format!("@th,256,128 {:#x}", ip.to_bits()),
                "@th,400,16",
            ),
        };
        line(leaves, &format!("{error} {protocol} 17 {address} {at_port} {port} drop"));
    }

    /// The lookup finds the socket that stands for the server, or the rule does not apply.
    fn led(
        &self,
        service: SocketAddr,
        clients: &[IpNet],
        arrives: &mut String,
        leaves: &mut String,
    ) {
        let ip = family(&self.server);
        let of_family = clients.iter().filter(|range| range.addr().is_ipv4() == service.is_ipv4());
        let clients: Vec<String> = of_family.map(ToString::to_string).collect();
        if clients.is_empty() {
            return;
        }
        let clients = clients.join(", ");
        let (server, packets) = (self.server.ip(), self.packet_port);
        let (cluster_ip, port) = (service.ip(), service.port());
        for protocol in ["udp", "tcp"] {
            line(
                arrives,
                &format!(
                    "{ip} saddr {{ {clients} }} {ip} daddr {cluster_ip} {protocol} dport {port} \
                     socket wildcard 0 notrack {ip} daddr set {server} {protocol} dport set \
                     {packets}"
                ),
            );
            line(
                leaves,
                &format!(
                    "{ip} saddr {server} {protocol} sport {packets} {ip} saddr set {cluster_ip} \
                     {protocol} sport set {port}"
                ),
            );
        }
    }
}

const fn family(address: &SocketAddr) -> &'static str {
    match address {
        SocketAddr::V4(_) => "ip",
        SocketAddr::V6(_) => "ip6",
    }
}

fn line(chain: &mut String, rule: &str) {
    // Writing to a string does not fail.
    _ = writeln!(chain, "\t\t{rule}");
}

#[cfg(test)]
mod tests {
    use super::{OwnDnsRules, OwnServer};

    #[test]
    fn each_family_has_its_rules_and_only_the_nftables_mode_leads() {
        let mut rules = OwnDnsRules {
            servers: vec![OwnServer {
                server: "169.254.20.53:53".parse().unwrap(),
                packet_port: 4000,
                service: None,
            }],
            clients: vec!["10.244.0.0/24".parse().unwrap()],
        };
        let text = rules.text();
        assert!(text.contains(
            "ip daddr 169.254.20.53 meta l4proto { tcp, udp } th dport { 53, 4000 } notrack"
        ));
        assert!(text.contains("@th,192,32 0xa9fe1435 @th,240,16 53 drop"), "{text}");
        assert!(!text.contains("socket"), "{text}");
        rules.servers[0].service = Some("10.96.0.10:53".parse().unwrap());
        let text = rules.text();
        assert!(text.contains(
            "ip saddr { 10.244.0.0/24 } ip daddr 10.96.0.10 udp dport 53 socket wildcard 0 notrack \
             ip daddr set 169.254.20.53 udp dport set 4000"
        ));
    }
}
