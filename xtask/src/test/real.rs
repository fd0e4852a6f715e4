//! The tiers on real kernels: programs in a virtual machine, and scenarios on a real Swarm of each engine version.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Counts, Log, harness, summary};
use crate::cluster;
use crate::demo;
use crate::image::{self, Image};
use crate::progress::Progress;
use crate::rootfs::Engine;
use crate::vm;

/// The tiers with what is in them, in the order they are played.
pub const TIERS: [(&str, &str); 5] = [
    ("model", "the model of Swarm and real engines, by the same scripts"),
    ("kernel-figures", "the agent's figures against known loads, in a VM"),
    ("kernel-programs", "BPF programs and what reads them, in a VM"),
    ("swarm-20.10", "three real nodes, Docker 20.10"),
    ("swarm-26.1", "three real nodes, Docker 26.1"),
];

/// A program in a VM that says nothing for this long, emulated, is stuck.
const VM_TIMEOUT: Duration = Duration::from_secs(900);

/// What the tiers share.
pub struct Tiers {
    install: bool,
    scenarios: Vec<String>,
    images: OnceCell<Vec<Image>>,
}

impl Tiers {
    /// `install` says whether missing packages may be installed; `scenarios` are those of the Swarm tiers that are
    /// played, the engine's own where there are none.
    pub fn new(install: bool, scenarios: Vec<String>) -> Self {
        Tiers { install, scenarios, images: OnceCell::new() }
    }

    /// Plays one of [`TIERS`].
    ///
    /// # Errors
    /// Where it could not be played to its end.
    pub fn play(&self, name: &str, log: &mut Log) -> Result<Counts> {
        log.doing("building the images")?;
        if name == "model" {
            // It needs none of the others, and no BPF toolchain for them.
            image::build_default(&[image::Which::WebStress], self.install)?;
            return self.model(log);
        }
        let images = self.images()?;
        match name {
            "kernel-figures" => self.figures(log),
            "kernel-programs" => self.programs(log),
            "swarm-20.10" => self.swarm(Engine::V20_10, images, log),
            _ => self.swarm(Engine::V26_1, images, log),
        }
    }

    fn images(&self) -> Result<&[Image]> {
        if let Some(images) = self.images.get() {
            return Ok(images);
        }
        let built = image::build_default(&[], self.install)?;
        Ok(self.images.get_or_init(|| built))
    }

    /// On namespaces, which are fast enough for both engines; where this machine's kernel does not allow that, on virtual
    /// machines with the first.
    fn model(&self, log: &mut Log) -> Result<Counts> {
        let native = cluster::native_fits();
        let engines: &[Engine] = if native { &[Engine::V20_10, Engine::V26_1] } else { &[Engine::V20_10] };
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
        let agent = image::program("swarmguard-agent");
        let arguments = ["check", "--agent", "/sg/swarmguard-agent"].map(str::to_owned).to_vec();
        let mut counts = None;
        let program = image::program("swarmguard-kernel");
        self.vm(program, arguments, vec![agent], log, |line| counts = summary(line, "kernel").or(counts))?;
        counts.context("the program ended without saying how many checks passed")
    }

    /// The agent's own tests of what it loads into the kernel. There all of them must have something to do.
    fn programs(&self, log: &mut Log) -> Result<Counts> {
        let mut all = Counts::default();
        for program in kernel_tests(log)? {
            let mut counts = None;
            let mut skipped = 0;
            let Dynamic { loader, files, mut arguments } = Dynamic::of(&program)?;
            arguments.extend(["--test-threads=1", "--nocapture"].map(str::to_owned));
            self.vm(loader, arguments, files, log, |line| {
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
        let options = cluster::Options {
            name: format!("test-{}", engine.to_string().replace('.', "-")),
            engine,
            install: self.install,
            ..cluster::Options::default()
        };
        log.doing("starting the cluster")?;
        let cluster = cluster::up(&options, &Progress::start("cluster"))?;
        let usual = if engine == Engine::V26_1 { SECOND_ENGINE } else { FIRST_ENGINE };
        let named: Vec<&str> = self.scenarios.iter().map(String::as_str).collect();
        let chosen = match named.as_slice() {
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

/// Scenarios of the first engine, of those that there are: each takes minutes where nodes are emulated. The coordinator is
/// killed in four phases of a migration on one of the two engines, and in all of them with `--scenario all`.
const FIRST_ENGINE: &[&str] = &["migration", "no-healthcheck", "killed-leased", "killed-draining"];

/// Scenarios of the second engine: what leans on the engine and not on the judgement alone.
const SECOND_ENGINE: &[&str] = &["migration", "scale", "drain", "killed-surging", "killed-marking"];

/// Plays the scripts of the model tier on a cluster.
fn scripts(cluster: &cluster::Cluster, engine: Engine, name: &str, log: &mut Log) -> Result<Counts> {
    let mut counts = None;
    let mut e2e = demo::e2e(cluster)?;
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
    demo::load(cluster, images, &Progress::start("images"))?;
    let operator = demo::secret(cluster, "swarmguard-operator-token")?;
    let stack = ["deploy/stack.yml", "deploy/operator-token.yml"];
    demo::deploy_together(cluster, &stack, "swarmguard", images, &["SWARMGUARD_API_PLAIN=all".to_owned()])?;
    let mut counts = None;
    let mut e2e = demo::e2e(cluster)?;
    e2e.arg("--token-file").arg(operator).arg("swarm").args(chosen);
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
    let mut cargo = image::cargo();
    cargo.args(["test", "--test", "*", "--no-run", "--message-format=json"]);
    log.doing("building the kernel tests")?;
    cargo.stdin(Stdio::null());
    let mut programs = executables(&mut cargo)?;
    let name = |program: &PathBuf| program.file_name().map(|name| name.to_string_lossy().into_owned());
    programs.retain(|program| name(program).is_some_and(|name| name.starts_with("bpf_")));
    Ok(programs)
}

/// A program of this machine's, made to run where there are no libraries: the loader is called, with everything beside
/// it.
struct Dynamic {
    loader: PathBuf,
    files: Vec<PathBuf>,
    arguments: Vec<String>,
}

impl Dynamic {
    fn of(program: &Path) -> Result<Self> {
        let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let (mut loader, mut files) = (None, vec![program.to_owned()]);
        for (name, path) in text.lines().filter_map(library) {
            if name == path { loader = Some(path.into()) } else { files.push(path.into()) }
        }
        let loader = loader.with_context(|| format!("ldd {}: no loader in {text:?}", program.display()))?;
        let name = program.file_name().context("a program without a name")?.to_string_lossy();
        let arguments = vec!["--library-path".to_owned(), "/sg".to_owned(), format!("/sg/{name}")];
        Ok(Dynamic { loader, files, arguments })
    }
}

/// The name of a library and where it is, from a line of `ldd`. The loader is named by its path; what the kernel brings is
/// nowhere.
fn library(line: &str) -> Option<(&str, &str)> {
    let (line, _) = line.trim().rsplit_once(" (0x")?;
    let (name, path) = line.split_once(" => ").unwrap_or((line, line));
    path.starts_with('/').then_some((name, path))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_told_apart() {
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007ffd)"), None);
        let libc = "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1c)";
        assert_eq!(library(libc), Some(("libc.so.6", "/lib/x86_64-linux-gnu/libc.so.6")));
        let loader = "/lib64/ld-linux-x86-64.so.2";
        assert_eq!(library(&format!("\t{loader} (0x00007f1c)")), Some((loader, loader)));
        assert_eq!(library("\tlibz.so.1 => not found"), None);
    }
}
