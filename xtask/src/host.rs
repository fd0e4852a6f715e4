//! What this machine has and what it lacks: the Debian packages a command needs, each with its reason.
//!
//! Packages that would start a service or touch the firewall (docker.io) are never installed here: engines
//! come from the root filesystems that `cluster` builds.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::clock::Stopwatch;
use crate::interrupt;

/// A Debian package and why a command needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Package {
    /// Name as apt knows it; `name/suite` is not supported.
    pub name: &'static str,
    /// What it is needed for, to follow the word "for".
    pub why: &'static str,
}

/// What `cluster` and `vm` need.
pub const VIRTUAL_MACHINES: &[Package] = &[
    Package { name: "qemu-system-x86", why: "running the nodes as virtual machines" },
    Package { name: "mmdebstrap", why: "building the nodes' root filesystem from Debian packages" },
    Package { name: "erofs-utils", why: "packing that root filesystem into a read-only image" },
    Package { name: "e2fsprogs", why: "formatting each node's scratch disk" },
    Package { name: "iproute2", why: "keeping the cluster's network in a namespace of its own" },
];

/// What `cluster --native` needs.
pub const NAMESPACES: &[Package] = &[
    Package { name: "mmdebstrap", why: "building the nodes' root filesystem from Debian packages" },
    Package { name: "iproute2", why: "keeping the cluster's network in a namespace of its own" },
];

/// Whether missing packages may be installed; every command that calls [`ensure`] flattens this in.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct InstallArgs {
    /// Install nothing: where a package is missing, stop and print the apt command
    #[arg(long)]
    pub no_install: bool,
}

impl InstallArgs {
    /// The `install` argument of [`ensure`].
    pub fn allowed(self) -> bool {
        !self.no_install
    }
}

/// `cargo xtask setup`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    install: InstallArgs,
}

/// Installs what the cluster and the VMs need.
///
/// # Errors
/// As [`ensure`].
pub fn run(args: &Args) -> Result<ExitCode> {
    ensure(VIRTUAL_MACHINES, args.install.allowed())?;
    println!("everything is installed");
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that `packages` are installed; says what it installs and why.
///
/// # Errors
/// Where one is missing and `install` is false, with the exact apt command; where this is not root on a Debian
/// system; where apt fails.
pub fn ensure(packages: &[Package], install: bool) -> Result<()> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = describe(&missing);
    if !install {
        bail!("these packages are missing:\n{list}install them with: {}", apt_line(&missing));
    }
    if !rustix::process::geteuid().is_root() {
        bail!("these packages are missing:\n{list}run this as root, or run: sudo {}", apt_line(&missing));
    }
    eprint!("installing from Debian:\n{list}");
    install_packages(&missing)
}

/// Installs the newest version of a package, also where an older one is there.
///
/// # Errors
/// As [`ensure`].
pub fn upgrade(package: Package, install: bool) -> Result<()> {
    let list = describe(&[package]);
    if !install || !rustix::process::geteuid().is_root() {
        bail!("this package is too old:\n{list}upgrade it as root with: {}", apt_line(&[package]));
    }
    eprint!("upgrading from Debian:\n{list}");
    install_packages(&[package])
}

/// Unpacks packages below `dir` without installing them: for programs whose packages start a service. Needs no root.
///
/// # Errors
/// Where `install` is false, where this is no Debian system, or where apt or dpkg fail.
pub fn unpack(packages: &[&str], what: &str, dir: &Path, install: bool) -> Result<()> {
    let names = packages.join(" ");
    if !install {
        bail!(
            "{what} are missing: run without --no-install to unpack these below {}: {names}",
            dir.display()
        );
    }
    eprintln!("unpacking from Debian, nothing is installed: {names}");
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let download = || run_in(dir, "apt-get", &[&["download", "-qq"], packages].concat());
    // A fresh machine knows no packages. Who is not root cannot change that, but may not need to.
    download().or_else(|error| apt(&["update", "-qq"]).and_then(|()| download()).map_err(|_| error))?;
    let files = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for file in files {
        let file = file?.path();
        if file.extension().is_some_and(|it| it == "deb") {
            run_in(dir, "dpkg-deb", &["-x", &file.to_string_lossy(), "."])?;
            std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
    }
    Ok(())
}

fn run_in(dir: &Path, program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .current_dir(dir)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn missing(packages: &[Package]) -> Result<Vec<Package>> {
    if packages.is_empty() {
        return Ok(Vec::new());
    }
    if !Path::new("/usr/bin/dpkg-query").exists() {
        bail!(
            "this is not a Debian system (no dpkg-query): install the equivalents of these yourself:\n{}",
            describe(packages)
        );
    }
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package}\t${db:Status-Status}\n"])
        .args(packages.iter().map(|package| package.name))
        .stderr(Stdio::null())
        .output()
        .context("cannot run dpkg-query")?;
    let installed = installed_names(&String::from_utf8_lossy(&output.stdout));
    Ok(packages.iter().filter(|package| !installed.contains(&package.name.to_owned())).copied().collect())
}

/// The names that dpkg-query's `name TAB status` lines call installed.
fn installed_names(listing: &str) -> Vec<String> {
    listing
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter(|(_, status)| *status == "installed")
        .map(|(name, _)| name.to_owned())
        .collect()
}

fn describe(packages: &[Package]) -> String {
    packages.iter().fold(String::new(), |mut text, package| {
        let _ = writeln!(text, "  {} for {}", package.name, package.why);
        text
    })
}

fn apt_line(packages: &[Package]) -> String {
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    format!("apt-get update && apt-get install --no-install-recommends {}", names.join(" "))
}

fn install_packages(packages: &[Package]) -> Result<()> {
    // Without the update a fresh machine knows no packages, and one with old lists asks for versions long gone.
    // One unreachable third-party source is no reason to stop: Debian's lists may have come all the same.
    if let Err(error) = apt(&["update", "-qq"]) {
        eprintln!("{error:#}; going on with the package lists that are there");
    }
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(packages.iter().map(|package| package.name));
    apt(&arguments)
}

/// How long another process may hold apt's locks, and how often that is looked at.
const LOCKED: Duration = Duration::from_secs(900);
const LOOK: Duration = Duration::from_secs(2);

/// Runs apt-get, and waits as long as another one holds its locks. `DPkg::Lock::Timeout` would not wait for that of the
/// package lists.
fn apt(arguments: &[&str]) -> Result<()> {
    let waiting = Stopwatch::start();
    let mut told = false;
    loop {
        let output = Command::new("apt-get")
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .context("cannot run apt-get")?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let Some(lock) = held_lock(&text).filter(|_| waiting.elapsed() < LOCKED) else {
            bail!("apt-get {} failed ({}): {}", arguments.join(" "), output.status, text.trim());
        };
        if !told {
            eprintln!("waiting for another process that uses apt: {lock}");
            told = true;
        }
        interrupt::pause(LOOK)?;
    }
}

/// What apt-get says of a lock that somebody else holds.
fn held_lock(errors: &str) -> Option<&str> {
    let line = errors.lines().find(|line| line.contains("Could not get lock"))?;
    Some(line.trim_start_matches("E: ").trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_count() {
        let names = installed_names("a\tinstalled\nb\tconfig-files\nc\tnot-installed\nd\tinstalled\n");
        assert_eq!(names, ["a", "d"]);
    }

    #[test]
    fn a_lock_that_another_process_holds_is_told_from_other_failures() {
        let held = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 42 (apt-get)\n\
                    E: Unable to lock directory /var/lib/apt/lists/\n";
        let told = held_lock(held).expect("held");
        assert!(told.starts_with("Could not get lock /var/lib/apt/lists/lock"), "{told}");
        assert_eq!(held_lock("E: Unable to locate package nonesuch\n"), None);
    }

    #[test]
    fn refusal_names_package_reason_and_command() {
        let absent = [Package { name: "swarmguard-no-such-package", why: "a test" }];
        let error = ensure(&absent, false).expect_err("a package that does not exist cannot be installed");
        let text = error.to_string();
        assert!(text.contains("swarmguard-no-such-package for a test"), "{text}");
        assert!(
            text.contains("apt-get install --no-install-recommends swarmguard-no-such-package"),
            "{text}"
        );
    }
}
