//! One virtual machine: QEMU's command line, whether KVM really works here, and what the console says.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use swarmguard_guest::{ALIVE, FAILED, LOG_PORT, RUN_PORT};

use crate::cache::clusters;
use crate::clock;
use crate::guest;
use crate::interrupt;
use crate::rootfs::Kernel;

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The machine's processor.
    Kvm,
    /// Emulation.
    Tcg,
}

/// What a virtual machine is made of.
pub struct Machine<'a> {
    /// For `ps` and the guest's host name.
    pub name: &'a str,
    /// What executes it.
    pub accelerator: Accelerator,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors; under emulation one is faster than two wherever the work is not parallel.
    pub cpus: u32,
    /// Kernel to boot.
    pub kernel: &'a Kernel,
    /// Its initramfs.
    pub initramfs: &'a Path,
    /// Read-only root file system, shared by all machines; none for a probe.
    pub root: Option<&'a Path>,
    /// A disk of its own.
    pub disk: Option<&'a Path>,
    /// Tap device and hardware address.
    pub network: Option<(&'a str, String)>,
    /// File that takes the console.
    pub console: &'a Path,
    /// What the engine's log goes to.
    pub log: Option<&'a Path>,
    /// A listening unix socket that takes a program's output.
    pub output: Option<&'a Path>,
    /// `sg.KEY=VALUE` words for the guest.
    pub settings: Vec<String>,
}

impl Machine<'_> {
    /// The command that runs it; it ends when the guest powers off or panics.
    pub fn command(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        let (accelerator, processor) = match self.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            // Ten percent faster than `max`: fewer instructions to pretend to have.
            Accelerator::Tcg => ("tcg,thread=multi,tb-size=256", "Nehalem"),
        };
        command
            .args([
                "-name",
                self.name,
                "-M",
                "q35,usb=off,sata=off,smbus=off,hpet=off,graphics=off,vmport=off",
            ])
            .args(["-accel", accelerator, "-cpu", processor, "-m", &self.memory_mib.to_string()])
            .args(["-smp", &self.cpus.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-device", "virtio-rng-pci", "-rtc", "base=utc"])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-chardev", &format!("file,id=console,path={},append=on", escaped(self.console))])
            .args(["-serial", "chardev:console"]);
        if let Some(root) = self.root {
            let options = "if=none,id=root,format=raw,readonly=on,file.locking=off";
            command.args(["-drive", &format!("file={},{options}", escaped(root))]);
            command.args(["-device", "virtio-blk-pci,drive=root,serial=root"]);
        }
        if let Some(disk) = self.disk {
            // A test's disk need not survive this machine, only the guest.
            let options = "if=none,id=scratch,format=raw,cache=unsafe,discard=unmap";
            command.args(["-drive", &format!("file={},{options}", escaped(disk))]);
            command.args(["-device", "virtio-blk-pci,drive=scratch,serial=scratch"]);
        }
        if let Some((tap, mac)) = &self.network {
            command.args(["-netdev", &format!("tap,id=net,ifname={tap},script=no,downscript=no")]);
            command.args(["-device", &format!("virtio-net-pci,netdev=net,romfile=,mac={mac}")]);
        }
        if self.log.is_some() || self.output.is_some() {
            command.args(["-device", "virtio-serial-pci"]);
        }
        if let Some(log) = self.log {
            command.args(["-chardev", &format!("file,id=log,path={},append=on", escaped(log))]);
            command.args(["-device", &format!("virtserialport,chardev=log,name={LOG_PORT}")]);
        }
        if let Some(output) = self.output {
            command.args(["-chardev", &format!("socket,id=run,path={}", escaped(output))]);
            command.args(["-device", &format!("virtserialport,chardev=run,name={RUN_PORT}")]);
        }
        command.args(["-append", &self.command_line()]);
        command
    }

    fn command_line(&self) -> String {
        // cgroup v2 with every controller, pressure figures, no time spent on mitigations under emulation; a panic
        // ends the machine, since QEMU is told not to reboot.
        let fixed = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off tsc=reliable no_timer_check nokaslr \
                     audit=0 apparmor=0 cgroup_no_v1=all psi=1";
        format!("{fixed} {}", self.settings.join(" "))
    }
}

/// QEMU splits its options at commas; a doubled one stands for itself.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Words on a console after which nothing good comes.
const FATAL: &[&str] = &[
    "Kernel panic",
    "BUG: unable to handle",
    "Oops:",
    "general protection fault",
    "soft lockup",
    "VFS: Unable to mount root",
    FAILED,
];

/// Follows a machine's console file.
pub struct Console {
    path: PathBuf,
    offset: u64,
    text: String,
}

impl Console {
    /// From where the file ends now: an earlier boot's panic is not this one's.
    pub fn follow(path: &Path) -> Self {
        let offset = fs::metadata(path).map_or(0, |metadata| metadata.len());
        Self { path: path.to_owned(), offset, text: String::new() }
    }

    /// Reads what is new.
    ///
    /// # Errors
    /// Where it tells of a panic or a hang; with the end of the console.
    pub fn check(&mut self) -> Result<()> {
        if let Ok(mut file) = File::open(&self.path) {
            let mut new = Vec::new();
            file.seek(SeekFrom::Start(self.offset)).context("cannot seek the console")?;
            file.take(1 << 20).read_to_end(&mut new).context("cannot read the console")?;
            self.offset += new.len() as u64;
            self.text.push_str(&String::from_utf8_lossy(&new));
        }
        if let Some(word) = FATAL.iter().find(|word| self.text.contains(**word)) {
            bail!("the console says {word:?}; its end:\n{}", self.tail());
        }
        Ok(())
    }

    /// Whether this was printed since [`Console::follow`].
    pub fn says(&self, text: &str) -> bool {
        self.text.contains(text)
    }

    /// The last lines.
    pub fn tail(&self) -> String {
        tail(&self.text, 25)
    }
}

/// The last `count` lines of a text.
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// KVM where a machine booted with it prints its first line in seconds, else emulation. There are machines with a
/// `/dev/kvm` under which stock kernels hang, so only the attempt counts; its outcome is kept until the next reboot.
///
/// # Errors
/// Where the probe cannot be prepared or the user interrupts it.
pub fn accelerator(kernel: &Kernel, guest: &Path) -> Result<Accelerator> {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accelerator::Tcg);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let key = format!("{} {}", kernel.release, boot.trim());
    let file = clusters().join("cache/kvm");
    if let Ok(known) = fs::read_to_string(&file)
        && let Some(answer) = known.strip_prefix(&key)
    {
        return Ok(if answer.trim() == "works" { Accelerator::Kvm } else { Accelerator::Tcg });
    }
    let works = kvm_boots(kernel, guest)?;
    let answer = if works { "works" } else { "hangs" };
    fs::write(&file, format!("{key} {answer}\n"))
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(if works { Accelerator::Kvm } else { Accelerator::Tcg })
}

fn kvm_boots(kernel: &Kernel, program: &Path) -> Result<bool> {
    let place = tempfile::tempdir().context("cannot make a temporary directory")?;
    let initramfs = place.path().join("initramfs");
    let console = place.path().join("console.log");
    guest::initramfs(kernel, program, None, &initramfs)?;
    let machine = Machine {
        name: "sg-probe",
        accelerator: Accelerator::Kvm,
        memory_mib: 256,
        cpus: 1,
        kernel,
        initramfs: &initramfs,
        root: None,
        disk: None,
        network: None,
        console: &console,
        log: None,
        output: None,
        settings: vec!["sg.mode=probe".to_owned()],
    };
    let mut follow = Console::follow(&console);
    let mut child = machine
        .command()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start qemu-system-x86_64")?;
    let started = clock::now();
    let outcome = loop {
        let dead = follow.check().is_err();
        if follow.says(ALIVE) {
            break Ok(true);
        }
        let ended = child.try_wait().context("cannot wait for QEMU")?.is_some();
        if dead || ended || clock::now().duration_since(started) > Duration::from_secs(6) {
            break Ok(false);
        }
        if let Err(error) = interrupt::pause(Duration::from_millis(50)) {
            break Err(error);
        }
    };
    // It has ended, or must.
    let _ = child.kill();
    let _ = child.wait();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_trouble_counts() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let path = place.path().join("console.log");
        fs::write(&path, "Kernel panic - of an earlier boot\n").expect("written");
        let mut console = Console::follow(&path);
        console.check().expect("the panic is an old one");
        let mut text = fs::read_to_string(&path).expect("read");
        text.push_str("sg-guest: alive at 1.0 s\n");
        fs::write(&path, &text).expect("written");
        console.check().expect("no trouble");
        assert!(console.says(ALIVE));
        text.push_str("[ 2.0] Kernel panic - not syncing: test\n");
        fs::write(&path, &text).expect("written");
        let error = console.check().expect_err("a panic").to_string();
        assert!(error.contains("Kernel panic - not syncing: test"), "{error}");
    }

    #[test]
    fn tail_is_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }
}
