//! The tiers on real kernels and engines: scenarios on a real Swarm of each engine version, whose nodes are namespaces
//! where this machine allows it, and in virtual machines what needs a kernel of its own.

use std::cell::OnceCell;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Counts, Log, harness, summary};
use crate::cluster::{self, Kind};
use crate::image::{self, Image};
use crate::programs::{self, Build};
use crate::progress::Progress;
use crate::rootfs::Engine;
use crate::workspace::{cargo, root};
use crate::{deploy, ebpf, vm};

/// The tiers with what is in them, in the order they are played.
pub const TIERS: [(&str, &str); 7] = [
    (NEWEST, "three real nodes, Docker 28.5"),
    ("kernel-programs", "BPF programs and what reads them, in a VM"),
    ("kernel-figures", "the agent's figures against known loads, in a VM"),
    ("swarm-26.1", "three real nodes, Docker 26.1"),
    ("swarm-20.10", "three real nodes, Docker 20.10"),
    ("mesh", "the routing mesh of three nodes with kernels of their own, in VMs"),
    ("model", "the model of Swarm and real engines, by the same scripts"),
];

const NEWEST: &str = "swarm-28.5";

/// Whether a tier is played without being asked for: all engines where nodes are namespaces, else the newest. The other
/// tiers take virtual machines, a toolchain for BPF, or tell of changes of engines and not of the programs.
pub fn is_usual(tier: &str) -> bool {
    tier == NEWEST || (tier.starts_with("swarm-") && cluster::native_fits())
}

/// How programs are built for these tiers: as they are for the tiers before, so that nothing is compiled twice.
const BUILD: Build = Build::Tested;

/// A program in a VM that says nothing for this long, emulated, is stuck.
const VM_TIMEOUT: Duration = Duration::from_secs(900);

/// What the tiers share.
pub struct Tiers {
    install: bool,
    scenarios: Vec<String>,
    all: bool,
    images: OnceCell<Vec<Image>>,
}

impl Tiers {
    /// `install` says whether missing packages may be installed; `scenarios` are those of the Swarm tiers that are
    /// played, the engine's usual ones where there are none (of the newest, every one), and every one with `all`.
    pub fn new(install: bool, scenarios: Vec<String>, all: bool) -> Self {
        Tiers { install, scenarios, all, images: OnceCell::new() }
    }

    /// Plays one of [`TIERS`].
    ///
    /// # Errors
    /// Where it could not be played to its end.
    pub fn play(&self, name: &str, log: &mut Log) -> Result<Counts> {
        log.doing("building the images")?;
        if name == "model" {
            // It needs none of the others, and no BPF toolchain for them.
            image::build_default(&[image::Which::WebStress], BUILD, self.install)?;
            return self.model(log);
        }
        if name.starts_with("kernel") || self.all {
            // Elsewhere agents take in what an earlier run has built, and can do without.
            ebpf::build(self.install, false)?;
        }
        let images = self.images()?;
        match name {
            "kernel-figures" => self.figures(log),
            "kernel-programs" => self.programs(log),
            "mesh" => self.mesh(images, log),
            "swarm-20.10" => self.swarm(Engine::V20_10, images, log),
            "swarm-26.1" => self.swarm(Engine::V26_1, images, log),
            _ => self.swarm(Engine::V28_5, images, log),
        }
    }

    fn images(&self) -> Result<&[Image]> {
        if let Some(images) = self.images.get() {
            return Ok(images);
        }
        let built = image::build_default(&[], BUILD, self.install)?;
        Ok(self.images.get_or_init(|| built))
    }

    /// On namespaces, which are fast enough for all engines; where this machine's kernel does not allow that, on virtual
    /// machines with the first.
    fn model(&self, log: &mut Log) -> Result<Counts> {
        let native = cluster::native_fits();
        let engines: &[Engine] =
            if native { &[Engine::V20_10, Engine::V26_1, Engine::V28_5] } else { &[Engine::V20_10] };
        let mut all = Counts::default();
        for engine in engines {
            let options = cluster::Options {
                name: format!("model-{}", engine.to_string().replace('.', "-")),
                engine: *engine,
                native,
                install: self.install,
                ..cluster::Options::default()
            };
            log.doing(&format!("starting a cluster with engine {engine}"))?;
            let cluster = cluster::up(&options, &Progress::start("cluster"))?;
            let played = scripts(&cluster, *engine, &options.name, log);
            let down = cluster.down();
            all += played?;
            down?;
        }
        Ok(all)
    }

    fn figures(&self, log: &mut Log) -> Result<Counts> {
        let agent = small("swarmguard-agent")?;
        let arguments = ["check", "--agent", "/sg/swarmguard-agent"].map(str::to_owned).to_vec();
        let mut counts = None;
        let program = small("swarmguard-kernel")?;
        self.vm(program, arguments, vec![agent], log, |line| counts = summary(line, "kernel").or(counts))?;
        counts.context("the program ended without saying how many checks passed")
    }

    /// The agent's own tests of what it loads into the kernel. There all of them must have something to do.
    fn programs(&self, log: &mut Log) -> Result<Counts> {
        let mut all = Counts::default();
        for program in kernel_tests(log)? {
            let mut counts = None;
            let mut skipped = 0;
            let small = programs::strip_into(&program, &stripped())?;
            let arguments = ["--test-threads=1", "--nocapture"].map(str::to_owned).to_vec();
            self.vm(small, arguments, Vec::new(), log, |line| {
                counts = harness(line).or(counts);
                skipped += u32::from(line.starts_with("skipped "));
            })?;
            let counts = counts.with_context(|| format!("{} ended without a result", program.display()))?;
            all += Counts { passed: counts.passed.saturating_sub(skipped), failed: counts.failed + skipped };
        }
        ensure!(all.passed + all.failed > 0, "no kernel test was found");
        Ok(all)
    }

    /// Runs a program in a VM, its output into the log and line by line to `line`.
    fn vm(
        &self,
        program: PathBuf,
        arguments: Vec<String>,
        files: Vec<PathBuf>,
        log: &mut Log,
        mut line: impl FnMut(&str),
    ) -> Result<()> {
        log.doing(&format!("{} in a virtual machine", program.display()))?;
        let options = vm::Options {
            program,
            arguments,
            files,
            memory_mib: 1024,
            cpus: 1,
            timeout: VM_TIMEOUT,
            install: self.install,
        };
        let mut rest = String::new();
        let mut kept = Ok(());
        vm::run_program(&options, |_, output| {
            rest.push_str(&String::from_utf8_lossy(output));
            while let Some((text, tail)) = rest.split_once('\n') {
                if kept.is_ok() {
                    kept = log.line(text);
                }
                line(text);
                rest = tail.to_owned();
            }
        })?;
        line(&rest);
        kept
    }

    fn swarm(&self, engine: Engine, images: &[Image], log: &mut Log) -> Result<Counts> {
        let native = cluster::native_fits();
        let options = cluster::Options {
            name: format!("test-{}", engine.to_string().replace('.', "-")),
            engine,
            native,
            install: self.install,
            ..cluster::Options::default()
        };
        let usual = match (native, engine) {
            (true, Engine::V28_5) => &[],
            (true, _) => OTHER_ENGINES,
            (false, _) => EMULATED,
        };
        self.scenarios(&options, usual, images, log)
    }

    /// What namespaces cannot show where the machine's kernel lacks IPVS: requests through the routing mesh.
    fn mesh(&self, images: &[Image], log: &mut Log) -> Result<Counts> {
        let options = cluster::Options {
            name: "test-mesh".to_owned(),
            engine: Engine::V26_1,
            install: self.install,
            ..cluster::Options::default()
        };
        self.scenarios(&options, MESH, images, log)
    }

    fn scenarios(
        &self,
        options: &cluster::Options,
        usual: &[&str],
        images: &[Image],
        log: &mut Log,
    ) -> Result<Counts> {
        log.doing("starting the cluster")?;
        let cluster = cluster::up(options, &Progress::start("cluster"))?;
        let named: Vec<&str> = self.scenarios.iter().map(String::as_str).collect();
        let chosen = match named.as_slice() {
            [] if self.all => &[],
            [] => usual,
            [ALL] => &[],
            named => named,
        };
        let played = scenarios(&cluster, images, chosen, log);
        let down = cluster.down();
        let counts = played?;
        down.map(|()| counts)
    }
}

/// What stands for all scenarios that there are.
const ALL: &str = "all";

/// Scenarios of the other engines: what leans on the engine and not on the judgement alone. A coordinator's death leans on
/// it, because what the next one finds is what the engine has made of it.
const OTHER_ENGINES: &[&str] =
    &["migration", "two-on-one-node", "killed-surging", "killed-marking", "killed-draining"];

/// Scenarios of an engine where nodes are emulated: each takes minutes.
const EMULATED: &[&str] = &["migration", "killed-marking"];

/// Scenarios through the routing mesh.
const MESH: &[&str] = &["migration"];

/// Where programs are laid without their debug information, which a small machine would have to hold in memory.
fn stripped() -> PathBuf {
    root().join("target/test/stripped")
}

/// One of our programs, for a virtual machine: its root is Debian's newest, whose C library runs what was built here.
fn small(name: &str) -> Result<PathBuf> {
    programs::strip_into(&programs::program(name, BUILD), &stripped())
}

/// Plays the scripts of the model tier on a cluster.
fn scripts(cluster: &cluster::Cluster, engine: Engine, name: &str, log: &mut Log) -> Result<Counts> {
    let mut counts = None;
    let mut e2e = deploy::e2e(cluster, BUILD)?;
    e2e.arg("model");
    // What a lost node leads to takes half a minute each, and has been the same for years.
    if engine == Engine::V20_10 {
        let own = std::env::current_exe().context("cannot tell this program's path")?;
        e2e.arg("--xtask").arg(own).args(["--name", name]);
    }
    log.command(&mut e2e, |line| {
        if line.starts_with("model ") {
            println!("  {line}");
        }
        counts = summary(line, "model").or(counts);
    })?;
    counts.context("the scripts ended without saying how many passed")
}

fn scenarios(cluster: &cluster::Cluster, images: &[Image], chosen: &[&str], log: &mut Log) -> Result<Counts> {
    let progress = Progress::start("deploy");
    let mut e2e = deploy::e2e(cluster, BUILD)?;
    if cluster.state().kind == Kind::Native {
        e2e.args(["--network", deploy::NETWORK]);
        e2e.arg("--token-file").arg(deploy::balanced(cluster, images, &progress)?);
    } else {
        e2e.arg("--token-file").arg(deploy::commanded(cluster, images, &progress)?);
    }
    drop(progress);
    let mut counts = None;
    e2e.arg("swarm").args(chosen);
    log.command(&mut e2e, |line| {
        if line.starts_with("swarm ") {
            println!("  {line}");
        }
        counts = summary(line, "swarm").or(counts);
    })?;
    counts.context("the scenarios ended without saying how many passed")
}

/// Builds the agent's tests that need a kernel, as the other tiers build them, and says where they are. Not static ones:
/// nearly everything would be compiled once more for that.
fn kernel_tests(log: &mut Log) -> Result<Vec<PathBuf>> {
    let mut cargo = cargo();
    cargo.args(["test", "--test", "*", "--no-run", "--message-format=json"]);
    log.doing("building the kernel tests")?;
    cargo.stdin(Stdio::null());
    let mut programs = executables(&mut cargo)?;
    let name = |program: &PathBuf| program.file_name().map(|name| name.to_string_lossy().into_owned());
    programs.retain(|program| name(program).is_some_and(|name| name.starts_with("bpf_")));
    Ok(programs)
}

/// The test programs that a cargo command names in its JSON messages.
fn executables(cargo: &mut Command) -> Result<Vec<PathBuf>> {
    let output =
        cargo.stdout(Stdio::piped()).stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "{cargo:?} failed ({})", output.status);
    let lines = String::from_utf8_lossy(&output.stdout);
    let messages = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let tests = messages.filter(|message| message["profile"]["test"] == true);
    Ok(tests.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).collect())
}
