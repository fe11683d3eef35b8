//! What this process takes, under the names of Prometheus's clients.

use std::fmt;
use std::fs;

use nix::unistd::{SysconfVar, sysconf};
use pages::Text;

/// Its memory, processor time and descriptors; what `/proc` does not tell is left out.
///
/// # Errors
/// None: writing to a string does not fail.
pub fn write(text: &mut Text) -> fmt::Result {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name may have spaces; the state, which is field 3, follows it.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    if let (Some(user), Some(system), Some(ticks)) =
        (field(14), field(15), constant(SysconfVar::CLK_TCK))
    {
        let name = "process_cpu_seconds_total";
        text.head(name, "counter", "Processor time.")?;
        let micros = (user + system).saturating_mul(1_000_000) / ticks;
        text.sample(name, "", pages::text::seconds(micros))?;
    }
    if let (Some(resident), Some(page)) = (field(24), constant(SysconfVar::PAGE_SIZE)) {
        let name = "process_resident_memory_bytes";
        text.head(name, "gauge", "Memory that is there.")?;
        text.sample(name, "", resident * page)?;
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        let name = "process_open_fds";
        text.head(name, "gauge", "Open descriptors.")?;
        text.sample(name, "", files.count())?;
    }
    Ok(())
}

fn constant(of: SysconfVar) -> Option<u64> {
    sysconf(of)
        .ok()
        .flatten()
        .and_then(|value| u64::try_from(value).ok())
        .filter(|value| *value > 0)
}
