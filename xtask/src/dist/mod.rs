//! `cargo xtask dist`: what a release consists of, in `target/dist`: images for each processor (one archive each for `docker
//! load`, and one OCI layout of all), the command line, bills of materials, checksums, where it came from, what changed.
//!
//! Everything but the provenance depends on the sources, the compiler and the target alone (`cargo xtask image --twice` shows
//! that for the images).

mod changelog;
mod cross;
mod oci;
mod provenance;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use self::cross::Processor;
use crate::host::{self, Package};
use crate::image::{self, Parts, Which};
use crate::sbom::Resolution;
use crate::workspace::root;

/// Images that are released.
const IMAGES: [Which; 3] = [Which::Agent, Which::Coordinator, Which::Balancer];
/// The command line: package and program.
const CLI: (&str, &str) = ("swarmguard-ctl", "swarmguard");
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Two images of the agent must not differ in what the kernel is given.
const BPF_MISSING: &str = "the agent does not hold the BPF object that was built";

const PUSHER: &[Package] = &[Package { name: "skopeo", why: "copying images to a registry" }];

/// `cargo xtask dist`.
#[derive(clap::Args)]
pub struct Args {
    /// Processors
    #[arg(long, value_enum, value_delimiter = ',', default_value = "amd64,arm64,armv7")]
    processors: Vec<Processor>,
    /// Where everything goes, relative to the work tree; what lies there is replaced
    #[arg(long, default_value = "target/dist")]
    out: PathBuf,
    /// Copy the images to this registry afterwards: registry.example[:port]/path, with the version as their tag
    #[arg(long, value_name = "REGISTRY")]
    push: Option<String>,
    /// The registry speaks plain HTTP
    #[arg(long, requires = "push")]
    push_plain: bool,
    /// Close "Unreleased" in CHANGELOG.md under the present version and the last commit's date, and do nothing else
    #[arg(long)]
    cut: bool,
    #[command(flatten)]
    install: host::InstallArgs,
}

/// Makes the release.
///
/// # Errors
/// Where something is missing and may not be installed, a build or a self-test fails, or a file cannot be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    if args.cut {
        return cut();
    }
    let install = args.install.allowed();
    let out = root().join(&args.out);
    prepare(&out)?;
    let object = fs::read(crate::ebpf::build(install, false)?).context("cannot read the BPF object")?;
    let mut wanted: Vec<(&str, &str)> = IMAGES.into_iter().filter_map(image::source).collect();
    wanted.push(CLI);
    let mut images: BTreeMap<Which, Vec<Parts>> = BTreeMap::new();
    for processor in &args.processors {
        let binaries = processor.compile(&wanted, install)?;
        test_programs(*processor, &binaries, &wanted, &object)?;
        let mut parts = Vec::new();
        for which in IMAGES {
            let (_, binary) = image::source(which).context("every image has a program")?;
            parts.push((which, image::of_static(which, &binaries.join(binary), processor.target())?));
        }
        let tagged: Vec<(String, &Parts)> =
            parts.iter().map(|(which, parts)| (image::tag(*which), parts)).collect();
        let archive = out.join(format!("swarmguard-{VERSION}-images-{}.tar", processor.word()));
        write(&archive, &image::docker_archive(&tagged)?)?;
        for (tag, parts) in &tagged {
            println!("{tag:32} {:6} {}", processor.word(), parts.id());
        }
        pack_cli(&binaries.join(CLI.1), *processor, &out)?;
        for (which, parts) in parts {
            images.entry(which).or_default().push(parts);
        }
    }
    let mut layout = oci::Layout::create(&out.join("oci"))?;
    for (which, parts) in &images {
        layout.add(&image::name(*which), parts)?;
    }
    layout.finish()?;
    boms(&args.processors, &wanted, &out)?;
    let log = read_text("CHANGELOG.md")?;
    write(
        &out.join(format!("CHANGES-{VERSION}.md")),
        format!("{}\n", changelog::notes(&log, VERSION)?).as_bytes(),
    )?;
    let sums = sums(&out)?;
    write(&out.join("provenance.json"), &provenance::of(&sums, &args.processors)?)?;
    let lines: String = sums.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect();
    write(&out.join("SHA256SUMS"), lines.as_bytes())?;
    println!("everything is in {}", out.display());
    if let Some(registry) = &args.push {
        push(&out.join("oci"), registry, args.push_plain, install)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn cut() -> Result<ExitCode> {
    let date =
        git(&["log", "-1", "--format=%cs"]).context("git does not know the date of the last commit")?;
    let after = changelog::cut(&read_text("CHANGELOG.md")?, VERSION, &date)?;
    write(&root().join("CHANGELOG.md"), after.as_bytes())?;
    println!("CHANGELOG.md: {VERSION} of {date}");
    Ok(ExitCode::SUCCESS)
}

/// An empty directory, or one that an earlier release lies in: nothing of somebody else's is removed.
fn prepare(out: &Path) -> Result<()> {
    if out.exists() {
        let ours = out.join("SHA256SUMS").exists() || fs::read_dir(out)?.next().is_none();
        ensure!(ours, "{} holds something that is no release: name another --out", out.display());
        fs::remove_dir_all(out).with_context(|| format!("cannot empty {}", out.display()))?;
    }
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))
}

/// Each program runs on its processor and says the version that images and files bear; the agent holds the BPF object.
fn test_programs(
    processor: Processor,
    binaries: &Path,
    wanted: &[(&str, &str)],
    object: &[u8],
) -> Result<()> {
    for (_, binary) in wanted {
        let said = processor.output(&binaries.join(binary), &["--version"])?;
        let version = said.split_whitespace().last().unwrap_or_default();
        ensure!(version == VERSION, "{binary} on {} says {said:?}, not {VERSION}", processor.word());
    }
    let agent = binaries.join("swarmguard-agent");
    let bytes = fs::read(&agent).with_context(|| format!("cannot read {}", agent.display()))?;
    ensure!(holds(&bytes, object), "{}: {BPF_MISSING}", agent.display());
    eprintln!(
        "{}: all programs run and say {VERSION}; the agent holds BPF object sha256:{}",
        processor.word(),
        image::hex(object)
    );
    Ok(())
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    let Some(first) = part.first() else { return false };
    let starts = bytes.iter().enumerate().filter(|(_, byte)| *byte == first).map(|(at, _)| at);
    starts.into_iter().any(|at| bytes[at..].starts_with(part))
}

/// The command line alone, with licences, as one small archive.
fn pack_cli(program: &Path, processor: Processor, out: &Path) -> Result<()> {
    let name = format!("swarmguard-{VERSION}-linux-{}", processor.word());
    let mut archive = image::Archive::new();
    archive.dir(&name, 0o755)?;
    for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
        archive.file(&format!("{name}/{licence}"), read_text(licence)?.as_bytes(), 0o644)?;
    }
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    image::ensure_static(&bytes, program)?;
    archive.file(&format!("{name}/swarmguard"), &bytes, 0o755)?;
    let file = out.join(format!("{name}.tar"));
    write(&file, &archive.finish()?)?;
    // Without a name and a date in it, so that the same bytes come out each time.
    let status =
        Command::new("gzip").args(["-9", "-n", "-f"]).arg(&file).status().context("cannot run gzip")?;
    ensure!(status.success(), "gzip of {} failed ({status})", file.display());
    Ok(())
}

/// One bill of materials for each program and processor: dependencies differ by target.
fn boms(processors: &[Processor], wanted: &[(&str, &str)], out: &Path) -> Result<()> {
    for processor in processors {
        let resolution = Resolution::of(processor.target())?;
        for (package, binary) in wanted {
            let bom = resolution.bom(package, processor.target())?;
            let file = out.join(format!("{binary}-{VERSION}-{}.cdx.json", processor.word()));
            write(&file, &serde_json::to_vec_pretty(&bom)?)?;
        }
    }
    Ok(())
}

/// Every file of the release with its SHA-256, blobs of the OCI layout included.
fn sums(out: &Path) -> Result<BTreeMap<String, String>> {
    let (mut sums, mut next) = (BTreeMap::new(), vec![out.to_owned()]);
    while let Some(dir) = next.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                next.push(path);
                continue;
            }
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.strip_prefix(out).unwrap_or(&path).to_string_lossy().into_owned();
            sums.insert(name, image::hex(&bytes));
        }
    }
    Ok(sums)
}

fn push(layout: &Path, registry: &str, plain: bool, install: bool) -> Result<()> {
    host::ensure(PUSHER, install)?;
    for which in IMAGES {
        let name = image::name(which);
        let mut command = Command::new("skopeo");
        // Nothing is run here, so no policy about who signed it applies.
        command.args(["--insecure-policy", "copy", "--all", "--quiet"]);
        if plain {
            command.arg("--dest-tls-verify=false");
        }
        let to = format!("docker://{}/{name}:{VERSION}", registry.trim_end_matches('/'));
        command.arg(format!("oci:{}:{name}", layout.display())).arg(&to);
        let status = command.stdin(Stdio::null()).status().context("cannot run skopeo")?;
        if !status.success() {
            bail!("{to} was not taken ({status}): is the registry there, and does `skopeo login` know it?");
        }
        println!("{to}");
    }
    Ok(())
}

fn read_text(name: &str) -> Result<String> {
    fs::read_to_string(root().join(name)).with_context(|| format!("cannot read {name}"))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn git(arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").current_dir(root()).args(arguments).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_found_only_whole() {
        assert!(holds(b"xxabcyy", b"abc") && holds(b"aabc", b"abc"));
        assert!(!holds(b"xxabyy", b"abc") && !holds(b"abc", b"") && !holds(b"", b"abc"));
    }

    #[test]
    fn a_directory_of_somebody_else_is_not_emptied() {
        let dir = tempfile::tempdir().expect("a directory");
        let out = dir.path().join("out");
        prepare(&out).expect("new");
        prepare(&out).expect("empty");
        fs::write(out.join("precious"), "x").expect("writable");
        assert!(prepare(&out).is_err() && out.join("precious").exists());
        fs::write(out.join("SHA256SUMS"), "").expect("writable");
        prepare(&out).expect("a release");
        assert!(!out.join("precious").exists());
    }

    #[test]
    fn sums_are_of_every_file_by_its_place() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("oci")).expect("writable");
        fs::write(dir.path().join("oci/index.json"), "{}").expect("writable");
        fs::write(dir.path().join("a"), "").expect("writable");
        let sums = sums(dir.path()).expect("readable");
        assert_eq!(sums.keys().collect::<Vec<_>>(), ["a", "oci/index.json"]);
        assert_eq!(sums["a"], image::hex(b""));
    }
}
