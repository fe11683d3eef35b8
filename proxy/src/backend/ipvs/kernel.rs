//! The kernel's virtual services, over generic netlink.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use model::name::Protocol;
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

use super::desired::OF_TCP;
use super::item::{Virtual, VirtualKey};
use super::message::{self, Command, Destination};
use crate::netlink::talk::Talk;

/// The connection to IPVS.
#[derive(Debug)]
pub(super) struct Kernel {
    talk: Talk,
    family: u16,
}

impl Kernel {
    /// Connects; `None` if the kernel has no IPVS. The kernel loads the module by itself if it
    /// may.
    pub(super) fn find() -> io::Result<Option<Self>> {
        let talk = Talk::with(NETLINK_GENERIC)?;
        let told = match talk.ask(&message::ask_family()) {
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => return Ok(None),
            told => told?,
        };
        let family = told.iter().find_map(|(_, payload)| message::family(payload));
        Ok(family.map(|family| Self { talk, family }))
    }

    /// All virtual services.
    pub(super) fn virtuals(&self) -> io::Result<BTreeMap<VirtualKey, Virtual>> {
        let mut virtuals = BTreeMap::new();
        for (_, payload) in self.talk.ask(&message::ask_virtuals(self.family))? {
            let Some((key, head)) = message::told(&payload) else { continue };
            let destinations = self.destinations(&key)?;
            let destinations = destinations.into_iter().map(|it| (it.at, it.weight)).collect();
            virtuals.insert(key, Virtual { head, destinations });
        }
        Ok(virtuals)
    }

    /// The destinations of one; none if there is no such.
    pub(super) fn destinations(&self, key: &VirtualKey) -> io::Result<Vec<Destination>> {
        let told = match self.talk.ask(&message::ask_destinations(self.family, key)) {
            Err(error) if is(&error, Errno::ESRCH) => return Ok(Vec::new()),
            told => told?,
        };
        let told = told.iter();
        Ok(told
            .filter_map(|(_, payload)| message::told_destination(payload, key.family()))
            .collect())
    }

    /// Makes a virtual service what it should be. What serves it no more keeps its connections if
    /// they are TCP's: says which destinations are left for that, by what there is now.
    pub(super) fn put(
        &self,
        key: &VirtualKey,
        before: Option<&Virtual>,
        after: &Virtual,
    ) -> io::Result<Virtual> {
        match before {
            None => self.order(Command::New(key, &after.head))?,
            Some(before) if before.head != after.head => {
                self.order(Command::Set(key, &after.head))?;
            }
            Some(_) => {}
        }
        let none = BTreeMap::new();
        let held = before.map_or(&none, |before| &before.destinations);
        let mut now = after.clone();
        for (at, weight) in &after.destinations {
            match held.get(at) {
                None => self.order(Command::NewDestination(key, *at, *weight))?,
                Some(held) if held != weight => {
                    self.order(Command::SetDestination(key, *at, *weight))?;
                }
                Some(_) => {}
            }
        }
        for (at, weight) in held.iter().filter(|(at, _)| !after.destinations.contains_key(at)) {
            if ends_by_itself(key) {
                if *weight != 0 {
                    self.order(Command::SetDestination(key, *at, 0))?;
                }
                now.destinations.insert(*at, 0);
            } else {
                self.order(Command::DeleteDestination(key, *at))?;
            }
        }
        Ok(now)
    }

    /// Removes a destination that has no connections any more. Says whether it had none.
    pub(super) fn collect(&self, key: &VirtualKey, at: SocketAddr) -> io::Result<bool> {
        let found = self.destinations(key)?.into_iter().find(|it| it.at == at);
        match found {
            Some(found) if found.n_connections > 0 || found.weight > 0 => Ok(false),
            Some(_) => self.order(Command::DeleteDestination(key, at)).map(|()| true),
            None => Ok(true),
        }
    }

    /// Removes a virtual service, and with it its connections.
    pub(super) fn delete(&self, key: &VirtualKey) -> io::Result<()> {
        self.order(Command::Delete(key))
    }

    /// For how long connections are kept: of TCP, after FIN, of UDP. Zero leaves it as it is.
    pub(super) fn set_timeouts(&self, timeouts: [Duration; 3]) -> io::Result<()> {
        if timeouts.iter().all(Duration::is_zero) {
            return Ok(());
        }
        self.order(Command::Timeouts(timeouts))
    }

    fn order(&self, command: Command<'_>) -> io::Result<()> {
        let result = self.talk.ask(&message::command(self.family, command)).map(drop);
        let harmless = match command {
            Command::New(..) | Command::NewDestination(..) => Errno::EEXIST,
            Command::Delete(..) => Errno::ESRCH,
            Command::DeleteDestination(..) => Errno::ENOENT,
            _ => return result,
        };
        result.or_else(|error| if is(&error, harmless) { Ok(()) } else { Err(error) })
    }
}

/// Whether connections of its protocol end. Those of UDP are led elsewhere at once.
const fn ends_by_itself(key: &VirtualKey) -> bool {
    match key {
        VirtualKey::At(_, protocol) => matches!(protocol, Protocol::Tcp),
        VirtualKey::Mark(_, mark) => *mark & OF_TCP != 0,
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}
