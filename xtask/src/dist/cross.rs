//! Programs for other processors, compiled here: Debian's compiler makes its own standard library for them from source
//! (`-Z build-std`), Debian's cross compilers link, and `qemu-user` runs what came out.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::host::{self, Package};
use crate::programs::{self, HOST};
use crate::workspace::root;

/// A processor that images are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Processor {
    /// x86-64
    Amd64,
    /// ARMv8, 64 bit
    Arm64,
    /// ARMv7 with hardware floating point
    #[value(name = "armv7")]
    ArmV7,
}

const AARCH64: &[Package] = &[
    Package { name: "gcc-aarch64-linux-gnu", why: "linking programs for arm64" },
    Package { name: "libc6-dev-arm64-cross", why: "linking programs for arm64" },
    Package { name: "qemu-user-static", why: "running programs for arm64" },
];

const ARMV7: &[Package] = &[
    Package { name: "gcc-arm-linux-gnueabihf", why: "linking programs for arm/v7" },
    Package { name: "libc6-dev-armhf-cross", why: "linking programs for arm/v7" },
    Package { name: "qemu-user-static", why: "running programs for arm/v7" },
];

const COMPILER: &[Package] = &[
    Package { name: "rustc-web", why: "compiling for other processors" },
    Package { name: "rust-web-src", why: "the standard library of other processors" },
];

impl Processor {
    /// As file names have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
            Self::ArmV7 => "armv7",
        }
    }

    /// Rust's word for it.
    pub fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
            Self::ArmV7 => "armv7-unknown-linux-gnueabihf",
        }
    }

    fn is_host(self) -> bool {
        self.target() == HOST
    }

    /// Builds `binaries`, as (package, binary), static, and answers the directory they are in.
    ///
    /// # Errors
    /// Where a tool is missing and may not be installed, or the build fails.
    pub fn compile(self, binaries: &[(&str, &str)], install: bool) -> Result<PathBuf> {
        if self.is_host() {
            return programs::compile(binaries, programs::Build::Release, HOST);
        }
        let (packages, prefix) = match self {
            Self::Arm64 => (AARCH64, "aarch64-linux-gnu"),
            Self::ArmV7 => (ARMV7, "arm-linux-gnueabihf"),
            Self::Amd64 => (&[][..], "x86_64-linux-gnu"),
        };
        host::ensure(packages, install)?;
        host::ensure(COMPILER, install)?;
        let mut command = programs::static_cargo_for("build", self.target());
        command.args(["-Z", "build-std=std,panic_abort"]);
        command.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
        let (variable, compiler) = (self.target().replace('-', "_"), format!("{prefix}-gcc"));
        command.env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), &compiler);
        command
            .env(format!("CC_{variable}"), &compiler)
            .env(format!("AR_{variable}"), format!("{prefix}-ar"));
        programs::run(command, binaries)?;
        Ok(root().join("target/static").join(self.target()).join("release"))
    }

    /// A command that runs a program of this processor.
    pub fn command(self, program: &std::path::Path) -> Command {
        let emulator = match self {
            _ if self.is_host() => return Command::new(program),
            Self::Amd64 => "qemu-x86_64-static",
            Self::Arm64 => "qemu-aarch64-static",
            Self::ArmV7 => "qemu-arm-static",
        };
        let mut command = Command::new(emulator);
        command.arg(program);
        command
    }

    /// Runs a program with these arguments and answers what it prints.
    ///
    /// # Errors
    /// Where it does not run, or does not end well.
    pub fn output(self, program: &std::path::Path, arguments: &[&str]) -> Result<String> {
        let shown = format!("{} {} on {}", program.display(), arguments.join(" "), self.word());
        let output =
            self.command(program).args(arguments).output().with_context(|| format!("cannot run {shown}"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{shown} failed ({}): {}", output.status, errors.trim());
        Ok(said)
    }
}
