//! What the eBPF dataplane can do. `[pure]`

use abi::endpoint::Head;
use model::name::Protocol;

use super::sets::Members;
use crate::backend::Unsupported;
use crate::plan::{Frontend, FrontendKind, Masquerade, Target};

/// Whether sockets alone can do all that a frontend asks: packets of others pass no program.
pub(super) fn at_sockets(frontend: &Frontend) -> Result<(), Unsupported> {
    if frontend.kind != FrontendKind::ClusterIp {
        return refuse(
            frontend.kind.field(),
            "this kernel is older than 6.6, where the eBPF mode routes cluster IPs only; take a \
             newer one, or another --proxy-mode",
        );
    }
    if frontend.service.protocol == Protocol::Sctp {
        return refuse(
            "spec.ports[].protocol",
            "this kernel is older than 6.6, where the eBPF mode routes TCP and UDP only; take a \
             newer one, or another --proxy-mode",
        );
    }
    if frontend.routes.pod.masquerade == Masquerade::Always {
        return refuse(
            "--masquerade-all",
            "this kernel is older than 6.6, where the eBPF mode keeps the source of pods; take a \
             newer one, or another --proxy-mode",
        );
    }
    in_maps(frontend)
}

/// Whether the maps can hold what a frontend asks.
pub(super) fn in_maps(frontend: &Frontend) -> Result<(), Unsupported> {
    let routes = &frontend.routes;
    for target in [&routes.pod.target, &routes.node.target, &routes.outside.target] {
        let Target::Endpoints(set) = target else { continue };
        if set.len() > Head::MAX_LENGTH as usize {
            return refuse(
                "endpoints",
                "more than 262,143 endpoints of one Service; split the Service",
            );
        }
        if !set.is_uniform() && Members::Chosen(set).len() > MAX_WEIGHTED {
            return refuse(
                "metadata.annotations[fairlead.dev/weight]",
                "the weights of the endpoints add up to more than 65,536 after division by what \
                 they have in common; use smaller ones",
            );
        }
    }
    Ok(())
}

/// The most entries that a set takes whose endpoints stand in it several times.
const MAX_WEIGHTED: u32 = 65_536;

fn refuse(field: &str, reason: &str) -> Result<(), Unsupported> {
    Err(Unsupported { field: field.to_owned(), reason: reason.to_owned() })
}
