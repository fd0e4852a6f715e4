//! That the judgement can do no IO and read no clock: neither what it depends on, nor its own source, has a way to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// Crates that must stay pure.
const PURE: [&str; 2] = ["swarmguard-common", "swarmguard-core"];

/// Crates that bring sockets, files, clocks or an async runtime with them.
const IMPURE: [&str; 17] = [
    "async-std",
    "axum",
    "bollard",
    "fastrand",
    "getrandom",
    "hyper",
    "mio",
    "quinn",
    "quinn-proto",
    "reqwest",
    "rusqlite",
    "rustls",
    "smol",
    "socket2",
    "swarmguard-runtime",
    "tokio",
    "tracing-subscriber",
];

/// What their own source may not name.
const FORBIDDEN: [&str; 9] = [
    "std::fs",
    "std::process",
    "std::thread",
    "std::env",
    "Instant::now",
    "SystemTime",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    manifest_path: String,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    /// `None` for an ordinary dependency, else `dev` or `build`.
    kind: Option<String>,
}

/// What is wrong, a line each, by the output of `cargo metadata`.
///
/// # Errors
/// Where that output is not understood, or a pure crate's source cannot be read.
pub(super) fn problems(metadata: &[u8]) -> Result<Vec<String>> {
    let metadata: Metadata = serde_json::from_slice(metadata).context("cargo metadata is not understood")?;
    let mut problems = Vec::new();
    for crate_name in PURE {
        problems.extend(impure_dependencies(&metadata, crate_name)?);
        let package = metadata.packages.iter().find(|package| package.name == crate_name);
        let manifest = package.map(|package| Path::new(&package.manifest_path));
        let source = manifest.and_then(Path::parent).context("a package without a directory")?.join("src");
        problems.extend(impure_sources(&source)?);
    }
    Ok(problems)
}

fn impure_dependencies(metadata: &Metadata, of: &str) -> Result<Vec<String>> {
    let names: BTreeMap<_, _> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package.name.as_str())).collect();
    let nodes: BTreeMap<_, _> = metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let Some(start) = names.iter().find(|(_, name)| **name == of).map(|(id, _)| *id) else {
        bail!("there is no package {of}")
    };
    let mut found = Vec::new();
    let (mut seen, mut queue) = (BTreeSet::from([start]), VecDeque::from([(start, of.to_owned())]));
    while let Some((id, way)) = queue.pop_front() {
        let ordinary = |dependency: &&Dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
        for dependency in nodes.get(id).into_iter().flat_map(|node| &node.deps).filter(ordinary) {
            let name = names.get(dependency.pkg.as_str()).copied().unwrap_or_default();
            let way = format!("{way} -> {name}");
            if IMPURE.contains(&name) {
                found.push(format!("  {way}: {of} must not reach {name}"));
            } else if seen.insert(&dependency.pkg) {
                queue.push_back((&dependency.pkg, way));
            }
        }
    }
    Ok(found)
}

fn impure_sources(directory: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    super::collect(directory, &mut files)?;
    let mut found = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        found.extend(impure_lines(&text).map(|line| format!("  {}:{line}", path.display())));
    }
    Ok(found)
}

fn impure_lines(text: &str) -> impl Iterator<Item = String> + '_ {
    // Tests may read files: they are not part of the judgement, and come last in a file.
    let code = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).enumerate();
    code.filter(|(_, line)| !line.trim_start().starts_with("//")).flat_map(|(index, line)| {
        let named = FORBIDDEN.iter().filter(move |word| line.contains(**word));
        named.map(move |word| format!("{}: names {word}", index + 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(kind: &str) -> Metadata {
        let text = format!(
            r#"{{"packages": [
                {{"id": "a", "name": "swarmguard-core", "manifest_path": "/x/Cargo.toml"}},
                {{"id": "b", "name": "middle", "manifest_path": "/y/Cargo.toml"}},
                {{"id": "c", "name": "tokio", "manifest_path": "/z/Cargo.toml"}}],
              "resolve": {{"nodes": [
                {{"id": "a", "deps": [{{"pkg": "b", "dep_kinds": [{{"kind": null}}]}}]}},
                {{"id": "b", "deps": [{{"pkg": "c", "dep_kinds": [{{"kind": {kind}}}]}}]}},
                {{"id": "c", "deps": []}}]}}}}"#
        );
        serde_json::from_str(&text).expect("metadata")
    }

    #[test]
    fn a_runtime_behind_another_crate_is_found_and_the_way_to_it_shown() {
        let found = impure_dependencies(&metadata("null"), "swarmguard-core").expect("read");
        assert_eq!(found, ["  swarmguard-core -> middle -> tokio: swarmguard-core must not reach tokio"]);
    }

    #[test]
    fn what_only_tests_need_does_not_count() {
        assert!(impure_dependencies(&metadata("\"dev\""), "swarmguard-core").expect("read").is_empty());
        assert!(impure_dependencies(&metadata("null"), "swarmguard-none").is_err());
    }

    #[test]
    fn a_clock_in_the_source_is_found_but_not_in_words_or_tests() {
        let text =
            "//! SystemTime is not read.\nlet now = Instant::now();\n#[cfg(test)]\nstd::fs::read(x);\n";
        assert_eq!(impure_lines(text).collect::<Vec<_>>(), ["2: names Instant::now"]);
    }
}
