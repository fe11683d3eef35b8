//! Who may ask.

use std::net::IpAddr;

use ipnet::IpNet;

/// The addresses that questions may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sources {
    /// All.
    Any,
    /// Loopback, and these, and this node with its pods.
    Local(Vec<IpNet>),
}

impl Sources {
    /// Whether a client may ask; one without an IP address may not.
    pub fn allow(&self, client: Option<IpAddr>) -> bool {
        match (self, client) {
            (Self::Any, _) => true,
            (Self::Local(_), None) => false,
            (Self::Local(also), Some(client)) => {
                let client = client.to_canonical();
                client.is_loopback() || also.iter().any(|range| range.contains(&client))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_what_is_named_may_ask() {
        let local = Sources::Local(vec!["10.1.0.0/24".parse().unwrap()]);
        let allow = |text: &str| local.allow(Some(text.parse().unwrap()));
        assert!(allow("127.9.9.9") && allow("::1") && allow("10.1.0.7"));
        assert!(allow("::ffff:127.0.0.1"));
        assert!(!allow("10.1.1.7") && !allow("fd00::1") && !local.allow(None));
        assert!(Sources::Any.allow(Some("192.0.2.1".parse().unwrap())));
    }
}
