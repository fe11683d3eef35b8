//! What the eBPF dataplane can do. `[pure]`

use abi::endpoint::Head;

use super::sets::Members;
use crate::backend::Unsupported;
use crate::plan::{Frontend, Target};

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
