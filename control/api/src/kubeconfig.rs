//! The file by which clients find the server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A kubeconfig: with a CA and a token over HTTPS, without either on plain HTTP.
pub(crate) fn text(address: SocketAddr, authority: Option<&str>, token: &str) -> String {
    let address = reachable(address);
    let (cluster, user) = match authority {
        Some(pem) => {
            let authority = STANDARD.encode(pem);
            let server = format!("server: https://{address}");
            let cluster = format!("{server}\n    certificate-authority-data: {authority}");
            (cluster, format!("user:\n    token: {token}"))
        }
        None => (format!("server: http://{address}"), "user: {}".into()),
    };
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: fairlead\n  cluster:\n    {cluster}\n\
         users:\n- name: admin\n  {user}\ncontexts:\n- name: fairlead\n  context:\n    \
         cluster: fairlead\n    user: admin\ncurrent-context: fairlead\n"
    )
}

/// A server that listens everywhere is reached on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, address.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, address.port()).into(),
        _ => address,
    }
}
