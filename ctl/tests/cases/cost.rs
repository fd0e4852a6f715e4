//! What `swarmguard top` costs: bytes over the way to the engine, and processor time.

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};

use crate::world::world;

/// How long is measured, once it runs.
const MEASURED: Duration = Duration::from_secs(10);
/// Most that may go over the wire in a second, in bytes, both ways together.
const MAX_BYTES: u64 = 4 * 1024;
/// Most of a core, in per cent, for a program that is not optimised.
const MAX_CPU: f64 = 5.0;

async fn count(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, bytes: Arc<AtomicU64>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        bytes.fetch_add(length as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_once_a_second_costs_little() {
    let world = world().await;
    world.ready().await;
    let socket = world.dir.path().join("counted.sock");
    let listener = UnixListener::bind(&socket).expect("bound");
    let (bytes, engine) = (Arc::new(AtomicU64::new(0)), world.engine.socket.clone());
    let counted = Arc::clone(&bytes);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let other = UnixStream::connect(&engine).await.expect("the engine");
            let ((read, write), (from, to)) = (stream.into_split(), other.into_split());
            tokio::spawn(count(read, to, Arc::clone(&counted)));
            tokio::spawn(count(from, write, Arc::clone(&counted)));
        }
    });
    // A terminal, as a person has one.
    let program = env!("CARGO_BIN_EXE_swarmguard");
    let mut command = tokio::process::Command::new("script");
    command.args(["-qfc", &format!("stty cols 120 rows 40; echo $$; exec {program} top"), "/dev/null"]);
    command.env("DOCKER_HOST", format!("unix://{}", socket.display())).env("TERM", "xterm-256color");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("script (bsdutils)");
    let mut out = child.stdout.take().expect("piped");
    let mut text = Vec::new();
    let drawn = async {
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&text).contains("shop_web") {
            let length = out.read(&mut buffer).await.expect("readable");
            assert!(length > 0, "it ended: {}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&buffer[..length]);
        }
    };
    tokio::time::timeout(Duration::from_secs(30), drawn).await.expect("it draws");
    let first = String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned();
    let pid: u32 = first.parse().unwrap_or_else(|_| panic!("the shell says its number first: {first:?}"));
    tokio::spawn(async move { tokio::io::copy(&mut out, &mut tokio::io::sink()).await });
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (before, cpu) = (bytes.load(Ordering::Relaxed), cpu_ms(pid));
    tokio::time::sleep(MEASURED).await;
    let seconds = MEASURED.as_secs();
    let a_second = (bytes.load(Ordering::Relaxed) - before) / seconds;
    let share = (cpu_ms(pid) - cpu) as f64 / 10.0 / seconds as f64;
    println!("top: {a_second} bytes/s, {share:.2} % of a core (unoptimised)");
    assert!(a_second <= MAX_BYTES, "{a_second} bytes/s");
    assert!(a_second > 100, "{a_second} bytes/s: it does not look");
    assert!(share <= MAX_CPU, "{share} % of a core");
    child.stdin.take().expect("piped").write_all(b"q").await.expect("written");
    let ended = tokio::time::timeout(Duration::from_secs(10), child.wait()).await;
    ended.expect("q ends it").expect("known");
}

/// What a process has used so far.
fn cpu_ms(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let fields: Vec<&str> = text.rsplit(") ").next().expect("fields").split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    ticks * 10
}
