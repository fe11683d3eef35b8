//! Where the programs are that tests run.

use std::env;
use std::path::PathBuf;

/// The `fairlead` that was built beside this program, or the one that `FAIRLEAD` names.
///
/// # Panics
/// It is not there.
pub fn fairlead() -> PathBuf {
    let beside = || {
        let me = env::current_exe().ok()?;
        // target/PROFILE/deps/NAME
        Some(me.parent()?.parent()?.join("fairlead"))
    };
    let path = env::var_os("FAIRLEAD").map(PathBuf::from).or_else(beside);
    let path = path.filter(|path| path.is_file());
    path.expect("`cargo xtask build` makes the binary fairlead (with --release for benches)")
}

/// The kubectls that `cargo xtask setup` unpacked, each with its version.
///
/// # Panics
/// They are not there.
pub fn kubectls() -> Vec<(String, PathBuf)> {
    let me = env::current_exe().ok();
    // target/PROFILE/deps/NAME
    let target = me.as_deref().and_then(|me| me.ancestors().nth(3));
    let found = ["1.20", "1.32"].into_iter().map(|version| {
        let path = target.map(|target| target.join("kubectl").join(version).join("kubectl"));
        let path = path.filter(|path| path.is_file());
        (version.to_owned(), path.expect("`cargo xtask setup` fetches the kubectls"))
    });
    found.collect()
}
