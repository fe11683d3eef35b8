//! The oracle's own test: every case of `cases/service`, played by the trace through the plan.

#[cfg(test)]
#[path = "service_cases/play.rs"]
mod play;
