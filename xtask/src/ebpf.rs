//! `cargo xtask build-ebpf`: compiles `agent-ebpf` into `target/bpf/swarmguard-agent-ebpf`.
//!
//! Not a build script of the agent: `cargo build` must work with stable Rust alone, and a build script may
//! not install a compiler. The agent's build script embeds the object where this command has made it.
//!
//! BPF programs need `core` compiled for `bpfel-unknown-none`. With rustup's nightly, its `rust-src` and a
//! `bpf-linker` on the path those are used. Elsewhere Debian brings a compiler with the matching library source
//! (rustc-web, rust-web-src) and the LLVM it was built with, against which bpf-linker is compiled once.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::clock::Stopwatch;
use crate::host::{self, Package};

const CRATE: &str = "swarmguard-agent-ebpf";
/// The newest bpf-linker that Rust 1.95 and 1.96 compile.
const LINKER_VERSION: &str = "0.13.0";
/// LLVM majors that this bpf-linker knows.
const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

const COMPILER: &[Package] = &[
    Package {
        name: "rustc-web",
        why: "compiling the BPF programs (rustup's nightly with rust-src is not there)",
    },
    Package { name: "rust-web-src", why: "the library source that matches that compiler" },
];

/// Arguments of `cargo xtask build-ebpf`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    install: host::InstallArgs,
    /// Build even where nothing has changed since the last time
    #[arg(long)]
    force: bool,
}

/// Builds the object and prints where it is.
///
/// # Errors
/// As [`build`].
pub fn run(args: &Args) -> Result<ExitCode> {
    let object = build(args.install.allowed(), args.force)?;
    println!("{}", object.display());
    Ok(ExitCode::SUCCESS)
}

/// Whether an object of the present sources is there.
pub fn is_current() -> bool {
    let Ok(root) = workspace_root() else { return false };
    let stamp = fs::read_to_string(root.join("target/bpf-build/stamp"));
    root.join("target/bpf").join(CRATE).is_file()
        && source_stamp(&root).is_ok_and(|now| stamp.is_ok_and(|then| then == now))
}

/// The BPF object, built where sources or recipe have changed since the last time.
///
/// # Errors
/// Where no toolchain is there and `install` is false, or where it cannot be installed; where the programs do not
/// compile.
pub fn build(install: bool, force: bool) -> Result<PathBuf> {
    let root = workspace_root()?;
    // The agent's build script watches `out`: nothing but the object may lie there.
    let (out, work) = (root.join("target/bpf"), root.join("target/bpf-build"));
    for dir in [&out, &work] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let _lock = exclusive(&work.join("lock"))?;

    let object = out.join(CRATE);
    let stamp_file = work.join("stamp");
    let stamp = source_stamp(&root)?;
    if !force && object.is_file() && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
        return Ok(object);
    }

    let watch = Stopwatch::start();
    let toolchain = Toolchain::find(&root, install)?;
    eprintln!("building the BPF programs with {}", toolchain.name);
    let built = toolchain.compile(&root, &work)?;
    // Under a new name first: an agent that is being compiled must not embed half an object.
    let fresh = work.join(format!("{CRATE}.new"));
    fs::copy(&built, &fresh).with_context(|| format!("cannot copy {}", built.display()))?;
    fs::rename(&fresh, &object).with_context(|| format!("cannot write {}", object.display()))?;
    fs::write(&stamp_file, stamp).with_context(|| format!("cannot write {}", stamp_file.display()))?;
    eprintln!("built {} in {watch}", object.display());
    Ok(object)
}

/// What compiles and links: a cargo to call, with its environment.
struct Toolchain {
    name: String,
    cargo: Vec<OsString>,
    env: Vec<(&'static str, OsString)>,
}

/// The LLVM that Debian's compiler was built with.
fn compilers_llvm() -> Result<u32> {
    let about = output(Command::new(DEBIAN_RUSTC).arg("-vV"))
        .with_context(|| format!("{DEBIAN_RUSTC} does not run: reinstall the package rustc-web"))?;
    llvm_major(&about).with_context(|| {
        format!("{DEBIAN_RUSTC} does not say its LLVM version: reinstall the package rustc-web")
    })
}

impl Toolchain {
    fn find(root: &Path, install: bool) -> Result<Self> {
        match Self::nightly() {
            Some(nightly) => Ok(nightly),
            None => Self::debian(root, install).context(
                "no toolchain for BPF: install Debian's packages as said, or anywhere else: \
                 rustup toolchain install nightly --component rust-src && cargo install bpf-linker",
            ),
        }
    }

    /// rustup's nightly, if it has the library source and bpf-linker is on the path.
    fn nightly() -> Option<Self> {
        let sysroot = output(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))?;
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
        if !source.is_file() {
            return None;
        }
        let linker = output(Command::new("bpf-linker").arg("--version"))?;
        Some(Self {
            name: format!("rustup's nightly and {}", linker.trim()),
            cargo: ["rustup", "run", "nightly", "cargo"].map(OsString::from).to_vec(),
            env: Vec::new(),
        })
    }

    /// Debian's compiler, and bpf-linker built against the LLVM of the same major version.
    fn debian(root: &Path, install: bool) -> Result<Self> {
        host::ensure(COMPILER, install)?;
        let mut llvm = compilers_llvm()?;
        if llvm < *LINKER_LLVM.start() {
            // The release's own is too old; its security updates bring a newer one.
            for package in COMPILER {
                host::upgrade(*package, install)?;
            }
            llvm = compilers_llvm()?;
        }
        if !LINKER_LLVM.contains(&llvm) {
            bail!(
                "{DEBIAN_RUSTC} uses LLVM {llvm}, bpf-linker {LINKER_VERSION} knows {LINKER_LLVM:?}: enable Debian's \
                 security updates, which bring a newer rustc-web (deb http://deb.debian.org/debian-security \
                 bookworm-security main)"
            );
        }
        host::ensure(&linker_packages(llvm), install)?;
        let bin = linker(root, llvm, install)?;
        let path = std::env::join_paths(
            std::iter::once(bin).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
        )
        .context("PATH holds a directory with a colon in its name")?;
        Ok(Self {
            name: format!("Debian's rustc and bpf-linker {LINKER_VERSION}, both of LLVM {llvm}"),
            cargo: vec![cargo()],
            env: vec![
                ("PATH", path),
                ("RUSTC", DEBIAN_RUSTC.into()),
                // A released compiler builds `core` only when told that it may.
                ("RUSTC_BOOTSTRAP", "1".into()),
            ],
        })
    }

    /// Compiles the crate and returns where cargo has put the object.
    fn compile(&self, root: &Path, target_dir: &Path) -> Result<PathBuf> {
        let target = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };
        let flags = [
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
            // The object must not depend on where the work tree is.
            format!("--remap-path-prefix={}=.", root.display()),
        ];
        let (program, before) = self.cargo.split_first().context("no cargo")?;
        let mut command = Command::new(program);
        command
            .current_dir(root)
            .args(before)
            .args(["build", "--locked", "--package", CRATE, "--profile", "bpf", "--target", target])
            .args(["-Z", "build-std=core", "--target-dir"])
            .arg(target_dir)
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        run_command(&mut command, "compiling the BPF programs")?;
        let built = target_dir.join(target).join("bpf").join(CRATE);
        if !built.is_file() {
            bail!("cargo has built no {}", built.display());
        }
        Ok(built)
    }
}

fn linker_packages(llvm: u32) -> Vec<Package> {
    // The names depend on the compiler found, and `Package` holds literals; this runs once.
    let leak = |name: String| -> &'static str { Box::leak(name.into_boxed_str()) };
    vec![
        Package {
            name: leak(format!("llvm-{llvm}-dev")),
            why: "compiling bpf-linker, with the compiler's own LLVM",
        },
        Package { name: leak(format!("libpolly-{llvm}-dev")), why: "the same: llvm-config names it" },
        Package { name: "zlib1g-dev", why: "the same: LLVM is linked with it" },
        Package { name: "libzstd-dev", why: "the same: LLVM is linked with it" },
        Package { name: "libxml2-dev", why: "the same: LLVM is linked with it" },
    ]
}

/// The directory with bpf-linker, which is compiled once per LLVM version.
fn linker(root: &Path, llvm: u32, install: bool) -> Result<PathBuf> {
    let tools = root.join(format!("target/tools/bpf-linker-{LINKER_VERSION}-llvm-{llvm}"));
    let bin = tools.join("bin");
    if output(Command::new(bin.join("bpf-linker")).arg("--version")).is_some() {
        return Ok(bin);
    }
    if !install {
        bail!(
            "bpf-linker is missing: run `cargo xtask build-ebpf` without --no-install once, which compiles it from crates.io"
        );
    }
    let watch = Stopwatch::start();
    eprintln!(
        "compiling bpf-linker {LINKER_VERSION} from crates.io into {}: it links BPF programs",
        tools.display()
    );
    let prefix = format!("/usr/lib/llvm-{llvm}");
    let path = format!("{prefix}/bin:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(cargo());
    command
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--quiet", "--no-track"])
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--root"])
        .arg(&tools)
        .arg("--target-dir")
        .arg(root.join("target/tools/build"))
        .env("PATH", path)
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), prefix)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    run_command(&mut command, "compiling bpf-linker")?;
    // 300 MB of objects that nothing needs again.
    let _ = fs::remove_dir_all(root.join("target/tools/build"));
    eprintln!("compiled bpf-linker in {watch}");
    Ok(bin)
}

/// A digest of all that the object is made of: sources, their dependencies' versions, this recipe.
fn source_stamp(root: &Path) -> Result<String> {
    let mut files = vec![
        root.join("common/src/kernel.rs"),
        root.join("common/src/lib.rs"),
        root.join("common/Cargo.toml"),
    ];
    collect(&root.join("agent-ebpf"), &mut files)?;
    files.sort();
    let mut hash = Sha256::new();
    hash.update(include_bytes!("ebpf.rs"));
    for file in &files {
        let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        hash.update(file.strip_prefix(root).unwrap_or(file).as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(&text);
    }
    let lock = root.join("Cargo.lock");
    let lock = fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    for package in locked(&lock, "aya-") {
        hash.update(package);
    }
    let digest = hash.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The entries of `Cargo.lock` whose names start with `prefix`.
fn locked<'a>(lock: &'a str, prefix: &str) -> Vec<&'a str> {
    let start = format!("name = \"{prefix}");
    lock.split("[[package]]").map(str::trim).filter(|entry| entry.starts_with(&start)).collect()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn llvm_major(about: &str) -> Option<u32> {
    about.lines().find_map(|line| line.strip_prefix("LLVM version: "))?.split('.').next()?.trim().parse().ok()
}

fn workspace_root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_owned).with_context(|| format!("{} has no parent", here.display()))
}

fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// One build at a time; the lock goes with the file.
fn exclusive(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Standard output of a command that may well not exist.
fn output(command: &mut Command) -> Option<String> {
    let out = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

fn run_command(command: &mut Command, what: &str) -> Result<()> {
    std::io::stderr().flush().context("cannot write to standard error")?;
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("{what}: cannot run {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{what} failed ({status}); its output stands above");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_version_is_read_from_the_compilers_description() {
        assert_eq!(llvm_major("rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
        assert_eq!(llvm_major("LLVM version: x\n"), None);
    }

    #[test]
    fn only_the_named_packages_count_for_the_stamp() {
        let lock = "version = 4\n\n[[package]]\nname = \"aya-ebpf\"\nversion = \"0.2.1\"\n\n\
                    [[package]]\nname = \"axum\"\nversion = \"1\"\n";
        assert_eq!(locked(lock, "aya-"), ["name = \"aya-ebpf\"\nversion = \"0.2.1\""]);
    }

    #[test]
    fn the_stamp_is_stable() {
        let root = workspace_root().expect("the manifest has a directory above it");
        let once = source_stamp(&root).expect("the sources are readable");
        assert_eq!(once.len(), 64);
        assert_eq!(once, source_stamp(&root).expect("the sources are readable"));
    }
}
