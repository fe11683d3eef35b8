//! What the programs count, so that nothing is lost silently.

/// Index into `COUNTERS`, a per-CPU array of u64.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// A connect or send was led to an endpoint.
    Translated = 0,
    /// A connect or send was refused: the Service has no endpoint.
    Refused = 1,
    /// A set changed while it was being read; the second look was right.
    Retried = 2,
    /// A set changed under three looks in a row; the call failed with EAGAIN.
    Unsettled = 3,
    /// A TCP socket could not be remembered (no memory): getpeername will show the endpoint.
    Unremembered = 4,
    /// A UDP socket could not be remembered (no memory): the call failed with ENOMEM.
    NoMemory = 5,
    /// An unconnected UDP socket talks to more frontends than it can remember; the oldest was
    /// forgotten, and late answers from it will show its endpoint's address.
    Forgotten = 6,
    /// `UDP_PEERS` is full: this connected UDP socket has storage instead, and will not be ended
    /// when its endpoint goes.
    Unindexed = 7,
    /// A connect or send leads nowhere: the Service has endpoints, but none that may serve here.
    Dropped = 8,
}

impl Counter {
    /// All of them, in the order of their indices.
    pub const ALL: [Self; 9] = [
        Self::Translated,
        Self::Refused,
        Self::Retried,
        Self::Unsettled,
        Self::Unremembered,
        Self::NoMemory,
        Self::Forgotten,
        Self::Unindexed,
        Self::Dropped,
    ];

    /// A name for tables and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Translated => "translated",
            Self::Refused => "refused",
            Self::Retried => "retried",
            Self::Unsettled => "unsettled",
            Self::Unremembered => "unremembered",
            Self::NoMemory => "no_memory",
            Self::Forgotten => "forgotten",
            Self::Unindexed => "unindexed",
            Self::Dropped => "dropped",
        }
    }
}
