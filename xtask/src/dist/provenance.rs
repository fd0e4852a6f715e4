//! Where a release came from: an in-toto statement with SLSA's provenance predicate (v1), unsigned. Whoever publishes it
//! signs it.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::cross::Processor;
use super::{VERSION, git, read_text};
use crate::image;

/// The statement about files with these sums.
///
/// # Errors
/// Where Cargo.lock cannot be read.
pub fn of(sums: &BTreeMap<String, String>, processors: &[Processor]) -> Result<Vec<u8>> {
    let mut materials = vec![json!({
        "uri": "Cargo.lock",
        "digest": {"sha256": image::hex(read_text("Cargo.lock")?.as_bytes())},
    })];
    if let Some(commit) = git(&["rev-parse", "HEAD"]) {
        let uri = format!("git+{}", env!("CARGO_PKG_REPOSITORY"));
        materials.push(json!({"uri": uri, "digest": {"gitCommit": commit}}));
    }
    // What is not committed is in no commit: a release of it can be repeated by nobody else.
    let clean =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| changes.is_empty());
    let statement = statement(sums, processors, &materials, clean, &compilers());
    serde_json::to_vec_pretty(&statement).context("it cannot be written as JSON")
}

fn statement(
    sums: &BTreeMap<String, String>,
    processors: &[Processor],
    materials: &[Value],
    clean: bool,
    compilers: &BTreeMap<String, String>,
) -> Value {
    let subjects: Vec<Value> =
        sums.iter().map(|(name, sum)| json!({"name": name, "digest": {"sha256": sum}})).collect();
    let targets: Vec<&str> = processors.iter().map(|it| it.target()).collect();
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": format!("{}/cargo-xtask-dist/v1", env!("CARGO_PKG_REPOSITORY")),
                "externalParameters": {"version": VERSION, "targets": targets},
                "internalParameters": {"compilers": compilers, "treeIsClean": clean},
                "resolvedDependencies": materials,
            },
            "runDetails": {"builder": {"id": format!("{}/cargo-xtask-dist", env!("CARGO_PKG_REPOSITORY"))}},
        },
    })
}

/// What compiled it, by its path.
fn compilers() -> BTreeMap<String, String> {
    let ours = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let all = [ours, "/usr/bin/rustc".into()].into_iter().filter_map(|path| {
        let output =
            Command::new(&path).arg("--version").output().ok().filter(|output| output.status.success())?;
        Some((path, String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_subject_and_the_predicate_is_slsas() {
        let sums = [("a.tar".to_owned(), "00ff".to_owned())].into();
        let said = statement(&sums, &[Processor::Arm64], &[json!({"uri": "x"})], true, &BTreeMap::new());
        assert_eq!(said["subject"], json!([{"name": "a.tar", "digest": {"sha256": "00ff"}}]));
        assert_eq!(said["predicateType"], "https://slsa.dev/provenance/v1");
        let build = &said["predicate"]["buildDefinition"];
        assert_eq!(build["externalParameters"]["targets"], json!(["aarch64-unknown-linux-gnu"]));
        assert_eq!(build["resolvedDependencies"][0]["uri"], "x");
    }
}
