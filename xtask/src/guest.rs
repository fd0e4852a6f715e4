//! The guest program (`xtask/guest`), built static, and the initramfs that carries it into a VM.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use swarmguard_guest::protocol;

use crate::cpio::Archive;
use crate::rootfs::{Kernel, boot_modules};
use crate::workspace::root;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the guest program and says where it is.
///
/// # Errors
/// Where cargo fails.
pub fn program() -> Result<PathBuf> {
    let root = root();
    // A directory of its own: other flags in the usual one would rebuild everything at every turn.
    let directory = root.join("target/guest");
    let output = crate::workspace::cargo()
        .args(["build", "--quiet", "--release", "--locked", "--package", "swarmguard-guest", "--bin"])
        .args(["swarmguard-guest", "--target", TARGET, "--target-dir"])
        .arg(&directory)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env_remove("RUSTFLAGS")
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cannot build the guest program: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(directory.join(TARGET).join("release/swarmguard-guest"))
}

/// A program to run in a VM, and files to lay beside it; everything ends up in `/sg` there.
pub struct Payload<'a> {
    /// The program on this machine.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: &'a [String],
    /// More files from this machine.
    pub files: &'a [PathBuf],
}

/// Writes an initramfs with the guest program as `/init`, the modules it needs first, and perhaps a payload.
///
/// # Errors
/// Where a file cannot be read or `out` cannot be written.
pub fn initramfs(kernel: &Kernel, program: &Path, payload: Option<&Payload<'_>>, out: &Path) -> Result<()> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "lower", "rw", "new", "mods"] {
        archive.directory(directory);
    }
    archive.file("init", 0o755, &read(program)?);
    let mut order = String::new();
    for path in boot_modules(kernel)? {
        let name = file_name(&path)?;
        archive.file(&format!("mods/{name}"), 0o644, &read(&path)?);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("mods/order", 0o644, order.as_bytes());
    if let Some(payload) = payload {
        archive.directory("payload");
        let mut words = vec![format!("/sg/{}", file_name(payload.program)?)];
        words.extend_from_slice(payload.arguments);
        archive.file("payload/arguments", 0o644, &protocol::join(&words));
        archive.directory("payload/files");
        for path in std::iter::once(payload.program).chain(payload.files.iter().map(PathBuf::as_path)) {
            archive.file(&format!("payload/files/{}", file_name(path)?), 0o755, &read(path)?);
        }
    }
    fs::write(out, archive.finish()).with_context(|| format!("cannot write {}", out.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().with_context(|| format!("{} has no file name", path.display()))?;
    Ok(name.to_string_lossy().into_owned())
}
