//! What the kernel holds for the frontend that was asked about, and whether that is the plan.

use std::path::Path;

use proxy::backend::Holds;
use proxy::backend::ebpf::Look;
use proxy::backend::held::{Held, HeldTarget};
use proxy::config::ProxyMode;
use proxy::plan::trace::{Decision, Verdict};
use proxy::plan::{At, FrontendKey};
use proxy::status::{Status, file_of};

/// Whom the plan was made for, to be compared with the proxy that writes the kernel.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) mode: ProxyMode,
    pub(super) bpffs: &'a Path,
    /// The name of the node.
    pub(super) node: &'a str,
    /// What a packet of the decision is looked up by.
    pub(super) key: FrontendKey,
    /// Why the mode cannot do it, if it cannot.
    pub(super) unsupported: bool,
}

/// Says it, a sentence a line.
pub(super) fn lines(asked: &Asked<'_>, decision: &Decision) -> Vec<String> {
    let (bpffs, key) = (asked.bpffs.display(), &asked.key);
    if asked.mode != ProxyMode::Ebpf {
        return vec!["not compared: explain reads the kernel in mode ebpf only".to_owned()];
    }
    let look = match Look::at(asked.bpffs) {
        Ok(Some(look)) => look,
        Ok(None) => {
            return vec![format!(
                "not compared: no dataplane is pinned under {bpffs}; if a proxy runs here, name \
                 its --bpffs"
            )];
        }
        Err(error) => return vec![format!("not compared: {error}; ask as root")],
    };
    let held = look.held(key);
    let mut lines = match difference(asked, decision, &held) {
        Some(difference) => vec![
            format!("holds {held} for {key}; kernel and plan differ: {difference}"),
            remedy(asked),
        ],
        None if held.from(decision.source).is_some() => {
            vec![format!("holds {held} for {key}, as planned")]
        }
        None if !held.is_empty() => vec![
            format!(
                "holds {held} for {key}, as planned, for this node's pods and its own processes"
            ),
            "packets that come in from elsewhere are not routed by this dataplane".to_owned(),
        ],
        None if asked.unsupported => {
            vec![format!("holds nothing for {key}, which this mode leaves out")]
        }
        None => match (verdict(decision), asked.is_loopback()) {
            (Some(verdict), false) => vec![format!(
                "holds nothing for {key}, where the plan says {verdict}: this dataplane leaves \
                 alone what no frontend has"
            )],
            _ => vec![format!("holds nothing for {key}, as planned")],
        },
    };
    let (attached, all) = look.attached();
    if attached < all {
        lines.push(format!(
            "only {attached} of {all} programs are attached: connections are not routed; start \
             `fairlead proxy`"
        ));
    }
    lines
}

/// The first thing that the kernel holds otherwise than the plan has it.
fn difference(asked: &Asked<'_>, decision: &Decision, held: &Held) -> Option<String> {
    let frontend = decision.frontend.as_ref().filter(|_| !asked.unsupported);
    let Some((_, frontend)) = frontend else {
        let is_so = held.is_empty() || held.from(decision.source) == verdict(decision).as_ref();
        return (!is_so).then(|| "the plan has no such frontend".to_owned());
    };
    let wanted = &frontend.routes.from(decision.source).target;
    match held.compare(frontend) {
        Holds::Nothing => Some(format!("the plan has {wanted}")),
        Holds::Different(difference) => Some(difference),
        Holds::Same => None,
    }
}

/// What the kernel ought to hold where no frontend decides.
const fn verdict(decision: &Decision) -> Option<HeldTarget> {
    match decision.verdict {
        Verdict::Drop => Some(HeldTarget::Drop),
        Verdict::Reject => Some(HeldTarget::Reject),
        Verdict::Endpoints(_) | Verdict::NotOurs => None,
    }
}

impl Asked<'_> {
    const fn is_loopback(&self) -> bool {
        matches!(self.key.at, At::Address(address) if address.is_loopback())
    }
}

/// What may have made them differ, by what the proxy tells about itself.
fn remedy(asked: &Asked<'_>) -> String {
    let bpffs = asked.bpffs.display();
    let Ok(status) = Status::read(&file_of(asked.bpffs)) else {
        return "no proxy told about itself there; see that one runs".to_owned();
    };
    if !status.is_running() {
        return format!(
            "the proxy that wrote there ({}) does not run any more; start `fairlead proxy`",
            status.pid
        );
    }
    if status.node != asked.node {
        return format!(
            "the proxy that writes there serves node {}, this plan is of node {}; see \
             --hostname-override",
            status.node, asked.node
        );
    }
    format!(
        "the proxy that writes there reads {}; ask with the same objects and flags, and see \
         `fairlead status --bpffs {bpffs}` for what it could not write",
        status.source
    )
}
