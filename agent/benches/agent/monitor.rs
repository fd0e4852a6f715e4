//! A packaged monitor beside the agent: netdata with nothing but its cgroups plugin, once a second.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use swarmguard_runtime::clock;

use swarmguard_tests::figures::{Report, Row};

use crate::{
    groups::Groups,
    process::{Agent, Running, cpu},
};

const CONTAINERS: usize = 100;

/// It looks for new cgroups every ten seconds.
const FINDS_AFTER: Duration = Duration::from_secs(15);

/// The agent at 10 Hz, at 1 Hz, and netdata at 1 Hz, the fastest that it knows, in turns on the same cgroups.
pub fn measure(seconds: u64, rounds: usize, program: &Path, root: &Path, report: &mut Report) -> Result<()> {
    let _groups = Groups::make(root, CONTAINERS)?;
    let window = Duration::from_secs(seconds.max(5));
    let (mut fast, mut slow, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    let dir = tempfile::tempdir()?;
    let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    for _ in 0..rounds {
        for (interval, ours) in [("--interval=100ms", &mut fast), ("--interval=1s", &mut slow)] {
            let agent = Agent::start(root, &[interval])?;
            agent.wait_for(CONTAINERS)?;
            ours.push(agent.measure(window)?.us_per_sample());
        }
        let netdata = start(program, root, dir.path(), http)?;
        thread::sleep(FINDS_AFTER);
        let seen = charted(http)?;
        if seen < CONTAINERS {
            let why = format!(
                "netdata charts {seen} of {CONTAINERS} containers here: a comparison would mean nothing"
            );
            report.skip("agent.vs_monitor", &why);
            return Ok(());
        }
        let pid = netdata.0.id();
        let (before, began) = (cpu(pid)?, clock::now());
        thread::sleep(window);
        let (used, elapsed) = (cpu(pid)? - before, clock::now() - began);
        theirs.push(used.as_secs_f64() * 1e6 / (elapsed.as_secs_f64() * CONTAINERS as f64));
    }
    for (hz, ours) in [(10, &fast), (1, &slow)] {
        let row = Row::of(&format!("agent.vs_monitor.{CONTAINERS}x{hz}hz"), "us", "<= peer / 10", ours);
        report.announce(row.beside("netdata at 1 Hz", &theirs));
    }
    Ok(())
}

/// How many of the containers netdata has a CPU chart of.
fn charted(http: SocketAddr) -> Result<usize> {
    let mut stream = TcpStream::connect(http).context("netdata does not answer")?;
    write!(stream, "GET /api/v1/charts HTTP/1.0\r\nHost: bench\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body).context("no answer")?;
    let all: serde_json::Value = serde_json::from_str(body).context("netdata's charts are no JSON")?;
    let names = all["charts"].as_object().context("no charts")?.keys();
    Ok(names.filter(|name| name.starts_with("cgroup_") && name.ends_with(".cpu")).count())
}

fn start(program: &Path, root: &Path, dir: &Path, http: SocketAddr) -> Result<Running> {
    let config = dir.join("netdata.conf");
    let at = dir.display();
    // All directories are named, for it ends where those of an installation are missing; and what has not used any CPU
    // time yet it charts only when told to.
    let text = format!(
        "[global]\nrun as user = root\n[directories]\nconfig = {at}\nstock config = {at}\n\
         web = {at}\nplugins = {at}\ncache = {at}/cache\nlib = {at}/lib\nlog = {at}/log\n\
         [db]\nmode = ram\nupdate every = 1\n[web]\nmode = static-threaded\nbind to = {http}\n[ml]\nenabled = no\n[health]\nenabled = no\n\
         [statsd]\nenabled = no\n\
         [plugins]\nproc = no\ndiskspace = no\ntc = no\nidlejitter = no\ntimex = no\nenable running new plugins = no\n\
         cgroups = yes\napps = no\nebpf = no\nnetdata monitoring = no\nslabinfo = no\nloopsleepms = no\n\
         [plugin:cgroups]\nuse unified cgroups = yes\npath to unified cgroups = {}\n\
         enable by default cgroups matching = *\nsearch for cgroups in subpaths matching = *\n\
         enable by default cgroups names matching = *\ncheck for new cgroups every = 10\n\
         run script to rename cgroups matching = !*\nenable cpuacct stat (total CPU) = yes\n",
        root.display()
    );
    fs::write(&config, text)?;
    for name in ["cache", "lib", "log"] {
        fs::create_dir_all(dir.join(name))?;
    }
    // Beside the program where it was unpacked and not installed.
    let libraries = program.with_file_name(format!("../lib/{}-linux-gnu", std::env::consts::ARCH));
    let child = Command::new(program)
        .env("LD_LIBRARY_PATH", libraries)
        .arg("-D")
        .arg("-c")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok(Running(child))
}
