//! What the programs of the stage look at: control groups of containers, an engine that names them, and replicas behind
//! the balancer. Made here, because the machine need not run containers of its own; what reads them is the real agent and
//! the real balancer.

use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::stage::Ended;

/// Containers: a digit that their IDs are made of, and their service.
const CONTAINERS: [(char, &str); 3] = [('a', "shop_web"), ('b', "shop_web"), ('c', "shop_api")];

/// Work that goes on until the stage is left.
#[derive(Clone)]
pub struct Going(Arc<AtomicBool>);

impl Going {
    /// It goes on.
    pub fn new() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// It is to end.
    pub fn end(&self) {
        self.0.store(false, Relaxed);
    }

    /// Whether it does.
    pub fn on(&self) -> bool {
        self.0.load(Relaxed)
    }
}

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

/// Control groups as an engine makes them, each with a process that works a little; gone when dropped.
pub struct Groups {
    /// What the agent is to look at.
    pub root: PathBuf,
    dirs: Vec<PathBuf>,
    processes: Vec<Ended>,
}

impl Groups {
    /// Makes them.
    ///
    /// # Errors
    /// Where there is no cgroup v2, or no right to make groups.
    pub fn make() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
        let mount = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (path, kind) = (words.next()?, words.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(path))
        });
        let root = mount
            .context("no cgroup v2 is mounted here")?
            .join(format!("swarmguard-watch-{}", std::process::id()));
        let mut groups = Self { dirs: vec![root.clone(), root.join("docker")], root, processes: Vec::new() };
        for (digit, _) in CONTAINERS {
            groups.dirs.push(groups.root.join("docker").join(id(digit)));
        }
        for dir in &groups.dirs {
            fs::create_dir(dir).with_context(|| format!("cannot make {}: this needs root", dir.display()))?;
            // Where the machine keeps these controllers in cgroup v1, memory and limits of containers are unknown.
            for controller in ["+cpu", "+memory"] {
                let _ =
                    dir.parent().map(|parent| fs::write(parent.join("cgroup.subtree_control"), controller));
            }
        }
        for dir in &groups.dirs[2..] {
            let mut command = Command::new("sh");
            let process = Ended::start(command.args(["-c", "while :; do sleep 0.05; done"]))?;
            fs::write(dir.join("cgroup.procs"), process.0.id().to_string())
                .with_context(|| format!("cannot put a process into {}", dir.display()))?;
            groups.processes.push(process);
        }
        Ok(groups)
    }

    /// What cannot be known of containers on this machine: names of metrics, and why.
    pub fn unknown(&self) -> Vec<(&'static str, &'static str)> {
        let lacks = |file: &str| !self.dirs.last().is_some_and(|dir| dir.join(file).exists());
        let mut unknown = Vec::new();
        if lacks("memory.current") {
            unknown.push(("service_memory_utilisation_max_ratio", "no memory controller in cgroup v2"));
        }
        if lacks("cpu.max") {
            unknown.push(("service_cpu_throttled_periods_total", "no cpu controller in cgroup v2"));
        }
        unknown
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        self.processes.clear();
        for dir in self.dirs.iter().rev() {
            // A child of the shell's may still be on its way out.
            for _ in 0..50 {
                let left = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                if left.trim().is_empty() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = fs::remove_dir(dir);
        }
    }
}

/// An engine that names the containers.
///
/// # Errors
/// Where its socket cannot be made.
pub fn engine(socket: &Path, going: &Going) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("no socket {}", socket.display()))?;
    let going = going.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let going = going.clone();
            std::thread::spawn(move || {
                // Whoever asked may have gone.
                let _ = answer(stream, &going);
            });
        }
    });
    Ok(())
}

fn answer(mut stream: impl Read + Write, going: &Going) -> Result<()> {
    let path = head(&mut stream)?;
    if path.contains("/events") {
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        while going.on() {
            std::thread::sleep(Duration::from_millis(200));
        }
        return Ok(());
    }
    let labels = |digit: char, service: &str| {
        json!({"com.docker.swarm.task.id": format!("task{digit}"), "com.docker.swarm.service.id": service,
            "com.docker.swarm.service.name": service})
    };
    let body = if path.contains("/containers/json") {
        let all = CONTAINERS.iter().map(|(digit, service)| {
            json!({"Id": id(*digit), "Names": [format!("/{service}.{digit}")], "Labels": labels(*digit, service),
                "HostConfig": {"NetworkMode": "default"}})
        });
        json!(all.collect::<Vec<_>>())
    } else if let Some((digit, service)) = CONTAINERS.iter().find(|(digit, _)| path.contains(&id(*digit))) {
        json!({"Id": id(*digit), "Name": format!("/{service}.{digit}"), "State": {"Status": "running", "Pid": 0},
            "HostConfig": {"NetworkMode": "default"}, "Config": {"Labels": labels(*digit, service)}})
    } else {
        json!({"Name": "stage", "ApiVersion": "1.41", "Version": "20.10.24"})
    };
    let body = body.to_string();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    Ok(stream.write_all(body.as_bytes())?)
}

/// Reads the head of a request and answers its path.
fn head(stream: &mut impl Read) -> Result<String> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    Ok(first.split(' ').nth(1).unwrap_or_default().to_owned())
}

/// A replica that answers each request after a moment, and some with an error.
///
/// # Errors
/// Where there is no port.
pub fn replica() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port for a replica")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for (count, stream) in (0_u64..).zip(listener.incoming().flatten()) {
            std::thread::spawn(move || respond(stream, count));
        }
    });
    Ok(address)
}

/// Answers one request; every fiftieth with an error.
pub fn respond(mut stream: TcpStream, count: u64) {
    if head(&mut stream).is_ok_and(|path| !path.is_empty()) {
        std::thread::sleep(Duration::from_millis(2));
        let status = if count % 50 == 49 { "500 Internal Server Error" } else { "200 OK" };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        // The balancer may have gone.
        let _ = stream.write_all(answer.as_bytes());
    }
}

/// Sends requests to a balancer, twenty a second.
pub fn requests(to: SocketAddr, going: &Going) {
    let going = going.clone();
    std::thread::spawn(move || {
        while going.on() {
            if let Ok(mut stream) = TcpStream::connect(to) {
                let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: stage\r\nConnection: close\r\n\r\n");
                let _ = stream.read_to_end(&mut Vec::new());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}
