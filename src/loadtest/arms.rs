//! From targets to arms: each beside its endpoints, and those twice.

use std::net::SocketAddr;

use loadtest::experiment::{Arm, Role};
use loadtest::generator::Generator;
use loadtest::kind::{Kind, Load};

use super::target::{Endpoint, Target};
use super::{Args, Scene};

/// Targets that run already, sent to from this process.
///
/// # Errors
/// No threads can be made.
pub(super) fn of_targets(args: &Args, targets: &[Target]) -> anyhow::Result<Scene> {
    let kind = args.kind.unwrap_or(Kind::Http);
    let mut arms = Vec::new();
    let endpoints: Vec<Endpoint> = targets.iter().flat_map(|it| it.endpoints.clone()).collect();
    if !endpoints.is_empty() {
        for (name, role) in [("direct", Role::Baseline), ("direct again", Role::Again)] {
            arms.push(direct(args, kind, (name, role), 0, &endpoints));
        }
    }
    for target in targets {
        arms.push(candidate(args, kind, &target.label, 0, target));
    }
    let labels: Vec<&str> = targets.iter().map(|target| target.label.as_str()).collect();
    Ok(Scene {
        hands: vec![Box::new(Generator::start(&args.threads())?)],
        arms,
        label: labels.join(", "),
        churn: None,
        _stage: None,
    })
}

/// The endpoints themselves, in turn.
pub(super) fn direct(
    args: &Args,
    kind: Kind,
    (name, role): (&str, Role),
    hand: usize,
    endpoints: &[Endpoint],
) -> Arm {
    let targets = endpoints.iter().map(|endpoint| endpoint.address).collect();
    let (servers, weights) = (Vec::new(), Vec::new());
    Arm { name: name.to_owned(), role, hand, load: load(args, kind, targets), servers, weights }
}

/// The Service, with the weights that its endpoints ought to have.
pub(super) fn candidate(args: &Args, kind: Kind, name: &str, hand: usize, target: &Target) -> Arm {
    let named = target
        .endpoints
        .iter()
        .map(|endpoint| Some((endpoint.name.clone()?, endpoint.weight)))
        .collect::<Option<Vec<_>>>();
    let weights = match args.weights.is_empty() {
        true => named.unwrap_or_default(),
        false => args.weights.clone(),
    };
    Arm {
        name: name.to_owned(),
        role: Role::Candidate,
        hand,
        load: load(args, kind, vec![target.address]),
        servers: Vec::new(),
        weights,
    }
}

fn load(args: &Args, kind: Kind, targets: Vec<SocketAddr>) -> Load {
    Load {
        kind,
        targets,
        concurrency: args.concurrency,
        rate: args.rate,
        payload: args.payload,
        requests_per_connection: args
            .requests_per_connection
            .unwrap_or_else(|| kind.requests_per_connection()),
        sources: args.source_address.clone(),
        timeout: u64::try_from(args.timeout.as_nanos()).unwrap_or(u64::MAX),
        name: args.name.clone(),
        path: args.path.clone(),
    }
}
