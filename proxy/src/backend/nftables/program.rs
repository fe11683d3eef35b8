//! Runs the program `nft`.

use std::process::ChildStdout;

use crate::backend::program::{Program, ProgramError};

/// `nft` did not do what it was told. What it refuses changes nothing.
pub(super) type NftError = ProgramError;

const NFT: Program = Program { name: "nft", package: "nftables" };

/// Carries out one transaction.
pub(super) fn transact(text: &str) -> Result<(), NftError> {
    NFT.run(&["-f", "-"], text.as_bytes()).map(drop)
}

/// Lists a table as JSON: what is made of that while it is printed; `None` if there is no such table.
pub(super) fn list<T: Send>(
    family: &str,
    table: &str,
    hear: impl FnOnce(ChildStdout) -> T + Send,
) -> Result<Option<T>, NftError> {
    unless_absent(NFT.talk(&["-j", "list", "table", family, table], |_| Ok(()), hear))
}

/// Whether there is a table.
pub(super) fn has(family: &str, table: &str) -> Result<bool, NftError> {
    // Tersely: without the elements.
    unless_absent(NFT.run(&["-t", "list", "table", family, table], &[])).map(|it| it.is_some())
}

fn unless_absent<T>(listed: Result<T, NftError>) -> Result<Option<T>, NftError> {
    match listed {
        Ok(listed) => Ok(Some(listed)),
        Err(NftError::Refused { words, .. }) if words.contains("No such file or directory") => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Lists a chain.
pub(super) fn list_chain(family: &str, table: &str, chain: &str) -> Result<Vec<u8>, NftError> {
    NFT.run(&["list", "chain", family, table, chain], &[])
}

/// Says its version.
pub(super) fn version() -> Result<Vec<u8>, NftError> {
    NFT.run(&["--version"], &[])
}
