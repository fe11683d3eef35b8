//! Takes new connections over from whoever had them. What netfilter translates stays with it: TCP
//! connections are left to it because they do not begin here, UDP flows because they are entered.
//!
//! ```text
//!  devices attached ─▶ UDP flows of conntrack ─▶ FLOWS ─▶ new connections are led ─▶ once more
//! ```

use std::net::SocketAddr;

use abi::flow::{Record, Seen, Tuple, flag, half};
use load::OpenError;
use load::flows::Flows;
use model::name::{Family, Protocol};
use tracing::{info, warn};

use super::Opened;
use super::encode::abi_key;
use crate::conntrack::{self, Translated};
use crate::plan::{At, FrontendKey};

/// The number of UDP.
const UDP: u8 = 17;

impl Opened {
    /// Leads new connections at the devices from now on.
    pub(super) fn lead(&mut self) -> Result<(), OpenError> {
        if !self.node.leaves_new() {
            return Ok(());
        }
        let before = self.leave_known();
        self.node.leave_new(&mut self.dataplane, false)?;
        // Those that began meanwhile.
        let n = before + self.leave_known();
        info!(n, "new connections are led; known UDP flows are left to netfilter");
        Ok(())
    }

    /// Leaves UDP flows to netfilter that it translates. Says how many.
    fn leave_known(&self) -> usize {
        let flows = match conntrack::translated() {
            Ok(flows) => flows,
            Err(error) => {
                // Where there is no conntrack, nothing is translated.
                info!("UDP flows may change their endpoint: cannot read conntrack: {error}");
                return 0;
            }
        };
        let now = Flows::now();
        let entries: Vec<_> =
            flows.iter().filter_map(|flow| Some((sent(flow), self.record(flow, now)?))).collect();
        self.packets().leave(&entries).unwrap_or_else(|error| {
            warn!("UDP flows may change their endpoint: cannot enter them: {error}");
            0
        })
    }

    /// What is entered of a flow, if it is to a frontend. Whether its endpoint serves is looked at by
    /// its next packet, for no set has that generation.
    fn record(&self, flow: &Translated, now: u32) -> Option<Record> {
        let key = |at| FrontendKey { at, port: flow.frontend.port(), protocol: Protocol::Udp };
        let address = flow.frontend.ip();
        let keys = [key(At::Address(address)), key(At::NodePort(Family::of(&address)))];
        let slot = keys.iter().find_map(|key| self.programmed.get(&abi_key(key)))?;
        Some(Record {
            endpoint: flow.endpoint.ip().into(),
            endpoint_port: flow.endpoint.port().to_be(),
            flags: flag::NETFILTER,
            forward: half::OPEN,
            reply: if flow.is_assured { half::OPEN } else { 0 },
            slot: *slot,
            generation: u32::MAX,
            seen: now,
            ..Record::default()
        })
    }
}

/// The key of its record.
fn sent(flow: &Translated) -> Tuple {
    let end = |socket: SocketAddr| (socket.ip().into(), socket.port().to_be());
    let ((src, src_port), (dst, dst_port)) = (end(flow.client), end(flow.frontend));
    Tuple { src, dst, src_port, dst_port, protocol: UDP, seen: Seen::Sent as u8, pad: 0 }
}
