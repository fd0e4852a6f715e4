//! The coordinator's page in a real browser, and its API under a checker that reads its description: both against the
//! program `played`, a real coordinator with a played swarm behind it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::host::{self, Package};
use crate::interrupt;
use crate::test::{Counts, Log};
use crate::workspace::{cargo, root};

const BROWSER: &[Package] = &[
    Package { name: "chromium", why: "showing the page" },
    Package { name: "nodejs", why: "driving the browser (playwright-core)" },
];
/// Node.js from elsewhere brings its own and conflicts with Debian's.
const NPM: Package = Package { name: "npm", why: "fetching playwright-core and axe-core" };
const CHECKER: &[Package] =
    &[Package { name: "python3-venv", why: "checking the API against its description (schemathesis)" }];
const SCHEMATHESIS: &str = "schemathesis>=4,<5";
const FILES: [&str; 4] = ["package.json", "stage.mjs", "check.mjs", "screenshots.mjs"];

/// `cargo xtask screenshots`.
#[derive(clap::Args)]
pub struct Args {
    /// Where the pictures go
    #[arg(long, default_value = "docs/images")]
    out: PathBuf,
    #[command(flatten)]
    install: host::InstallArgs,
}

/// Takes pictures of the page.
///
/// # Errors
/// Where the browser, the program or the directory cannot be used.
pub fn screenshots(args: &Args) -> Result<ExitCode> {
    interrupt::install();
    prepare(args.install.allowed())?;
    let (dir, program) = (scripts()?, build()?);
    let out = root().join(&args.out);
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let mut node = Command::new("node");
    let status = node.arg("screenshots.mjs").arg(&program).arg(&out).current_dir(&dir).status();
    ensure!(status.context("cannot start node")?.success(), "the pictures were not taken, see above");
    Ok(ExitCode::SUCCESS)
}

/// The tier `browser`. With `PAGE_OF_500` in the environment the page of 500 services on 50 nodes too, whose frames need a
/// machine that is otherwise idle.
///
/// # Errors
/// Where the browser or the program cannot be used; failed checks are counted.
pub fn check(install: bool, log: &mut Log) -> Result<Counts> {
    prepare(install)?;
    log.doing("compiling the coordinator with a played swarm")?;
    let (dir, program) = (scripts()?, build()?);
    let mut counts = Counts::default();
    let mut node = Command::new("node");
    node.arg("check.mjs").arg(&program).current_dir(&dir);
    let success = log.command(&mut node, |line| {
        counts.passed += u32::from(line.starts_with("ok "));
        counts.failed += u32::from(line.starts_with("FAILED "));
    })?;
    ensure!(success || counts.failed > 0, "the checks ended early");
    Ok(counts)
}

/// The tier `contract`: thousands of requests made from the description, right ones and wrong ones, and every answer must
/// be as described.
///
/// # Errors
/// Where the checker or the program cannot be used; a failed run is counted.
pub fn contract(install: bool, log: &mut Log) -> Result<Counts> {
    host::ensure(CHECKER, install)?;
    let program = build()?;
    let venv = root().join("target/schemathesis");
    let checker = venv.join("bin/schemathesis");
    if !checker.exists() {
        log.doing("installing schemathesis")?;
        let made = log.command(Command::new("python3").args(["-m", "venv"]).arg(&venv), |_| {})?;
        ensure!(made, "no virtual environment for schemathesis");
        let mut pip = Command::new(venv.join("bin/pip"));
        ensure!(log.command(pip.args(["install", "--quiet", SCHEMATHESIS]), |_| {})?, "no schemathesis");
    }
    let played = Played::start(&program, &["--hot-after", "3600"])?;
    let mut command = Command::new(&checker);
    // It keeps what it has found where it runs.
    command.current_dir(&venv).args([
        "run",
        "--no-color",
        "--exclude-path",
        "/api/v1/events",
        "--max-examples",
        "20",
        "--seed",
        "7",
    ]);
    // A token that is not taken is part of the answers; what a body says of names that are not there is not.
    command.args(["--header", "Authorization: Bearer a-token-long-enough", "--exclude-checks"]);
    command.arg("positive_data_acceptance,ignored_auth,missing_required_header,unsupported_method");
    command.arg(format!("{}/api/v1/openapi.json", played.url));
    let success = log.command(&mut command, |_| {})?;
    Ok(Counts { passed: u32::from(success), failed: u32::from(!success) })
}

/// What shows and drives the page.
fn prepare(install: bool) -> Result<()> {
    host::ensure(BROWSER, install)?;
    let has_npm = Command::new("npm").arg("--version").stdout(Stdio::null()).status().is_ok();
    if has_npm { Ok(()) } else { host::ensure(&[NPM], install) }
}

/// The program while it runs.
struct Played {
    child: Child,
    url: String,
}

impl Played {
    fn start(program: &Path, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take().context("a program without output")?;
        let first = BufReader::new(output).lines().next();
        match first.and_then(Result::ok).as_deref().and_then(|line| line.strip_prefix("listening ")) {
            Some(address) => Ok(Self { url: format!("http://{address}"), child }),
            None => {
                let _ = child.kill();
                bail!("{} did not say where it listens", program.display())
            }
        }
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn build() -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.args(["build", "--package", "swarmguard-coordinator", "--example", "played"]);
    ensure!(cargo.status().context("cannot start cargo")?.success(), "the example `played` does not compile");
    Ok(root().join("target/debug/examples/played"))
}

/// The scripts beside what they need from npm.
fn scripts() -> Result<PathBuf> {
    let dir = root().join("target/browser");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let wanted = fs::read(root().join("tests/browser/package.json")).context("tests/browser/package.json")?;
    let same = fs::read(dir.join("package.json")).is_ok_and(|there| there == wanted);
    for file in FILES {
        let from = root().join("tests/browser").join(file);
        fs::copy(&from, dir.join(file)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    if !same || !dir.join("node_modules").exists() {
        let mut npm = Command::new("npm");
        npm.args(["install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
            .current_dir(&dir);
        ensure!(npm.status().context("cannot start npm")?.success(), "npm install failed, see above");
    }
    Ok(dir)
}
