//! PID 1's duty: keeps dockerd and the command agent running, and reaps whatever orphans fall to it.

use std::fs::{File, OpenOptions};
use std::process::{Command, Stdio};
use std::time::Duration;

use swarmguard_guest::MARK;

use crate::sys::{self, Result, context};

/// A program that is started again when it ends, as systemd's `Restart=always` does.
pub struct Service {
    /// What the console calls it.
    pub name: &'static str,
    /// Program and arguments.
    pub command: Vec<String>,
    /// File or device that receives its output.
    pub log: Option<String>,
    /// The PATH it gets.
    pub path: &'static str,
}

/// PATH of everything on a node.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Starts that may follow each other within the pause before a service counts as broken for good.
const MAX_STARTS: u32 = 1000;

/// Debian's docker.service waits this long before it starts the engine again.
const RESTART_PAUSE: Duration = Duration::from_secs(2);

/// Starts all services and never returns while any of them can be kept running.
pub fn supervise(services: &[Service]) -> Result<()> {
    let mut running: Vec<(i32, usize)> = Vec::new();
    for (index, service) in services.iter().enumerate() {
        running.push((start(service)?, index));
    }
    let mut starts = 0;
    while let Some(ended) = sys::wait_any() {
        let Some(position) = running.iter().position(|(pid, _)| *pid == ended.pid) else {
            continue; // an orphan, reaped
        };
        let (_, index) = running.remove(position);
        println!("{MARK} {} ended with status {}", services[index].name, ended.status);
        starts += 1;
        if starts > MAX_STARTS {
            return Err(format!("{} ended {MAX_STARTS} times", services[index].name));
        }
        std::thread::sleep(RESTART_PAUSE);
        running.push((start(&services[index])?, index));
    }
    Err("no services left".to_owned())
}

fn start(service: &Service) -> Result<i32> {
    let [program, arguments @ ..] = service.command.as_slice() else {
        return Err(format!("service {} has no command", service.name));
    };
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", service.path).env("HOME", "/root").stdin(Stdio::null());
    if let Some(log) = &service.log {
        let out = open_log(log)?;
        let err = context(out.try_clone(), || format!("cannot share {log}"))?;
        command.stdout(out).stderr(err);
    }
    let child = context(command.spawn(), || format!("cannot start {}", service.name))?;
    println!("{MARK} {} started at {} s", service.name, sys::uptime());
    context(i32::try_from(child.id()), || "bad process id".to_owned())
}

fn open_log(path: &str) -> Result<File> {
    context(OpenOptions::new().append(true).create(true).open(path), || format!("cannot open log {path}"))
}
