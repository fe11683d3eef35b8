//! How much went where.

/// Value of `ENDPOINT_COUNTS`, by [`crate::endpoint::Endpoint::id`]: what an endpoint served for one
/// Service port. Programs add to it (atomically) and user space reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointCounts {
    /// Connections, or flows, that were led to it.
    pub connections: u64,
    /// Packets in both directions. Those of translated sockets pass no program, and are not counted.
    pub packets: u64,
    /// Their bytes, from the network header on.
    pub bytes: u64,
    /// Zero.
    pub pad: u64,
}

/// Value of `SERVICE_COUNTS`, by [`crate::slot::Rules::service`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounts {
    /// Connections and packets that were refused: there is no endpoint.
    pub refused: u64,
    /// Connections and packets that were dropped, for any reason.
    pub dropped: u64,
    /// What endpoints served that the Service has no more; user space adds to it.
    pub gone: EndpointCounts,
    /// Zero.
    pub pad: [u64; 2],
}

const _: () = assert!(size_of::<EndpointCounts>() == 32);
const _: () = assert!(size_of::<ServiceCounts>() == 64);
