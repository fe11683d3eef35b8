//! What the eBPF programs counted, as metrics. `[pure]`

use std::collections::BTreeMap;
use std::fmt;

use abi::counter::Counter;
use pages::Text;

use crate::backend::ebpf::usage::Usage;
use crate::plan::Plan;

/// What happened, by its kind; what was dropped, by its reason.
///
/// # Errors
/// None: writing to a string does not fail.
pub fn write_counters(counters: &[(Counter, u64)], text: &mut Text) -> fmt::Result {
    let name = "fairlead_ebpf_events_total";
    text.head(name, "counter", "What the eBPF programs did, by `event`; drops with their reason.")?;
    for (counter, n) in counters {
        text.sample(name, &format!("event=\"{}\"", counter.name()), n)?;
    }
    Ok(())
}

/// What each Service port was asked and served; one that was asked nothing is left out.
///
/// # Errors
/// None, as [`write_counters`].
pub fn write_usage(usage: &BTreeMap<u32, Usage>, plan: &Plan, text: &mut Text) -> fmt::Result {
    let mut by_port: BTreeMap<String, Usage> = BTreeMap::new();
    for usage in usage.values() {
        let mut services = usage.frontends.iter().filter_map(|key| plan.frontends.get(key));
        let Some(frontend) = services.next() else { continue };
        let port = &frontend.service;
        let labels = format!(
            "namespace=\"{}\",service=\"{}\",port=\"{}\"",
            port.service.namespace, port.service.name, port.port
        );
        by_port.entry(labels).or_default().add(usage.clone());
    }
    type Count = fn(&Usage) -> u64;
    let counts: [(&str, &str, Count); 5] = [
        ("connections", "Connections, or flows, to a Service port.", |usage| {
            usage.served.connections
        }),
        ("packets", "Packets that passed a program, both ways.", |usage| usage.served.packets),
        ("bytes", "Their bytes.", |usage| usage.served.bytes),
        ("refused", "Connections and packets refused: no endpoint.", |usage| usage.refused),
        ("dropped", "Connections and packets dropped.", |usage| usage.dropped),
    ];
    for (what, help, count) in counts {
        let name = format!("fairlead_service_{what}_total");
        text.head(&name, "counter", help)?;
        for (labels, n) in by_port.iter().map(|(labels, usage)| (labels, count(usage))) {
            if n > 0 {
                text.sample(&name, labels, n)?;
            }
        }
    }
    Ok(())
}
