//! The floor: nothing but `pread` on kept descriptors of the same files, without looking at what was read.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use swarmguard_runtime::clock;

const EACH_TIME: [&str; 2] = ["cpu.stat", "memory.current"];
const EACH_SECOND: [&str; 4] = ["memory.stat", "cpu.pressure", "memory.pressure", "io.pressure"];

/// Reads for as long as asked and prints microseconds of CPU time per sample.
pub fn run(dir: &Path, hz: u32, time: Duration) -> Result<()> {
    let mut fast = Vec::new();
    let mut slow = Vec::new();
    let mut count = 0_u32;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        count += 1;
        fast.extend(EACH_TIME.iter().filter_map(|name| File::open(path.join(name)).ok()));
        slow.extend(EACH_SECOND.iter().filter_map(|name| File::open(path.join(name)).ok()));
    }
    let mut buffer = vec![0; 16 * 1_024];
    let mut passes = 0_u32;
    let before = super::process::cpu(std::process::id())?;
    let (began, pause) = (clock::now(), Duration::from_secs(1) / hz);
    while clock::now() - began < time {
        let files = fast.iter().chain(slow.iter().filter(|_| passes.is_multiple_of(hz)));
        for file in files {
            let _ = file.read_at(&mut buffer, 0)?;
        }
        passes += 1;
        let due = began + pause * passes;
        thread::sleep(due - clock::now());
    }
    let used = super::process::cpu(std::process::id())? - before;
    println!("{}", used.as_secs_f64() * 1e6 / f64::from(passes.max(1) * count.max(1)));
    Ok(())
}

/// Runs the loop in a process of its own.
pub fn measure(dir: &Path, hz: u32, window: Duration) -> Result<f64> {
    let output = Command::new(std::env::current_exe()?)
        .arg("floor")
        .arg(dir)
        .args([hz.to_string(), window.as_secs().to_string()])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run the floor")?;
    String::from_utf8(output.stdout)?.trim().parse().context("the floor printed no number")
}
