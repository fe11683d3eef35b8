//! Where the binary under test is.

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
