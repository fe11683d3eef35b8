//! Tunnels over whatever is between nodes: VXLAN devices, and who is where behind them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::{
    LinkUnspec, LinkVxlan, RouteMessageBuilder,
    packet_route::{
        link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage},
        neighbour::NeighbourFlags,
        route::RouteMessage,
    },
};

use super::{LinkError, Links, asked, index};

/// A VXLAN device that learns nothing by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// The network's number.
    pub id: u32,
    /// The UDP port of every node.
    pub port: u16,
    /// Where the others send to.
    pub local: IpAddr,
    /// What the others call the device.
    pub mac: [u8; 6],
    /// The largest packet that fits in.
    pub mtu: u32,
}

/// A network behind a tunnel: what is for it goes to a router there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// The network.
    pub network: IpAddr,
    /// How long its prefix is.
    pub prefix_len: u8,
    /// The router's address inside of the tunnel …
    pub router: IpAddr,
    /// … what its device is called …
    pub mac: [u8; 6],
    /// … and where it is in the network outside.
    pub node: IpAddr,
    /// What this node calls itself there.
    pub source: IpAddr,
}

impl Links {
    /// The largest packet that a link takes.
    pub async fn mtu(&self, name: &str) -> Result<u32, LinkError> {
        let link = self.find(name).await?;
        let mtu = link.and_then(|link| {
            link.attributes.iter().find_map(|one| match one {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            })
        });
        let missing = || LinkError::Find { name: name.to_owned(), source: Errno::ENODEV };
        mtu.ok_or_else(missing)
    }

    /// Sets the largest packet that a link takes.
    pub async fn set_mtu(&self, name: &str, mtu: u32) -> Result<(), LinkError> {
        let link = LinkUnspec::new_with_index(index(name)?).mtu(mtu).build();
        asked(self.handle.link().set(link).execute().await, || {
            format!("setting the MTU of link {name} to {mtu}")
        })
    }

    /// Makes a VXLAN device that is up. One that is there stays if it is the same, and is replaced if
    /// it is another.
    pub async fn vxlan(&self, name: &str, device: &Vxlan) -> Result<(), LinkError> {
        let there = if index(name).is_ok() { self.find(name).await? } else { None };
        match there {
            Some(link) if is_same(&link, device) => return self.set_mtu(name, device.mtu).await,
            Some(_) => self.remove(name).await?,
            None => {}
        }
        let link = LinkVxlan::new(name, device.id).port(device.port).learning(false);
        let link = match device.local {
            IpAddr::V4(local) => link.local(local),
            IpAddr::V6(local) => link.local6(local),
        };
        let link = link.mtu(device.mtu).address(device.mac.to_vec()).up().build();
        asked(self.handle.link().add(link).execute().await, || format!("adding tunnel {name}"))
    }

    /// Leads what is for a network into a tunnel, or leads it elsewhere than before.
    pub async fn lead_through(&self, name: &str, behind: &Behind) -> Result<(), LinkError> {
        let index = index(name)?;
        let Behind { network, prefix_len, router, mac, node, .. } = behind;
        let neighbours = self.handle.neighbours();
        let at_node = neighbours.add_bridge(index, mac).destination(*node);
        let at_node = at_node.flags(NeighbourFlags::Own).replace();
        asked(at_node.execute().await, || format!("telling tunnel {name} of node {node}"))?;
        let called = neighbours.add(index, *router).link_layer_address(mac).replace();
        asked(called.execute().await, || format!("telling tunnel {name} of router {router}"))?;
        let route = self.handle.route().add(route(name, index, behind)?).replace();
        asked(route.execute().await, || format!("leading {network}/{prefix_len} through {name}"))
    }

    async fn find(&self, name: &str) -> Result<Option<LinkMessage>, LinkError> {
        let mut found = self.handle.link().get().match_index(index(name)?).execute();
        found.try_next().await.map_err(|source| LinkError::Request {
            doing: format!("looking at link {name}"),
            source,
        })
    }
}

/// Whether a link is that device, but for its MTU.
fn is_same(link: &LinkMessage, device: &Vxlan) -> bool {
    let infos = link.attributes.iter().find_map(|one| match one {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(infos)) => Some(infos),
            _ => None,
        }),
        _ => None,
    });
    let local = match device.local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    };
    let wanted = [InfoVxlan::Id(device.id), InfoVxlan::Port(device.port), local];
    infos.is_some_and(|infos| wanted.iter().all(|one| infos.contains(one)))
        && link.attributes.contains(&LinkAttribute::Address(device.mac.to_vec()))
}

/// The router is no neighbour by its address, only by its entry: the route says that it is on the link.
fn route(name: &str, index: u32, behind: &Behind) -> Result<RouteMessage, LinkError> {
    let len = behind.prefix_len;
    Ok(match (behind.network, behind.router, behind.source) {
        (IpAddr::V4(network), IpAddr::V4(router), IpAddr::V4(source)) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(network, len);
            route.gateway(router).pref_source(source).output_interface(index).onlink().build()
        }
        (IpAddr::V6(network), IpAddr::V6(router), IpAddr::V6(source)) => {
            let route = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(network, len);
            route.gateway(router).pref_source(source).output_interface(index).onlink().build()
        }
        // Of two families: no route can be that.
        _ => return Err(LinkError::Find { name: name.to_owned(), source: Errno::EAFNOSUPPORT }),
    })
}
