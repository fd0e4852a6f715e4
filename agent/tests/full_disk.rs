//! The real program where nothing can be written: its log goes to a disk that is full, and it goes on.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use swarmguard_runtime::clock;

const DEADLINE: Duration = Duration::from_secs(60);

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn passes(http: SocketAddr) -> Option<f64> {
    let mut stream = TcpStream::connect(http).ok()?;
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("swarmguard_agent_passes_total "))?;
    line.trim().parse().ok()
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    if swarmguard_agent::run::cgroup_root("/sys/fs/cgroup".as_ref()).is_none() {
        println!("skipped a_log_that_cannot_be_written_ends_nothing: no cgroup v2");
        return;
    }
    let full = || Stdio::from(File::options().write(true).open("/dev/full").expect("every Linux has it"));
    let http = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let child = Command::new(env!("CARGO_BIN_EXE_swarmguard-agent"))
        .env_clear()
        // Everything is logged, so that every part of it tries to write.
        .args(["--log=trace", "--docker=none", "--coordinators=none", "--adaptive=false"])
        .arg(format!("--http-addr={http}"))
        .stdin(Stdio::null())
        .stdout(full())
        .stderr(full())
        .spawn()
        .expect("the program starts");
    let mut agent = Running(child);
    let (until, mut first) = (clock::now() + DEADLINE, None);
    loop {
        let ended = agent.0.try_wait().expect("our child");
        assert!(ended.is_none(), "the agent ended: {ended:?}");
        let now = passes(http);
        // Some seconds of sampling, as the agent counts them.
        match (first, now) {
            (Some(first), Some(now)) if now >= first + 20.0 => return,
            (None, now) => first = now,
            _ => {}
        }
        assert!(clock::now() < until, "the agent does not go on");
        thread::sleep(Duration::from_millis(50));
    }
}
