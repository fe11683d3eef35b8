//! `ENDPOINT_COUNTS` and `SERVICE_COUNTS`: how much went where.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use abi::count::{EndpointCounts, ServiceCounts};

use crate::mapped::MappedEntries;

const ENDPOINT_WORDS: usize = size_of::<EndpointCounts>() / size_of::<u64>();
const SERVICE_WORDS: usize = size_of::<ServiceCounts>() / size_of::<u64>();

/// The counts of all endpoints and Service ports, by their ids.
#[derive(Debug)]
pub struct Counts {
    endpoints: MappedEntries<ENDPOINT_WORDS>,
    services: MappedEntries<SERVICE_WORDS>,
}

impl Counts {
    pub(crate) fn new(
        (endpoints, n_endpoints): (impl AsFd, u32),
        (services, n_services): (impl AsFd, u32),
    ) -> io::Result<Self> {
        Ok(Self {
            endpoints: MappedEntries::new(endpoints, n_endpoints)?,
            services: MappedEntries::new(services, n_services)?,
        })
    }

    /// What an endpoint served.
    pub fn endpoint(&self, id: u32) -> EndpointCounts {
        let Some(words) = self.endpoint_words(id) else { return EndpointCounts::default() };
        let [connections, packets, bytes, _] =
            words.each_ref().map(|word| word.load(Ordering::Relaxed));
        EndpointCounts { connections, packets, bytes, pad: 0 }
    }

    /// What became of connections to a Service port, besides those to the endpoints that it has.
    pub fn service(&self, id: u32) -> ServiceCounts {
        let Some(words) = self.service_words(id) else { return ServiceCounts::default() };
        let [refused, dropped, connections, packets, bytes, ..] =
            words.each_ref().map(|word| word.load(Ordering::Relaxed));
        let gone = EndpointCounts { connections, packets, bytes, pad: 0 };
        ServiceCounts { refused, dropped, gone, pad: [0; 2] }
    }

    /// Adds what an endpoint served to its Service port's sum, and begins anew for the next that
    /// gets its id.
    pub fn endpoint_gone(&self, id: u32, service: u32) {
        let (Some(from), Some([_, _, to @ ..])) =
            (self.endpoint_words(id), self.service_words(service))
        else {
            return;
        };
        for (from, to) in from.iter().zip(to) {
            to.fetch_add(from.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Begins anew for the endpoint that gets an id: connections that were led to the one before may
    /// have ended since.
    pub fn clear_endpoint(&self, id: u32) {
        for word in self.endpoint_words(id).into_iter().flatten() {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Adds the packets of a connection that has ended to its endpoint's.
    pub fn endpoint_served(&self, id: u32, packets: u64, bytes: u64) {
        if let Some([_, in_packets, in_bytes, _]) = self.endpoint_words(id) {
            in_packets.fetch_add(packets, Ordering::Relaxed);
            in_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// The same of one to an endpoint that its Service port has no more.
    pub fn gone_served(&self, service: u32, packets: u64, bytes: u64) {
        if let Some([_, _, _, in_packets, in_bytes, ..]) = self.service_words(service) {
            in_packets.fetch_add(packets, Ordering::Relaxed);
            in_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Begins anew for the Service port that gets an id.
    pub fn clear_service(&self, id: u32) {
        for word in self.service_words(id).into_iter().flatten() {
            word.store(0, Ordering::Relaxed);
        }
    }

    fn endpoint_words(&self, id: u32) -> Option<&[AtomicU64; ENDPOINT_WORDS]> {
        self.endpoints.get(id)
    }

    fn service_words(&self, id: u32) -> Option<&[AtomicU64; SERVICE_WORDS]> {
        self.services.get(id)
    }
}
