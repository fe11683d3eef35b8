//! Embeds the eBPF object that `cargo xtask build` makes, when it is there.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-env-changed=FAIRLEAD_EBPF_OBJECT");
    let object = env::var_os("FAIRLEAD_EBPF_OBJECT").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/ebpf/prog.o"),
        PathBuf::from,
    );
    println!("cargo:rerun-if-changed={}", object.display());

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let embedded = out.join("prog.o");
    if object.is_file() {
        fs::copy(&object, &embedded).expect("the object can be read");
    } else {
        println!(
            "cargo:warning=built without the eBPF programs: {} is not there; \
             `cargo xtask build` makes it",
            object.display()
        );
        fs::write(&embedded, []).expect("OUT_DIR can be written");
    }
}
