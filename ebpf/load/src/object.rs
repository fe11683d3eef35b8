//! The compiled programs.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Aligned as the ELF parser wants it.
static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/prog.o"));

/// The object that was embedded at build time, or the one in a file.
///
/// # Errors
/// The file cannot be read, or nothing was embedded.
pub fn read(file: Option<&Path>) -> Result<Cow<'static, [u8]>, ReadObjectError> {
    match file {
        Some(path) => std::fs::read(path)
            .map(Cow::Owned)
            .map_err(|source| ReadObjectError::File { path: path.to_owned(), source }),
        None if EMBEDDED.is_empty() => Err(ReadObjectError::NotEmbedded),
        None => Ok(Cow::Borrowed(EMBEDDED)),
    }
}

/// Why there are no programs.
#[derive(Debug, Error)]
pub enum ReadObjectError {
    /// Built by plain `cargo build` before the object existed.
    #[error(
        "this binary was built without its eBPF programs: build it with `cargo xtask build`, \
         or choose another --proxy-mode"
    )]
    NotEmbedded,
    /// The file that was named cannot be read.
    #[error("cannot read the eBPF object {path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
