//! Collects connections that have ended: off the packet path, every few seconds.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use abi::flow::{Name, Record, Seen, Tuple, flag, half};
use aya::maps::{HashMap, MapData, MapError};
use nix::time::{ClockId, clock_gettime};

use crate::batch;
use crate::filter::Filter;

/// The number of TCP.
const TCP: u8 = 6;
/// Only what is not there is added.
const BPF_NOEXIST: u64 = 1;

/// For how long a connection is remembered after its last packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// An open TCP or SCTP connection.
    pub established: Duration,
    /// One that one end has closed.
    pub close_wait: Duration,
    /// One that both ends have closed, or that was reset.
    pub closed: Duration,
    /// A UDP flow with answers.
    pub udp_stream: Duration,
    /// One without.
    pub udp: Duration,
}

impl Default for Lifetimes {
    /// Those of kube-proxy's flags and of netfilter.
    fn default() -> Self {
        const HOUR: u64 = 3600;
        Self {
            established: Duration::from_secs(24 * HOUR),
            close_wait: Duration::from_secs(HOUR),
            closed: Duration::from_secs(120),
            udp_stream: Duration::from_secs(120),
            udp: Duration::from_secs(30),
        }
    }
}

/// The connections whose clients have proved that they exist, and those that displace one another.
#[derive(Debug)]
pub struct Flows {
    pub(crate) records: HashMap<MapData, Tuple, Record>,
    pub(crate) new: HashMap<MapData, Tuple, Record>,
    pub(crate) names: HashMap<MapData, Tuple, Name>,
    pub(crate) filter: Filter,
}

/// What a collection found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Connections that go on.
    pub live: usize,
    /// Connections that were removed.
    pub ended: usize,
    /// Names of connections that were gone.
    pub dangling: usize,
}

impl Flows {
    /// Renews the marks of all connections, and takes those away that are nobody's any more. All else
    /// being marked, programs may trust what is.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn mark(&self) -> Result<(), MapError> {
        self.mark_and_show(|_, _| ())
    }

    /// The same; shows those whose clients have proved that they exist.
    fn mark_and_show(&self, mut show: impl FnMut(Tuple, Record)) -> Result<(), MapError> {
        self.filter.begin_round();
        // A connection that is moved meanwhile is met in the second map.
        batch::each(&self.new, |sent, record| self.filter.mark_flow(&sent, &record))?;
        batch::each(&self.records, |sent, record| {
            self.filter.mark_flow(&sent, &record);
            show(sent, record);
        })?;
        self.filter.end_round();
        Ok(())
    }

    /// From here on programs leave alone what is not marked.
    pub fn trust_marks(&self) {
        self.filter.trust();
    }

    /// Removes what has ended, and shows each record for the last time.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn collect(
        &mut self,
        lifetimes: &Lifetimes,
        mut last: impl FnMut(&Record),
    ) -> Result<Collected, MapError> {
        let now = seconds();
        let mut collected = Collected::default();
        let (mut ended, mut live) = (Vec::new(), HashSet::new());
        self.mark_and_show(|sent, record| {
            if is_over(&sent, &record, now, lifetimes) {
                ended.push(sent);
            } else {
                live.insert(sent);
            }
        })?;
        collected.live = live.len();
        for sent in ended {
            let is_over = |record: &Record| is_over(&sent, record, now, lifetimes);
            collected.ended += usize::from(self.remove(&sent, is_over, &mut last));
        }
        collected.dangling = self.collect_names(&live)?;
        Ok(collected)
    }

    /// Removes closed TCP connections of these clients at once, and shows each record for the last time.
    /// Says how many.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn forget_closed(
        &mut self,
        clients: &BTreeSet<IpAddr>,
        mut last: impl FnMut(&Record),
    ) -> Result<usize, MapError> {
        let is_closed = |record: &Record| Record::is_closed(record.forward, record.reply);
        let mut closed = Vec::new();
        batch::each(&self.records, |sent: Tuple, record| {
            if sent.protocol == TCP && is_closed(&record) && clients.contains(&sent.src.into()) {
                closed.push(sent);
            }
        })?;
        Ok(closed.iter().filter(|sent| self.remove(sent, is_closed, &mut last)).count())
    }

    /// Removes a connection, unless a packet has come since that makes it another.
    fn remove(
        &mut self,
        sent: &Tuple,
        is_over: impl Fn(&Record) -> bool,
        last: &mut impl FnMut(&Record),
    ) -> bool {
        let Ok(mut record) = self.records.get(sent, 0) else { return false };
        if !is_over(&record) {
            return false;
        }
        if let Ok(name) = self.names.get(&leaving(sent, &record), 0) {
            record.add(&name);
        }
        // A program may have removed any of them. Names first: they are believed without it.
        _ = self.names.remove(&leaving(sent, &record));
        _ = self.names.remove(&returning(sent, &record));
        _ = self.records.remove(sent);
        last(&record);
        true
    }

    /// Adds a connection that packets have not opened; says whether it was not there.
    ///
    /// # Errors
    /// There is no room.
    pub fn add(&mut self, sent: &Tuple, record: Record) -> Result<bool, MapError> {
        match self.records.insert(sent, record, BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The second of the clock that the programs read.
    pub fn now() -> u32 {
        seconds()
    }

    /// Removes names that lead nowhere; `live` are the connections that were there a moment ago.
    fn collect_names(&mut self, live: &HashSet<Tuple>) -> Result<usize, MapError> {
        let mut dangling = Vec::new();
        batch::each(&self.names, |name, Name { sent, .. }| {
            if !live.contains(&sent) {
                dangling.push((name, sent));
            }
        })?;
        let mut n = 0;
        for (name, sent) in dangling {
            // Names come before their record, which may have come since.
            if self.records.get(&sent, 0).is_err() && self.names.remove(&name).is_ok() {
                n += 1;
            }
        }
        Ok(n)
    }
}

fn leaving(sent: &Tuple, record: &Record) -> Tuple {
    let (endpoint, port) = (&record.endpoint, record.endpoint_port);
    Tuple::between(&sent.src, record.client_port, endpoint, port, sent.protocol)
}

fn returning(sent: &Tuple, record: &Record) -> Tuple {
    Tuple {
        src: record.endpoint,
        dst: record.snat,
        src_port: record.endpoint_port,
        dst_port: record.snat_port,
        seen: Seen::Returning as u8,
        ..*sent
    }
}

fn is_over(sent: &Tuple, record: &Record, now: u32, lifetimes: &Lifetimes) -> bool {
    const UDP: u8 = 17;
    let lifetime = if sent.protocol == UDP {
        if record.reply & half::OPEN == 0 { lifetimes.udp } else { lifetimes.udp_stream }
    } else if Record::is_closed(record.forward, record.reply) {
        lifetimes.closed
    } else if (record.forward | record.reply) & half::FIN != 0 {
        lifetimes.close_wait
    } else {
        lifetimes.established
    };
    let unseen = u64::from(now.saturating_sub(record.seen));
    // What is left to netfilter ends well before netfilter has forgotten it.
    let sooner = if record.flags & flag::NETFILTER == 0 { 1 } else { 2 };
    unseen > lifetime.as_secs() / sooner
}

/// The clock that the programs read.
fn seconds() -> u32 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .ok()
        .and_then(|time| u32::try_from(time.tv_sec()).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use abi::addr::Addr;
    use abi::flow::{Record, Tuple, half};

    use super::{Lifetimes, is_over};

    #[test]
    fn a_connection_lives_as_long_as_its_state_says() {
        let addr = Addr::from_v4(1);
        let tuple = |protocol| Tuple::between(&addr, 1, &addr, 2, protocol);
        let cases = [
            (6, half::OPEN, half::OPEN, 86_400),
            (6, half::OPEN | half::FIN, half::OPEN, 3600),
            (6, half::OPEN | half::FIN, half::OPEN | half::FIN, 120),
            (6, half::OPEN, half::OPEN | half::RESET, 120),
            (17, half::OPEN, 0, 30),
            (17, half::OPEN, half::OPEN, 120),
        ];
        for (protocol, forward, reply, seconds) in cases {
            let record = Record { forward, reply, seen: 1000, ..Record::default() };
            let over = |now| is_over(&tuple(protocol), &record, now, &Lifetimes::default());
            assert!(!over(1000 + seconds), "{protocol} {forward} {reply}");
            assert!(over(1001 + seconds), "{protocol} {forward} {reply}");
        }
    }
}
