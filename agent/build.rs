//! Embeds the BPF object that `cargo xtask build-ebpf` has made, or nothing.
//!
//! Never fails for want of it: plain `cargo build` needs no BPF toolchain, and an agent without the object says
//! "built without BPF programs" and takes network figures from `/proc`. `SWARMGUARD_BPF_OBJECT` names another
//! object, or none if it is set to nothing; naming one that cannot be read is an error, for it was asked for.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=SWARMGUARD_BPF_OBJECT");
    let target = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("programs.o");
    let object = match env::var_os("SWARMGUARD_BPF_OBJECT") {
        Some(path) if path.is_empty() => Vec::new(),
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo:rerun-if-changed={}", path.display());
            fs::read(&path)
                .unwrap_or_else(|error| panic!("SWARMGUARD_BPF_OBJECT={}: {error}", path.display()))
        }
        None => default_object(),
    };
    fs::write(&target, object).unwrap_or_else(|error| panic!("cannot write {}: {error}", target.display()));
}

/// The object where xtask puts it; empty if it has not been built.
fn default_object() -> Vec<u8> {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let dir = here.parent().unwrap_or(Path::new("..")).join("target/bpf");
    // The directory is watched, not the object: cargo would run this script on every build for a missing file.
    if fs::create_dir_all(&dir).is_ok() {
        println!("cargo:rerun-if-changed={}", dir.display());
    }
    fs::read(dir.join("swarmguard-agent-ebpf")).unwrap_or_default()
}
