//! One aya-log record per hook, for debugging: nothing at all unless built with the feature `log`.

/// Writes the hook's name to the log.
#[cfg(feature = "log")]
macro_rules! record {
    ($ctx:expr, $hook:literal) => {
        aya_log_ebpf::info!($ctx, "{}", $hook)
    };
}

/// Nothing.
#[cfg(not(feature = "log"))]
macro_rules! record {
    ($ctx:expr, $hook:literal) => {
        let _ = &$ctx;
    };
}

pub(crate) use record;
