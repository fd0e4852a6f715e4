//! `cargo xtask vm run -- PROGRAM ARGS`: one program, as root, on a real kernel of its own.
//!
//! For what must be seen on a kernel with cgroup v2, pressure and BTF, whatever this machine has. The program comes
//! in the initramfs; its output and its exit status come back over a virtio port, so the console stays the kernel's.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use swarmguard_guest::protocol::{Kind, read_frame};

use crate::clock::{self, Stopwatch};
use crate::cluster::qemu::{self, Console, Machine};
use crate::host::{self, InstallArgs};
use crate::rootfs::{self, Engine};
use crate::{guest, interrupt};

/// `cargo xtask vm`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a program as root in a virtual machine; its exit status is this command's
    Run(RunArgs),
}

#[derive(clap::Args)]
struct RunArgs {
    /// Lay this file beside the program, which is in /sg; may be given several times
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Memory in MiB
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    /// Processors
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Seconds after which the machine counts as hung
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    #[command(flatten)]
    install: InstallArgs,
    /// Static program on this machine, and its arguments
    #[arg(last = true, required = true)]
    words: Vec<String>,
}

/// What to run, and on what.
#[derive(Clone, Debug)]
pub struct Options {
    /// A static program on this machine; it lands in /sg under its own name.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// More files for /sg, executable there.
    pub files: Vec<PathBuf>,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
    /// When the machine counts as hung.
    pub timeout: Duration,
    /// Whether missing packages may be installed.
    pub install: bool,
}

/// Does what was asked.
///
/// # Errors
/// As [`run_program`].
pub fn run(args: &Args) -> Result<ExitCode> {
    let Verb::Run(args) = &args.command;
    let watch = Stopwatch::start();
    let [program, arguments @ ..] = args.words.as_slice() else { bail!("no program given") };
    let options = Options {
        program: program.into(),
        arguments: arguments.to_vec(),
        files: args.files.clone(),
        memory_mib: args.memory,
        cpus: args.cpus,
        timeout: Duration::from_secs(args.timeout),
        install: args.install.allowed(),
    };
    let status = run_program(&options, |kind, output| {
        // A closed pipe on this side must not keep the program from ending on the other.
        let _ = match kind {
            Kind::Stdout => std::io::stdout().write_all(output).and_then(|()| std::io::stdout().flush()),
            _ => std::io::stderr().write_all(output),
        };
    })?;
    eprintln!("vm: exit status {status} after {watch}");
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
}

/// Boots a machine, runs the program in it, hands its output on as it comes, and returns its exit status.
///
/// # Errors
/// Where the machine cannot be made or started, its kernel panics or hangs (with the end of the console), the
/// program cannot be run, or time is up.
pub fn run_program(options: &Options, mut sink: impl FnMut(Kind, &[u8])) -> Result<i32> {
    host::ensure(host::VIRTUAL_MACHINES, options.install)?;
    interrupt::install();
    let kernel = rootfs::kernel(options.install)?;
    let root =
        rootfs::image(Engine::default(), &kernel, options.install)?.image.context("no image was built")?;
    let program = guest::program()?;
    let accelerator = qemu::accelerator(&kernel, &program)?;
    let place = tempfile::tempdir().context("cannot make a temporary directory")?;
    let at = |name: &str| place.path().join(name);
    let payload =
        guest::Payload { program: &options.program, arguments: &options.arguments, files: &options.files };
    guest::initramfs(&kernel, &program, Some(&payload), &at("initramfs"))?;
    let listener = UnixListener::bind(at("output")).context("cannot listen for the program's output")?;
    let machine = Machine {
        name: "sg-vm",
        accelerator,
        memory_mib: options.memory_mib,
        cpus: options.cpus,
        kernel: &kernel,
        initramfs: &at("initramfs"),
        root: Some(&root),
        disk: None,
        network: None,
        console: &at("console.log"),
        log: None,
        output: Some(&at("output")),
        settings: vec![
            "sg.mode=run".to_owned(),
            "sg.name=vm".to_owned(),
            format!("sg.time={}", clock::unix_seconds()),
        ],
    };
    let errors = fs::File::create(at("qemu.log")).context("cannot create a log")?;
    let child = machine.command().stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn();
    let mut running = Running(child.context("cannot start qemu-system-x86_64")?);
    let console = Console::follow(&at("console.log"));
    let frames = frames(accept(&listener, &mut running, &at("qemu.log"))?);
    follow(&frames, &mut running, console, options.timeout, &mut sink)
}

/// A machine that ends when this does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Fails where it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// QEMU connects before it boots anything.
fn accept(listener: &UnixListener, running: &mut Running, log: &Path) -> Result<UnixStream> {
    listener.set_nonblocking(true).context("cannot wait for QEMU")?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).context("cannot read from QEMU")?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("cannot wait for QEMU"),
        }
        if running.0.try_wait().context("cannot wait for QEMU")?.is_some() {
            let text = fs::read_to_string(log).unwrap_or_default();
            bail!("qemu-system-x86_64 did not start: {}", qemu::tail(&text, 10));
        }
        interrupt::pause(Duration::from_millis(20))?;
    }
}

type Frame = (Kind, Vec<u8>);

fn frames(mut stream: UnixStream) -> Receiver<Frame> {
    let (sender, receiver) = sync_channel(256);
    std::thread::spawn(move || {
        while let Ok(Some(frame)) = read_frame(&mut stream) {
            if sender.send(frame).is_err() {
                return;
            }
        }
    });
    receiver
}

fn follow(
    frames: &Receiver<Frame>,
    running: &mut Running,
    mut console: Console,
    timeout: Duration,
    sink: &mut impl FnMut(Kind, &[u8]),
) -> Result<i32> {
    let started = clock::now();
    loop {
        match frames.recv_timeout(Duration::from_millis(100)) {
            Ok((Kind::Exit, text)) => {
                let text = String::from_utf8_lossy(&text);
                return text.parse().with_context(|| format!("the machine sent a bad exit status {text:?}"));
            }
            Ok((Kind::Error, text)) => bail!("in the machine: {}", String::from_utf8_lossy(&text)),
            Ok((kind, output)) => {
                sink(kind, &output);
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                // The last words may tell of a panic.
                console.check()?;
                let _ = running.0.wait();
                bail!("the machine ended without an exit status; its console ends:\n{}", console.tail());
            }
        }
        interrupt::check()?;
        console.check()?;
        if clock::now().duration_since(started) > timeout {
            bail!(
                "the program has not ended after {} s; the console ends:\n{}",
                timeout.as_secs(),
                console.tail()
            );
        }
    }
}
