//! Links, addresses and routes of one namespace, by netlink.

mod tunnel;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nix::{errno::Errno, net::if_::if_nametoindex};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    new_connection,
    packet_route::{
        address::AddressHeaderFlags,
        link::{InfoData, InfoVeth},
        route::{RouteMessage, RouteScope},
    },
};

use crate::netns::Netns;

pub use tunnel::{Behind, Vxlan};

/// Why a link, address or route could not be set.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The namespace could not be entered.
    #[error("entering the namespace")]
    Enter(#[source] io::Error),
    /// There is no netlink socket to be had.
    #[error("opening a netlink socket")]
    Open(#[source] io::Error),
    /// The kernel refused a request.
    #[error("{doing}")]
    Request {
        /// What was asked for.
        doing: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// There is no such link.
    #[error("looking for link {name}")]
    Find {
        /// The link.
        name: String,
        /// The kernel's answer.
        source: Errno,
    },
}

impl LinkError {
    /// Whether what was asked for is there.
    #[must_use]
    pub fn is_there_already(&self) -> bool {
        matches!(
            self,
            Self::Request { source: rtnetlink::Error::NetlinkError(answer), .. }
                if answer.raw_code() == -nix::libc::EEXIST
        )
    }
}

/// The links of the namespace that the calling thread is in.
#[derive(Debug)]
pub struct Links {
    handle: Handle,
}

/// One end of a veth pair that lies in another namespace.
#[derive(Debug)]
pub struct Peer<'a> {
    /// What it is called there.
    pub name: &'static str,
    /// Where it lies.
    pub netns: &'a Netns,
}

/// How a route leaves: straight onto a link, or through a router on it.
#[derive(Clone, Copy, Debug)]
pub enum Hop<'a> {
    /// The network is on this link.
    OnLink(&'a str),
    /// Through a router on a link.
    Via(IpAddr, &'a str),
}

/// Lets `f` change the links of `netns`.
pub fn configure(
    netns: &Netns,
    f: impl AsyncFnOnce(&Links) -> Result<(), LinkError> + Send,
) -> Result<(), LinkError> {
    let configured = netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(LinkError::Open)?;
        runtime.block_on(async {
            let (connection, handle, _) = new_connection().map_err(LinkError::Open)?;
            let connection = runtime.spawn(connection);
            let outcome = f(&Links { handle }).await;
            connection.abort();
            outcome
        })
    });
    configured.map_err(LinkError::Enter)?
}

impl Links {
    /// A bridge that forwards from the first packet on.
    pub async fn bridge(&self, name: &str) -> Result<(), LinkError> {
        let bridge = LinkBridge::new(name).build();
        asked(self.handle.link().add(bridge).execute().await, || format!("adding bridge {name}"))
    }

    /// A veth pair: `name` here, up, and on the bridge if there is one; `peer` over there, down
    /// (veth refuses to come up before both ends are there).
    pub async fn veth(
        &self,
        name: &str,
        peer: Peer<'_>,
        bridge: Option<&str>,
    ) -> Result<(), LinkError> {
        let mut here = LinkMessageBuilder::<LinkVeth>::new(name, peer.name);
        if let Some(bridge) = bridge {
            here = here.controller(index(bridge)?);
        }
        let there = LinkUnspec::new_with_name(peer.name).setns_by_fd(peer.netns.raw_fd()).build();
        let pair = here.set_info_data(InfoData::Veth(InfoVeth::Peer(there))).build();
        asked(self.handle.link().add(pair).execute().await, || format!("adding link {name}"))?;
        self.set_up(name, true).await
    }

    /// Sets a link up or down.
    pub async fn set_up(&self, name: &str, up: bool) -> Result<(), LinkError> {
        let link = LinkUnspec::new_with_index(index(name)?);
        let link = if up { link.up() } else { link.down() };
        asked(self.handle.link().set(link.build()).execute().await, || {
            format!("setting link {name} {}", if up { "up" } else { "down" })
        })
    }

    /// Removes a link, and with it its other end.
    pub async fn remove(&self, name: &str) -> Result<(), LinkError> {
        asked(self.handle.link().del(index(name)?).execute().await, || {
            format!("removing link {name}")
        })
    }

    /// Gives a link an address, usable at once: nobody else is there to hold the same one.
    pub async fn address(
        &self,
        name: &str,
        address: impl Into<IpAddr>,
        prefix_len: u8,
    ) -> Result<(), LinkError> {
        let address = address.into();
        let mut add = self.handle.address().add(index(name)?, address, prefix_len);
        if address.is_ipv6() {
            add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        asked(add.execute().await, || format!("adding address {address}/{prefix_len} to {name}"))
    }

    /// Adds a route to `network`.
    pub async fn route(
        &self,
        network: impl Into<IpAddr>,
        prefix_len: u8,
        hop: Hop<'_>,
    ) -> Result<(), LinkError> {
        let network = network.into();
        let route = match network {
            IpAddr::V4(network) => route_v4(network, prefix_len, hop)?,
            IpAddr::V6(network) => route_v6(network, prefix_len, hop)?,
        };
        asked(self.handle.route().add(route).execute().await, || {
            format!("adding the route to {network}/{prefix_len}")
        })
    }
}

fn route_v4(network: Ipv4Addr, prefix_len: u8, hop: Hop<'_>) -> Result<RouteMessage, LinkError> {
    let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(network, prefix_len);
    Ok(match hop {
        Hop::Via(IpAddr::V4(router), link) => {
            route.gateway(router).output_interface(index(link)?).build()
        }
        Hop::OnLink(link) | Hop::Via(_, link) => {
            route.output_interface(index(link)?).scope(RouteScope::Link).build()
        }
    })
}

fn route_v6(network: Ipv6Addr, prefix_len: u8, hop: Hop<'_>) -> Result<RouteMessage, LinkError> {
    let route = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(network, prefix_len);
    Ok(match hop {
        Hop::Via(IpAddr::V6(router), link) => {
            route.gateway(router).output_interface(index(link)?).build()
        }
        Hop::OnLink(link) | Hop::Via(_, link) => route.output_interface(index(link)?).build(),
    })
}

fn index(name: &str) -> Result<u32, LinkError> {
    if_nametoindex(name).map_err(|source| LinkError::Find { name: name.to_owned(), source })
}

fn asked(
    outcome: Result<(), rtnetlink::Error>,
    doing: impl FnOnce() -> String,
) -> Result<(), LinkError> {
    outcome.map_err(|source| LinkError::Request { doing: doing(), source })
}
