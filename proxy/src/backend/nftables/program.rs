//! Runs the program `nft`.

use crate::backend::program::{Program, ProgramError};

/// `nft` did not do what it was told. What it refuses changes nothing.
pub(super) type NftError = ProgramError;

const NFT: Program = Program { name: "nft", package: "nftables" };

/// Carries out one transaction.
pub(super) fn transact(text: &str) -> Result<(), NftError> {
    NFT.run(&["-f", "-"], text.as_bytes()).map(drop)
}

/// Lists a table as JSON; `None` if there is no such table.
pub(super) fn list(family: &str, table: &str) -> Result<Option<Vec<u8>>, NftError> {
    match NFT.run(&["-j", "list", "table", family, table], &[]) {
        Ok(json) => Ok(Some(json)),
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
