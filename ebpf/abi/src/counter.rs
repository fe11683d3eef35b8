//! What the programs count, so that nothing is lost silently.

/// Declares the counters: a name for tables and metrics beside each.
macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Index into `COUNTERS`, a per-CPU array of u64. Where a packet or a call was dropped, it is
        /// the reason that a [`crate::drop::Dropped`] gives, too.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[$doc])* $variant,)*
        }

        impl Counter {
            /// All of them, in the order of their indices.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// A name for tables and metrics.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

counters! {
    // At sockets.
    /// A connect or send was led to an endpoint.
    Translated = "translated",
    /// A connect or send was refused: the Service has no endpoint.
    Refused = "refused",
    /// A set changed while it was being read; the second look was right.
    Retried = "retried",
    /// A set changed under three looks in a row; the call failed with EAGAIN.
    Unsettled = "unsettled",
    /// A TCP socket could not be remembered (no memory): getpeername will show the endpoint.
    Unremembered = "unremembered",
    /// A UDP socket could not be remembered (no memory): the call failed with ENOMEM.
    NoMemory = "no_memory",
    /// An unconnected UDP socket talks to more frontends than it can remember; the oldest was
    /// forgotten, and late answers from it will show its endpoint's address.
    Forgotten = "forgotten",
    /// `UDP_PEERS` is full: this connected UDP socket has storage instead, and will not be ended
    /// when its endpoint goes.
    Unindexed = "unindexed",
    /// A connect or send leads nowhere: the Service has endpoints, but none that may serve here.
    Dropped = "dropped",
    /// A pod's connect or send was left to the packet programs: its source must be rewritten, or
    /// looked at, or may be the endpoint itself.
    LeftToPackets = "left_to_packets",
    /// A connect or send was left alone, whatever it named: the pod, or its Namespace, asks for that.
    LeftAlone = "left_alone",
    /// A node's own connect or send leads nowhere: it is outside of the source ranges.
    OutsideRanges = "outside_source_ranges",
    /// A bind to a node port was refused.
    BindRefused = "bind_refused",
    /// A question to the cluster's DNS was led to this node's own server.
    OwnDns = "own_dns",

    // At packets.
    /// A new connection was led to an endpoint.
    FlowOpened = "flow_opened",
    /// A connection proved that its client exists, and is kept until it ends.
    FlowEstablished = "flow_established",
    /// `FLOWS` or `NAMES` is full: a proved connection stays where new ones may displace it.
    FlowsFull = "flows_full",
    /// A UDP flow ended because its endpoint serves no more.
    FlowStale = "flow_stale",
    /// A source port was replaced, because another connection to the endpoint has the same.
    PortClash = "port_clash",
    /// An ICMP error was translated with the packet that it quotes.
    ErrorTranslated = "icmp_error_translated",
    /// An echo request to a cluster IP was answered.
    EchoAnswered = "echo_answered",
    /// Refused with ICMP port unreachable: no endpoint, or a port that the cluster IP has not.
    PacketRefused = "packet_refused",
    /// Not answered: too many answers this second. Dropped.
    AnswerLimited = "drop_answer_limited",
    /// Dropped: there are endpoints, but none that may serve here.
    DroppedNoLocal = "drop_no_local_endpoint",
    /// Dropped: the source is outside of `loadBalancerSourceRanges`.
    DroppedNotAllowed = "drop_source_range",
    /// Dropped: in a Service CIDR, but no Service's.
    DroppedUnallocated = "drop_unallocated",
    /// Dropped: from or to a loopback address, but from elsewhere.
    DroppedMartian = "drop_martian",
    /// Dropped: `NEW_FLOWS` or `NEW_NAMES` took no entry.
    DroppedNoRoom = "drop_no_room",
    /// Dropped: no source port is left for connections to this endpoint.
    DroppedNoPort = "drop_no_port",
    /// Dropped: the device has no address of the family.
    DroppedNoAddress = "drop_no_address",
    /// Dropped: the packet could not be rewritten.
    DroppedUnwritable = "drop_unwritable",
    /// Dropped: the endpoints changed while they were read, again and again.
    DroppedUnsettled = "drop_unsettled",
    /// Dropped: the first fragment of an SCTP packet, whose checksum spans all of them.
    DroppedSctpFragment = "drop_sctp_fragment",
    /// Dropped: a packet in the middle of a connection that is not known, on its way out.
    DroppedStray = "drop_stray",
    /// Dropped: no way from here to the endpoint.
    DroppedNoRoute = "drop_no_route",
    /// A fragment that came before the first of its datagram waits for it.
    FragmentHeld = "fragment_held",
    /// Dropped: no room to hold a fragment that came before the first of its datagram.
    DroppedFragment = "drop_fragment",
    /// The first fragment of a datagram has come, and those that were held for it go on behind it.
    FragmentsReleased = "fragments_released",
    /// A fragment that came before the first of its datagram found no room to be held, and went on:
    /// it may be for a socket.
    FragmentNotHeld = "fragment_not_held",
}

impl Counter {
    /// The counter at an index.
    pub fn at(index: u32) -> Option<Self> {
        Self::ALL.get(index as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::Counter;

    #[test]
    fn every_counter_stands_at_its_index() {
        for (index, counter) in (0..).zip(Counter::ALL) {
            assert_eq!(counter as u32, index);
            assert_eq!(Counter::at(index), Some(counter));
        }
        assert_eq!(Counter::at(u32::MAX), None);
    }
}
