//! The real programs on this machine's loopback: a coordinator with a played swarm, an agent with containers of files, a
//! balancer with replicas.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::fixtures::{self, Going, Groups};
use crate::programs::{self, Build, HOST};
use crate::workspace::{cargo, root};

/// The programs, built.
pub struct Built {
    /// A coordinator with a played swarm.
    pub played: PathBuf,
    programs: PathBuf,
}

/// The programs while they run.
pub struct Stage {
    /// The coordinator's API.
    pub coordinator: SocketAddr,
    /// The agent's figures.
    pub agent: SocketAddr,
    /// The balancer's figures.
    pub balancer_admin: SocketAddr,
    dir: tempfile::TempDir,
    going: Going,
    /// What the agent watches.
    pub groups: Groups,
    _processes: Vec<Ended>,
}

/// Nodes of the played swarm; of the last one the agent is real.
const NODES: u16 = 4;

impl Stage {
    /// Builds the programs.
    ///
    /// # Errors
    /// Where one does not compile.
    pub fn build() -> Result<Built> {
        let mut cargo = cargo();
        cargo.args(["build", "--package", "swarmguard-coordinator", "--example", "played"]);
        ensure!(
            cargo.status().context("cannot start cargo")?.success(),
            "the example `played` does not compile"
        );
        let both = [("swarmguard-agent", "swarmguard-agent"), ("swarmguard-balancer", "swarmguard-balancer")];
        let programs = programs::compile(&both, Build::Dev, HOST)?;
        Ok(Built { played: root().join("target/debug/examples/played"), programs })
    }

    /// Where files of this stage are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Built {
    /// Starts everything.
    ///
    /// # Errors
    /// Where a program does not start.
    pub fn start(&self) -> Result<Stage> {
        let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
        let at = |name: &str| dir.path().join(name);
        let going = Going::new();
        let groups = Groups::make()?;
        fixtures::engine(&at("engine.sock"), &going)?;

        let mut command = Command::new(&self.played);
        command.arg("--dir").arg(at("certificates")).args(["--nodes", &NODES.to_string(), "--real", "1"]);
        command.args(["--hot-after", "3"]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut played = Ended::start(&mut command)?;
        let output = played.0.stdout.take().context("a program without output")?;
        let mut lines = BufReader::new(output).lines();
        let mut told = |word: &str| -> Result<SocketAddr> {
            let line = lines.next().with_context(|| format!("the coordinator did not say {word:?}"))??;
            let address = line.strip_prefix(word).with_context(|| format!("{line:?} instead of {word:?}"))?;
            Ok(address.parse()?)
        };
        let (agents, coordinator) = (told("agents ")?, told("listening ")?);

        let agent = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut command = Command::new(self.programs.join("swarmguard-agent"));
        command.arg(format!("--http-addr={agent}"));
        command.arg(format!("--cgroup-root={}", groups.root.display()));
        command.arg(format!("--docker=unix://{}", at("engine.sock").display()));
        command.arg(format!("--identity=files:{}", at("certificates").join(NODES.to_string()).display()));
        command.arg(format!("--coordinators={agents}")).args(["--bpf=false", "--budget=50", "--log=warn"]);
        let agent_process = Ended::start(command.stderr(log(&at("agent.log"))?).stdout(Stdio::null()))?;

        let replicas = [fixtures::replica()?, fixtures::replica()?, fixtures::replica()?];
        let port = free_port()?;
        let balancer_admin = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut command = Command::new(self.programs.join("swarmguard-balancer"));
        command.args(["--listen-ip=127.0.0.1", "--tls-port=0", "--workers=1", "--log=warn"]);
        command.arg(format!("--port={port}")).arg(format!("--admin-addr={balancer_admin}"));
        command.arg(format!("--worker-nodes={}", replicas.map(|one| one.to_string()).join(",")));
        let balancer = Ended::start(command.stderr(log(&at("balancer.log"))?).stdout(Stdio::null()))?;
        fixtures::requests(SocketAddr::from(([127, 0, 0, 1], port)), &going);

        let processes = vec![played, agent_process, balancer];
        Ok(Stage { coordinator, agent, balancer_admin, dir, going, groups, _processes: processes })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.going.end();
    }
}

fn log(path: &Path) -> Result<fs::File> {
    fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

/// A port that was free a moment ago.
///
/// # Errors
/// Where there is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").context("no free port")?.local_addr()?.port())
}

/// A process that ends with what holds it.
pub struct Ended(pub Child);

impl Ended {
    /// Starts it.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let shown = format!("{:?}", command.get_program());
        Ok(Self(command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start {shown}"))?))
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
