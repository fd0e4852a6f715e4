//! What nodes run on: Debian's kernel, and per engine version a root file system made from Debian packages.
//!
//! The engine comes from here and never from the machine, so that nothing is started or changed on it, and the
//! matrix of engine versions is the matrix of Debian suites. apt checks every signature; nothing is built unless
//! the suite's key is in Debian's keyring.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::host::{self, Package};
use crate::interrupt;
use crate::{cache, modules};

/// A version of Docker Engine that nodes can run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Engine {
    /// Docker 20.10, from Debian 12 (bookworm)
    #[value(name = "20.10")]
    #[serde(rename = "20.10")]
    V20_10,
    /// Docker 26.1, from Debian 13 (trixie)
    #[value(name = "26.1")]
    #[serde(rename = "26.1")]
    V26_1,
    /// Docker 28.5, from Debian 14 (forky)
    #[default]
    #[value(name = "28.5")]
    #[serde(rename = "28.5")]
    V28_5,
}

impl Engine {
    /// The Debian suite it comes from.
    fn suite(self) -> &'static str {
        match self {
            Self::V20_10 => "bookworm",
            Self::V26_1 => "trixie",
            Self::V28_5 => "forky",
        }
    }

    /// The suite whose key signs it: one that is not released yet has no key of its own.
    fn signed_by(self) -> &'static str {
        match self {
            Self::V20_10 => "bookworm",
            Self::V26_1 | Self::V28_5 => "trixie",
        }
    }

    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::V20_10 => &["docker.io", "iptables", "iproute2", "kmod", "ca-certificates", "procps"],
            // trixie split the command line from the engine.
            Self::V26_1 | Self::V28_5 => {
                &["docker.io", "docker-cli", "iptables", "iproute2", "kmod", "ca-certificates", "procps"]
            }
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::V20_10 => "20.10",
            Self::V26_1 => "26.1",
            Self::V28_5 => "28.5",
        })
    }
}

/// The suite whose kernel all VMs boot, whatever their engine.
const KERNEL_SUITE: &str = "bookworm";

/// Small enough to boot in seconds under emulation, with BTF, PSI, IPVS and vxlan.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// Debian's keyring: the first release of it that knows trixie is in bookworm.
const KEYRING: Package =
    Package { name: "debian-archive-keyring", why: "checking the signatures of Debian's suites" };

/// A kernel and its modules.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The compressed image that QEMU boots.
    pub image: PathBuf,
    /// The directory with `modules.dep`.
    pub modules: PathBuf,
    /// As `uname -r` says it.
    pub release: String,
}

/// Debian's kernel, unpacked but not installed.
///
/// # Errors
/// Where the package cannot be fetched.
pub fn kernel(install: bool) -> Result<Kernel> {
    let recipe = format!("{KERNEL_SUITE} {KERNEL_PACKAGE} v2");
    let place = cache::entry("kernel", &recipe, &["vmlinuz", "release", "modules/modules.dep"], |place| {
        let tree = place.join("tree");
        bootstrap(KERNEL_SUITE, KERNEL_SUITE, "extract", &[KERNEL_PACKAGE], &tree, install)?;
        let release = only_entry(&tree.join("lib/modules"))?;
        fs::rename(tree.join("boot").join(format!("vmlinuz-{release}")), place.join("vmlinuz"))
            .context("the kernel package holds no vmlinuz")?;
        // depmod wants the modules where they lie on a system.
        run(Command::new("chroot").arg(&tree).args(["/sbin/depmod", "-a", &release]))?;
        fs::rename(tree.join("lib/modules").join(&release), place.join("modules"))
            .context("the kernel package holds no modules")?;
        fs::write(place.join("release"), &release).context("cannot write the kernel's release")?;
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))
    })?;
    let release = fs::read_to_string(place.join("release")).context("cannot read the kernel's release")?;
    Ok(Kernel { image: place.join("vmlinuz"), modules: place.join("modules"), release })
}

/// A root file system with an engine in it.
#[derive(Clone, Debug)]
pub struct RootFs {
    /// Unpacked, for native nodes and for the docker command line.
    pub tree: PathBuf,
    /// The same with the kernel's modules as an erofs image, for VMs; none where only the tree was asked for.
    pub image: Option<PathBuf>,
}

/// The unpacked root file system of an engine version.
///
/// # Errors
/// Where the packages cannot be fetched or unpacked.
pub fn tree(engine: Engine, install: bool) -> Result<RootFs> {
    let suite = engine.suite();
    let recipe = format!("{suite} minbase {} v2", engine.packages().join(" "));
    let files = ["tree/usr/sbin/dockerd", "tree/usr/bin/docker", "tree/var/lib/dpkg/status"];
    let place = cache::entry(&format!("root-{engine}"), &recipe, &files, |place| {
        bootstrap(suite, engine.signed_by(), "minbase", engine.packages(), &place.join("tree"), install)
    })?;
    Ok(RootFs { tree: place.join("tree"), image: None })
}

/// The root file system of an engine version as a tree and as an image with the kernel's modules.
///
/// # Errors
/// As [`tree`], and where mkfs.erofs fails.
pub fn image(engine: Engine, kernel: &Kernel, install: bool) -> Result<RootFs> {
    let base = tree(engine, install)?;
    // Not compressed: decompressing costs an emulated CPU more than reading costs the machine.
    let recipe = format!("{} {} plain erofs v1", base.tree.display(), kernel.release);
    let place = cache::entry(&format!("image-{engine}"), &recipe, &["root.erofs"], |place| {
        let under = base.tree.join("usr/lib/modules");
        fs::create_dir_all(&under).with_context(|| format!("cannot create {}", under.display()))?;
        let target = under.join(&kernel.release);
        if !target.exists() {
            run(Command::new("cp").arg("-a").arg(&kernel.modules).arg(&target))?;
        }
        run(Command::new("mkfs.erofs").arg("--quiet").arg(place.join("root.erofs")).arg(&base.tree))
    })?;
    Ok(RootFs { image: Some(place.join("root.erofs")), ..base })
}

/// The kernel modules an initramfs needs to reach the root file system and the machine, in loading order.
///
/// # Errors
/// Where the kernel has one neither built in nor as a module.
pub fn boot_modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    const WANTED: &[&str] = &[
        "virtio_pci",
        "virtio_blk",
        "virtio_console",
        "virtio_net",
        "virtio_rng",
        "crc32c_generic",
        "erofs",
        "overlay",
    ];
    let read = |name: &str| {
        let path = kernel.modules.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let order = modules::loading_order(WANTED, &read("modules.dep")?, &read("modules.builtin")?)?;
    Ok(order.iter().map(|name| kernel.modules.join(name)).collect())
}

/// Installs `packages` of `suite` and what they need into the new directory `tree`.
fn bootstrap(
    suite: &str,
    signed_by: &str,
    variant: &str,
    packages: &[&str],
    tree: &Path,
    install: bool,
) -> Result<()> {
    ensure_key(signed_by, install)?;
    interrupt::check()?;
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--quiet", "--architectures=amd64", "--components=main", "--mode=root"])
        .arg(format!("--variant={variant}"))
        .arg(format!("--include={}", packages.join(",")))
        .args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\""])
        // Reading, not running: what only a person would open stays out of the image.
        .args(
            ["doc", "man", "info", "locale"]
                .map(|name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*")),
        )
        // Lists of suites that are not released are signed anew seldom, and mirrors are late; the signature still counts.
        .args((suite != signed_by).then_some("--aptopt=Acquire::Check-Valid-Until \"false\""))
        .args([suite])
        .arg(tree);
    run(&mut command).with_context(|| format!("cannot build a root file system from Debian {suite}"))
}

/// Makes sure that Debian's keyring holds the key that signs `suite`, so that nothing unsigned is ever accepted.
fn ensure_key(suite: &str, install: bool) -> Result<()> {
    let known =
        || Path::new("/usr/share/keyrings").join(format!("debian-archive-{suite}-automatic.gpg")).exists();
    if known() {
        return Ok(());
    }
    host::upgrade(KEYRING, install)?;
    if !known() {
        bail!("the newest {} here does not hold the key of Debian {suite}: update this system", KEYRING.name);
    }
    Ok(())
}

fn only_entry(directory: &Path) -> Result<String> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    match names.as_slice() {
        [name] => Ok(name.clone()),
        _ => bail!("expected one entry in {}, found {names:?}", directory.display()),
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output =
        command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    interrupt::check()?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = errors.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        bail!("{} failed ({}):\n{tail}", command.get_program().display(), output.status);
    }
    Ok(())
}
