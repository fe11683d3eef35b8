//! Where changes come from: an API server, a folder of YAML, or a script.

pub mod files;
pub mod kube;
pub mod script;
