//! The file by which clients find the server.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::auth;

/// Writes a kubeconfig: with a CA and a token over HTTPS, without either on plain HTTP.
pub(crate) fn write(
    path: &Path,
    address: SocketAddr,
    authority: Option<&str>,
    token: &str,
) -> io::Result<()> {
    let (cluster, user) = match authority {
        Some(pem) => (
            format!(
                "server: https://{address}\n    certificate-authority-data: {}",
                STANDARD.encode(pem)
            ),
            format!("token: {token}"),
        ),
        None => (format!("server: http://{address}"), "{}".into()),
    };
    let user = if user == "{}" { "user: {}".into() } else { format!("user:\n    {user}") };
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: fairlead\n  cluster:\n    {cluster}\n\
         users:\n- name: admin\n  {user}\ncontexts:\n- name: fairlead\n  context:\n    \
         cluster: fairlead\n    user: admin\ncurrent-context: fairlead\n"
    );
    auth::write_private(path, text.as_bytes())
}
