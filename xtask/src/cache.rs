//! Things that take long to build, kept under `target/cluster/cache` by a hash of how they are built.
//!
//! Built beside and renamed, so that what is there is whole; checked by size and SHA-256 before every use, so that
//! a full disk or a stray edit is noticed instead of booted.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::workspace::root;

/// Written last into a finished entry.
const MANIFEST: &str = "manifest.json";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    recipe: String,
    files: Vec<Part>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    name: String,
    size: u64,
    sha256: String,
}

/// The directory of everything that clusters leave on this machine.
pub fn clusters() -> PathBuf {
    root().join("target/cluster")
}

/// The entry called `kind` for this `recipe` (any text that changes when the result would), building it where it is
/// missing or damaged. `files` are the ones the entry consists of and is checked by.
///
/// # Errors
/// Where the build fails or does not make the files it should.
pub fn entry(
    kind: &str,
    recipe: &str,
    files: &[&str],
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let cache = clusters().join("cache");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let _turn = lock(&cache.join(format!("{kind}.lock")))?;
    let place = cache.join(format!("{kind}-{}", short_hash(recipe)));
    if place.exists() {
        match verify(&place, recipe) {
            Ok(()) => return Ok(place),
            Err(error) => eprintln!("cache: {} is damaged and built again: {error:#}", place.display()),
        }
        fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
    }
    let partial = cache.join(format!("{kind}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    build(&partial)?;
    let manifest = Manifest {
        recipe: recipe.to_owned(),
        files: files.iter().map(|name| part(&partial, name)).collect::<Result<_>>()?,
    };
    let path = partial.join(MANIFEST);
    fs::write(&path, serde_json::to_vec_pretty(&manifest)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    fs::rename(&partial, &place).with_context(|| format!("cannot rename {}", partial.display()))?;
    Ok(place)
}

/// Waits for and holds the lock in this file until it is dropped.
///
/// # Errors
/// Where the file cannot be made.
pub fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    flock(file.as_fd(), FlockOperation::LockExclusive)
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// The first 16 hexadecimal digits of a text's SHA-256.
pub fn short_hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn verify(place: &Path, recipe: &str) -> Result<()> {
    let path = place.join(MANIFEST);
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).with_context(|| format!("{} is no manifest", path.display()))?;
    if manifest.recipe != recipe {
        bail!("it was built by another recipe");
    }
    for recorded in &manifest.files {
        let size = fs::metadata(place.join(&recorded.name))
            .with_context(|| format!("cannot find {}", recorded.name))?
            .len();
        if size != recorded.size {
            bail!("{} has {size} bytes instead of {}", recorded.name, recorded.size);
        }
        if part(place, &recorded.name)? != *recorded {
            bail!("{} has another SHA-256 than when it was built", recorded.name);
        }
    }
    Ok(())
}

fn part(place: &Path, name: &str) -> Result<Part> {
    let path = place.join(name);
    let size = fs::metadata(&path).with_context(|| format!("the build made no {}", path.display()))?.len();
    // coreutils, not the sha2 crate: in an unoptimised xtask that takes twenty times as long for an image.
    let output = Command::new("sha256sum").arg(&path).output().context("cannot run sha256sum")?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.split_whitespace().next() {
        Some(sha256) if output.status.success() => {
            Ok(Part { name: name.to_owned(), size, sha256: sha256.trim_start_matches('\\').to_owned() })
        }
        _ => bail!(
            "sha256sum of {} failed: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_noticed() {
        let place = tempfile::tempdir().expect("a temporary directory");
        fs::write(place.path().join("a"), "content").expect("written");
        let manifest =
            Manifest { recipe: "r".to_owned(), files: vec![part(place.path(), "a").expect("hashed")] };
        fs::write(place.path().join(MANIFEST), serde_json::to_vec(&manifest).expect("json"))
            .expect("written");
        verify(place.path(), "r").expect("untouched");
        assert!(verify(place.path(), "other").is_err());
        fs::write(place.path().join("a"), "CONTENT").expect("written");
        let error = verify(place.path(), "r").expect_err("same size, other bytes").to_string();
        assert!(error.contains("SHA-256"), "{error}");
        fs::write(place.path().join("a"), "").expect("written");
        assert!(verify(place.path(), "r").expect_err("shorter").to_string().contains("0 bytes instead of 7"));
    }
}
