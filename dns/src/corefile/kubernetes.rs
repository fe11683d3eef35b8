//! The options of the `kubernetes` plugin.

use std::sync::Arc;

use model::problem::Problem;

use super::{Block, ParseCorefileError, unknown_option, zones};
use crate::config::{Options, PodMode, Zone};

const KNOWN: &str = "endpoint, tls, kubeconfig, apiserver_qps, apiserver_burst, apiserver_max_inflight, \
                     startup_timeout, namespaces, pods, endpoint_pod_names, ttl, noendpoints, ignore, fallthrough";

/// Reads the plugin; without zones of its own it serves those of its server block.
pub(super) fn options(
    plugin: &Block<'_>,
    server_zones: &[String],
    problems: &mut Vec<Problem>,
) -> Result<Options, ParseCorefileError> {
    let words: Vec<&str> = match plugin.words.get(1..) {
        None | Some([]) => server_zones.iter().map(String::as_str).collect(),
        Some(own) => own.to_vec(),
    };
    let (reverse, forward): (Vec<Zone>, Vec<Zone>) =
        zones(plugin.line, &words)?.into_iter().partition(Zone::is_reverse);
    if forward.is_empty() {
        let remedy = "name the cluster domain: kubernetes cluster.local in-addr.arpa ip6.arpa";
        return Err(ParseCorefileError::new(plugin.line, "no cluster domain", remedy));
    }
    let mut options = Options {
        zones: forward,
        reverse,
        pods: PodMode::Disabled,
        fallthrough: Vec::new(),
        ..Options::default()
    };
    for option in &plugin.inner {
        set(&mut options, option, problems)?;
    }
    Ok(options)
}

fn set(
    options: &mut Options,
    option: &Block<'_>,
    problems: &mut Vec<Problem>,
) -> Result<(), ParseCorefileError> {
    match *option.words {
        ["pods", mode] => options.pods = pods(option.line, mode)?,
        ["ttl", seconds] => options.ttl = ttl(option.line, seconds)?,
        ["endpoint_pod_names"] => options.endpoint_pod_names = true,
        ["noendpoints"] => options.endpoints = false,
        ["ignore", "empty_service"] => options.ignore_empty_service = true,
        ["namespaces", ref names @ ..] if !names.is_empty() => {
            options.namespaces = Some(names.iter().map(|&name| Arc::from(name)).collect());
        }
        ["fallthrough"] => options.fallthrough = Zone::parse(".").into_iter().collect(),
        ["fallthrough", ref names @ ..] => options.fallthrough = zones(option.line, names)?,
        [
            name @ ("endpoint"
            | "tls"
            | "kubeconfig"
            | "apiserver_qps"
            | "apiserver_burst"
            | "apiserver_max_inflight"
            | "startup_timeout"),
            ..,
        ] => problems.push(Problem::new(
            "Corefile",
            format!("line {}: kubernetes {name}", option.line),
            "the API server is the one that the command line names",
        )),
        [name @ ("labels" | "namespace_labels" | "multicluster" | "zonal"), ..] => {
            let what = format!("kubernetes {name} is not served");
            return Err(ParseCorefileError::new(option.line, what, "remove it"));
        }
        _ => return Err(unknown_option("kubernetes", option, KNOWN)),
    }
    Ok(())
}

fn pods(line: usize, mode: &str) -> Result<PodMode, ParseCorefileError> {
    match mode {
        "disabled" => Ok(PodMode::Disabled),
        "insecure" => Ok(PodMode::Insecure),
        "verified" => Ok(PodMode::Verified),
        _ => {
            let what = format!("pods {mode:?} is no mode");
            Err(ParseCorefileError::new(line, what, "write disabled, insecure or verified"))
        }
    }
}

fn ttl(line: usize, seconds: &str) -> Result<u32, ParseCorefileError> {
    seconds.parse().ok().filter(|ttl| *ttl <= 3600).ok_or_else(|| {
        ParseCorefileError::new(line, format!("ttl {seconds:?} is out of range"), "write 0 to 3600")
    })
}
