//! `cargo xtask image`: container images made from nothing but our own static binaries.
//!
//! Not a Dockerfile: there is no base image to start from, no engine is needed to build, and the archive, so the
//! image's ID, depends on the binary alone. Every node that loads the archive gets the same ID, so a Swarm service can
//! name the image by it and no node ever asks a registry.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub use archive::Archive;

use crate::clock::Stopwatch;
use crate::programs::{self, Build, HOST, Libraries};
use crate::workspace::root;

mod archive;

/// `cargo xtask image`.
#[derive(clap::Args)]
pub struct Args {
    /// Which images; all of them where none is named
    which: Vec<Which>,
    /// Rust target to build for; its C library must be there to link statically
    #[arg(long, default_value = HOST)]
    target: String,
    /// Directory for the archives and images.json [default: target/images, or target/images/dev]
    #[arg(long)]
    out: Option<PathBuf>,
    /// How the programs are built
    #[arg(long, value_enum, default_value_t = Build::Release)]
    build: Build,
    /// Build everything once more in a copy of the work tree elsewhere, and fail where an image has another ID
    #[arg(long, conflicts_with = "build")]
    twice: bool,
    #[command(flatten)]
    install: crate::host::InstallArgs,
}

/// The images of this project.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Which {
    /// Samples the containers of its node.
    Agent,
    /// Decides and acts.
    Coordinator,
    /// Sends requests to the replica with most room.
    Balancer,
    /// The workload of the demo and the tests.
    WebStress,
}

/// What an image is made of, besides its binary.
struct Recipe {
    which: Which,
    package: &'static str,
    binary: &'static str,
    title: &'static str,
    /// Nobody, where the work allows it; root where the kernel or the mounts ask for it.
    user: Option<&'static str>,
    ports: &'static [&'static str],
    /// Directories of the image besides /etc and /tmp.
    dirs: &'static [&'static str],
    health_interval_s: u64,
}

const NOBODY: &str = "65532:65532";

const RECIPES: [Recipe; 4] = [
    Recipe {
        which: Which::Agent,
        package: "swarmguard-agent",
        binary: "swarmguard-agent",
        title: "SwarmGuard agent",
        // Loading BPF programs and reading other users' /proc files: capabilities count only for root in Swarm,
        // which knows no ambient ones.
        user: None,
        ports: &["8082/tcp"],
        dirs: &["var", "var/lib", "var/lib/swarmguard"],
        health_interval_s: 15,
    },
    Recipe {
        which: Which::Coordinator,
        package: "swarmguard-coordinator",
        binary: "swarmguard-coordinator",
        title: "SwarmGuard coordinator",
        // The engine's socket and the node's certificate belong to root.
        user: None,
        ports: &["7443/udp", "7480/tcp"],
        dirs: &["var", "var/lib", "var/lib/swarmguard"],
        health_interval_s: 15,
    },
    Recipe {
        which: Which::Balancer,
        package: "swarmguard-balancer",
        binary: "swarmguard-balancer",
        title: "SwarmGuard balancer",
        user: Some(NOBODY),
        ports: &["8081/tcp"],
        dirs: &[],
        health_interval_s: 10,
    },
    Recipe {
        which: Which::WebStress,
        package: "swarmguard-tests",
        binary: "web-stress",
        title: "web-stress, a service that can be told to be busy",
        user: Some(NOBODY),
        ports: &["8080/tcp"],
        dirs: &[],
        health_interval_s: 4,
    },
];

/// One image, as `images.json` lists it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Image {
    /// `agent`, `coordinator`, `balancer` or `web-stress`.
    pub name: String,
    /// `sha256:…`, the same on every node that loads the archive.
    pub id: String,
    /// For people; services name the ID.
    pub tag: String,
    /// What `docker load` takes.
    pub archive: PathBuf,
    /// Size of the archive.
    pub bytes: u64,
    /// As Docker calls it.
    pub architecture: String,
}

/// Builds and prints the images asked for.
///
/// # Errors
/// As [`build`].
pub fn run(args: &Args) -> Result<ExitCode> {
    let out = args.out.as_deref().unwrap_or(args.build.images());
    let images = build(&args.which, args.build, &args.target, out, args.install.allowed())?;
    for image in &images {
        println!("{:12} {}  {} ({} KiB)", image.name, image.id, image.archive.display(), image.bytes / 1024);
    }
    if args.twice {
        return again(&images, &args.target);
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a build of the same sources in another place gives the same images.
fn again(images: &[Image], target: &str) -> Result<ExitCode> {
    let copy = root().join("target/twice/sources");
    copy_sources(&copy)?;
    let recipes: Vec<&Recipe> =
        RECIPES.iter().filter(|recipe| images.iter().any(|image| image.name == name(recipe.which))).collect();
    let wanted: Vec<(&str, &str)> = recipes.iter().map(|recipe| (recipe.package, recipe.binary)).collect();
    programs::run(programs::static_cargo_at(&copy, "build", target), &wanted, false)?;
    let binaries = copy.join("target/static").join(target).join("release");
    let mut same = true;
    for recipe in recipes {
        let id =
            Parts::of(recipe, &Contents::of(&binaries.join(recipe.binary), Build::Release)?, target)?.id();
        let first = images.iter().find(|image| image.name == name(recipe.which));
        let first = first.map_or("", |image| image.id.as_str());
        same &= id == first;
        println!("{:12} {}", name(recipe.which), if id == first { "the same again" } else { "ANOTHER: " });
        if id != first {
            println!("{first} here\n{id} in {}", copy.display());
        }
    }
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What git knows of the work tree, as it is now, and the BPF object, which the agent's build takes in.
fn copy_sources(to: &Path) -> Result<()> {
    let listed = std::process::Command::new("git").current_dir(root()).args(["ls-files", "-z"]).output();
    let listed = listed.context("cannot run git")?;
    ensure!(listed.status.success(), "git ls-files failed: this is no work tree of git");
    let mut files: Vec<PathBuf> = String::from_utf8_lossy(&listed.stdout)
        .split_terminator('\0')
        .map(PathBuf::from)
        .filter(|file| root().join(file).is_file())
        .collect();
    let object = PathBuf::from("target/bpf/swarmguard-agent-ebpf");
    files.extend(root().join(&object).is_file().then_some(object));
    for file in files {
        let (from, to) = (root().join(&file), to.join(&file));
        let now = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        // What has not changed keeps its date, so that a second check compiles only what is new.
        if fs::read(&to).is_ok_and(|before| before == now) {
            continue;
        }
        fs::create_dir_all(to.parent().unwrap_or(&to))
            .with_context(|| format!("cannot make {}", to.display()))?;
        fs::write(&to, now).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}

/// Programs that are no images: they run on this machine or in a virtual one, and come out of the same build as
/// web-stress.
const PROGRAMS: [&str; 2] = ["swarmguard-e2e", "swarmguard-kernel"];

/// Builds the images in `which` (all where it is empty) for the machine at hand, into the build's directory.
///
/// # Errors
/// As [`build`].
pub fn build_default(which: &[Which], how: Build, install: bool) -> Result<Vec<Image>> {
    build(which, how, HOST, how.images(), install)
}

/// The images that an earlier run has left.
///
/// # Errors
/// Where there is no list of them.
pub fn built(how: Build) -> Result<Vec<Image>> {
    let list = list(how);
    let text = fs::read(&list)
        .with_context(|| format!("cannot read {}: run cargo xtask image first", list.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no list of images", list.display()))
}

/// The list of the images of a build.
pub fn list(how: Build) -> PathBuf {
    root().join(how.images()).join("images.json")
}

/// Builds programs for `target` and packs them into `out`.
///
/// # Errors
/// Where a build fails, the target's architecture is none that Docker knows, or `out` cannot be written.
fn build(which: &[Which], how: Build, target: &str, out: &Path, install: bool) -> Result<Vec<Image>> {
    let watch = Stopwatch::start();
    let recipes: Vec<_> =
        RECIPES.iter().filter(|recipe| which.is_empty() || which.contains(&recipe.which)).collect();
    if recipes.iter().any(|recipe| recipe.which == Which::Agent) {
        // The agent's build takes the object in.
        if how == Build::Release {
            crate::ebpf::build(install, false)?;
        } else if !crate::ebpf::is_current() {
            eprintln!(
                "images: without BPF programs, network figures come from /proc (cargo xtask build-ebpf adds them)"
            );
        }
    }
    let mut wanted = Vec::new();
    for recipe in &recipes {
        wanted.push((recipe.package, recipe.binary));
        if recipe.which == Which::WebStress {
            wanted.extend(PROGRAMS.map(|program| (recipe.package, program)));
            // What scenarios are played with by hand.
            wanted.push(("swarmguard-ctl", "swarmguard"));
        }
    }
    let binaries = programs::compile(&wanted, how, target)?;
    let out = root().join(out);
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut images = Vec::new();
    for recipe in recipes {
        let file = binaries.join(recipe.binary);
        images.push(pack(recipe, &Contents::of(&file, how)?, target, &out)?);
    }
    let list = out.join("images.json");
    let known = merged(&list, &images);
    fs::write(&list, serde_json::to_vec_pretty(&known)?)
        .with_context(|| format!("cannot write {}", list.display()))?;
    eprintln!("images: {} built in {watch}", images.len());
    Ok(images)
}

/// `images` and those of an earlier run that are not among them, for the list is of what is there.
fn merged(list: &Path, images: &[Image]) -> Vec<Image> {
    let earlier: Vec<Image> =
        fs::read(list).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let mut all = images.to_vec();
    all.extend(earlier.into_iter().filter(|old| images.iter().all(|new| new.name != old.name)));
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// What an image holds besides a few small files.
struct Contents {
    binary: Vec<u8>,
    /// Path without its first slash, and content.
    libraries: Vec<(String, Vec<u8>)>,
}

impl Contents {
    fn of(program: &Path, how: Build) -> Result<Self> {
        let read = |file: &Path| fs::read(file).with_context(|| format!("cannot read {}", file.display()));
        if how == Build::Release {
            let binary = read(program)?;
            ensure_static(&binary, program)?;
            return Ok(Contents { binary, libraries: Vec::new() });
        }
        let Libraries { loader, files } = Libraries::of(program)?;
        let mut libraries = Vec::new();
        for file in files.iter().chain([&loader]) {
            libraries.push((file.to_string_lossy().trim_start_matches('/').to_owned(), read(file)?));
        }
        Ok(Contents { binary: programs::stripped(program)?, libraries })
    }
}

/// A dynamic binary would fail in an image without a loader, with a message that names neither.
///
/// # Errors
/// Where it is dynamic, or no ELF file.
pub fn ensure_static(binary: &[u8], file: &Path) -> Result<()> {
    ensure!(binary.starts_with(b"\x7fELF"), "{} is no ELF file", file.display());
    ensure!(!asks_for_loader(binary), "{} asks for a dynamic loader, but must be static", file.display());
    Ok(())
}

/// Whether one of a little-endian ELF file's program headers is a PT_INTERP.
fn asks_for_loader(elf: &[u8]) -> bool {
    const INTERP: u64 = 3;
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let field = elf.get(at..at.checked_add(bytes)?)?;
        usize::try_from(field.iter().rev().fold(0_u64, |n, byte| n << 8 | u64::from(*byte))).ok()
    };
    let wide = elf.get(4) == Some(&2);
    let (start, size, count) = if wide {
        (number(32, 8), number(54, 2), number(56, 2))
    } else {
        (number(28, 4), number(42, 2), number(44, 2))
    };
    let (Some(start), Some(size), Some(count)) = (start, size, count) else { return false };
    (0..count).any(|i| number(start.saturating_add(i * size), 4).is_some_and(|kind| kind as u64 == INTERP))
}

/// What an image is: its configuration, whose hash is the image's ID, and its only layer.
pub struct Parts {
    /// JSON.
    pub config: Vec<u8>,
    /// A tar archive.
    pub layer: Vec<u8>,
}

impl Parts {
    /// `sha256:…`.
    pub fn id(&self) -> String {
        format!("sha256:{}", hex(&self.config))
    }

    /// The processor and system that it is for, as an OCI index has it.
    pub fn platform(&self) -> Value {
        let config: Value = serde_json::from_slice(&self.config).unwrap_or_default();
        let mut platform = json!({"architecture": config["architecture"], "os": config["os"]});
        if config["variant"].is_string() {
            platform["variant"] = config["variant"].clone();
        }
        platform
    }

    fn of(recipe: &Recipe, contents: &Contents, target: &str) -> Result<Self> {
        let layer = layer(recipe, contents)?;
        let config = serde_json::to_vec(&config(recipe, &hex(&layer), &architecture(target)?))?;
        Ok(Self { config, layer })
    }
}

/// The image of a static program of `target`.
///
/// # Errors
/// Where the program cannot be read or is not static.
pub fn of_static(which: Which, program: &Path, target: &str) -> Result<Parts> {
    let recipe = RECIPES.iter().find(|recipe| recipe.which == which).context("every image has a recipe")?;
    Parts::of(recipe, &Contents::of(program, Build::Release)?, target)
}

/// The package and the program that an image is made of.
pub fn source(which: Which) -> Option<(&'static str, &'static str)> {
    RECIPES.iter().find(|recipe| recipe.which == which).map(|recipe| (recipe.package, recipe.binary))
}

/// What people call an image.
pub fn tag(which: Which) -> String {
    format!("swarmguard/{}:{}", name(which), env!("CARGO_PKG_VERSION"))
}

/// An archive of images with their tags, as `docker load` takes it.
///
/// # Errors
/// Where it cannot be packed.
pub fn docker_archive(images: &[(String, &Parts)]) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    let mut manifest = Vec::new();
    for (number, (tag, parts)) in images.iter().enumerate() {
        let (config, dir) = (format!("{}.json", hex(&parts.config)), format!("layer{number}"));
        let layer = format!("{dir}/layer.tar");
        archive.file(&config, &parts.config, 0o644)?;
        archive.dir(&dir, 0o755)?;
        archive.file(&layer, &parts.layer, 0o644)?;
        manifest.push(json!({"Config": config, "RepoTags": [tag], "Layers": [layer]}));
    }
    archive.file("manifest.json", Value::Array(manifest).to_string().as_bytes(), 0o644)?;
    archive.finish()
}

fn pack(recipe: &Recipe, contents: &Contents, target: &str, out: &Path) -> Result<Image> {
    let parts = Parts::of(recipe, contents, target)?;
    let (name, tag) = (name(recipe.which), tag(recipe.which));
    let bytes = docker_archive(&[(tag.clone(), &parts)])?;
    let file = out.join(format!("{name}.tar"));
    fs::write(&file, &bytes).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(Image {
        name,
        id: parts.id(),
        tag,
        archive: file,
        bytes: bytes.len() as u64,
        architecture: architecture(target)?.docker.to_owned(),
    })
}

/// As `images.json` and tags have it.
pub fn name(which: Which) -> String {
    which.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn layer(recipe: &Recipe, contents: &Contents) -> Result<Vec<u8>> {
    let mut tar = Archive::new();
    tar.dir("etc", 0o755)?;
    tar.file("etc/group", b"root:x:0:\nnobody:x:65532:\n", 0o644)?;
    tar.file("etc/passwd", b"root:x:0:0:root:/:/none\nnobody:x:65532:65532:nobody:/:/none\n", 0o644)?;
    tar.dir("tmp", 0o1777)?;
    for dir in recipe.dirs {
        tar.dir(dir, 0o755)?;
    }
    let above = contents.libraries.iter().flat_map(|(path, _)| Path::new(path).ancestors().skip(1));
    let dirs: BTreeSet<&Path> = above.filter(|dir| !dir.as_os_str().is_empty()).collect();
    for dir in dirs {
        tar.dir(&dir.to_string_lossy(), 0o755)?;
    }
    for (path, library) in &contents.libraries {
        tar.file(path, library, 0o755)?;
    }
    tar.file(recipe.binary, &contents.binary, 0o755)?;
    tar.finish()
}

/// The image's configuration; its hash is the image's ID. Keys are sorted, the date is fixed.
fn config(recipe: &Recipe, layer: &str, architecture: &Architecture) -> Value {
    let program = format!("/{}", recipe.binary);
    let second = 1_000_000_000_u64;
    let ports: serde_json::Map<_, _> =
        recipe.ports.iter().map(|port| ((*port).to_owned(), json!({}))).collect();
    let mut config = json!({
        "architecture": architecture.docker,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "User": recipe.user.unwrap_or_default(),
            "Env": ["PATH=/"],
            "Entrypoint": [program],
            "ExposedPorts": ports,
            "StopSignal": "SIGTERM",
            "Healthcheck": {
                "Test": ["CMD", program, "healthcheck"],
                "Interval": recipe.health_interval_s * second,
                "Timeout": 10 * second,
                "StartPeriod": 60 * second,
                // Engines from 25 on wait five seconds for the first check unless told; earlier ones do not know this.
                "StartInterval": second,
                "Retries": 3,
            },
            "Labels": {
                "org.opencontainers.image.title": recipe.title,
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
                "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image"}],
    });
    if let Some(variant) = architecture.variant {
        config["variant"] = json!(variant);
    }
    config
}

/// What Docker calls a Rust target's processor.
struct Architecture {
    docker: &'static str,
    variant: Option<&'static str>,
}

fn architecture(target: &str) -> Result<Architecture> {
    let (docker, variant) = match target.split('-').next().unwrap_or_default() {
        "x86_64" => ("amd64", None),
        "aarch64" => ("arm64", Some("v8")),
        "armv7" => ("arm", Some("v7")),
        other => bail!("--target {target}: no images for {other}, allowed: x86_64-…, aarch64-…, armv7-…"),
    };
    Ok(Architecture { docker, variant })
}

/// A SHA-256 digest in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "x86_64-unknown-linux-gnu";

    fn packed(binary: &[u8]) -> (Image, Vec<u8>) {
        let out = tempfile::tempdir().unwrap();
        let libraries = vec![("lib/x/libc.so.6".to_owned(), b"library".to_vec())];
        let contents = Contents { binary: binary.to_vec(), libraries };
        let image = pack(&RECIPES[3], &contents, TARGET, out.path()).unwrap();
        let bytes = fs::read(&image.archive).unwrap();
        (image, bytes)
    }

    #[test]
    fn the_same_binary_gives_the_same_image_and_another_another() {
        let ((first, a), (second, b), (third, _)) = (packed(b"one"), packed(b"one"), packed(b"two"));
        assert_eq!((&first.id, &a), (&second.id, &b));
        assert_ne!(first.id, third.id);
    }

    #[test]
    fn the_archive_is_what_docker_load_reads() {
        let (image, bytes) = packed(b"binary");
        let mut files = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut data = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut data).unwrap();
            files.insert(path, data);
        }
        let manifest: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        let config_name = manifest[0]["Config"].as_str().unwrap();
        assert_eq!(image.id, format!("sha256:{}", hex(&files[config_name])));
        let config: Value = serde_json::from_slice(&files[config_name]).unwrap();
        let layer = &files[manifest[0]["Layers"][0].as_str().unwrap()];
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(layer)));
        let inner: Vec<_> = tar::Archive::new(&layer[..])
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        for path in ["lib/", "lib/x/", "lib/x/libc.so.6", "web-stress"] {
            assert!(inner.iter().any(|there| there == path), "{path} is not in {inner:?}");
        }
        assert_eq!(config["config"]["User"], NOBODY);
        assert_eq!(config["config"]["Healthcheck"]["Test"], json!(["CMD", "/web-stress", "healthcheck"]));
    }

    #[test]
    fn an_unknown_processor_is_refused_by_name() {
        let error = architecture("riscv64gc-unknown-linux-gnu").err().unwrap().to_string();
        assert!(error.contains("riscv64gc") && error.contains("allowed"), "{error}");
    }

    #[test]
    fn a_dynamic_binary_is_noticed() {
        let this = std::env::current_exe().unwrap();
        assert!(ensure_static(&fs::read(&this).unwrap(), &this).is_err());
        assert!(ensure_static(b"\x7fELF and nothing else that matters here", &this).is_ok());
    }
}
