//! PID 1 of a VM: from the initramfs to a running node, or to one program and its exit status.
//!
//! The kernel command line says which: `sg.mode=probe|node|run`, `sg.name=`, `sg.ip=`, `sg.gw=`, `sg.time=`.
//! The root file system is read-only and shared by all VMs; a tmpfs over it takes what is written.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use swarmguard_guest::protocol::{Kind, split, write_frame};
use swarmguard_guest::{AGENT_PORT, ALIVE, DOCKER_PORT, LOG_PORT, MARK, READY, RUN_PORT};

use crate::engine::{PATH, Service, supervise};
use crate::sys::{self, Result, context, mount};
use crate::{mounts, net};

/// What a node's engine needs besides what the initramfs loads; names as modprobe knows them.
const MODULES: &[&str] = &[
    "br_netfilter",
    "veth",
    "vxlan",
    "ip_vs",
    "ip_vs_rr",
    "xt_ipvs",
    "xt_mark",
    "xt_conntrack",
    "xt_MASQUERADE",
    "xt_addrtype",
    "nft_compat",
    "nf_nat",
    "ip_tables",
    "iptable_nat",
    "iptable_filter",
    "iptable_mangle",
];

/// Boots; returns only with an error.
pub fn run() -> Result<()> {
    mount("dev", "/dev", "devtmpfs", 0, "")?;
    mount("proc", "/proc", "proc", 0, "")?;
    mount("sys", "/sys", "sysfs", 0, "")?;
    println!("{ALIVE} at {} s", sys::uptime());
    let settings = settings(&fs::read_to_string("/proc/cmdline").unwrap_or_default());
    let setting = |key: &str| settings.get(key).map_or("", String::as_str);
    if setting("mode") == "probe" {
        sys::power_off();
        return Err("cannot power off".to_owned());
    }
    load_modules()?;
    change_root()?;
    mounts::device_links()?;
    mounts::temporary()?;
    mounts::kernel_interfaces();
    mounts::cgroups()?;
    if let Ok(seconds) = setting("time").parse() {
        sys::correct_clock(seconds)?;
    }
    sys::set_hostname(setting("name"))?;
    hosts(setting("name"))?;
    net::loopback()?;
    match setting("mode") {
        "node" => node(setting("ip"), setting("gw")),
        "run" => run_program(),
        other => Err(format!("unknown sg.mode={other:?} on the kernel command line")),
    }
}

/// The `sg.KEY=VALUE` words of a kernel command line.
fn settings(command_line: &str) -> BTreeMap<String, String> {
    command_line
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("sg."))
        .filter_map(|word| word.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn load_modules() -> Result<()> {
    let order = context(fs::read_to_string("/mods/order"), || "cannot read /mods/order".to_owned())?;
    for name in order.lines() {
        sys::load_module(&format!("/mods/{name}"))?;
    }
    Ok(())
}

/// Overlays the image on /dev/vda with memory and makes that the root; what the initramfs carried along for
/// later moves to /run/sg on the new root.
fn change_root() -> Result<()> {
    wait_for("/dev/vda")?;
    mount("/dev/vda", "/lower", "erofs", libc::MS_RDONLY, "")?;
    mount("rw", "/rw", "tmpfs", 0, "size=75%,mode=755")?;
    for directory in ["/rw/upper", "/rw/work", "/rw/upper/sg"] {
        context(fs::create_dir_all(directory), || format!("cannot create {directory}"))?;
    }
    context(fs::copy("/init", "/rw/upper/sg/guest"), || "cannot copy the guest program".to_owned())?;
    if fs::metadata("/payload").is_ok() {
        take("/payload/arguments", "/rw/upper/sg/arguments")?;
        let entries = context(fs::read_dir("/payload/files"), || "cannot list the payload".to_owned())?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            take(&format!("/payload/files/{name}"), &format!("/rw/upper/sg/{name}"))?;
        }
    }
    mount("root", "/new", "overlay", 0, "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work")?;
    for directory in ["dev", "proc", "sys"] {
        mount(&format!("/{directory}"), &format!("/new/{directory}"), "", libc::MS_MOVE, "")?;
    }
    sys::move_root("/new")
}

/// Moves a file out of the initramfs, whose memory it would otherwise keep.
fn take(from: &str, to: &str) -> Result<()> {
    context(fs::copy(from, to), || format!("cannot copy {from}"))?;
    context(fs::remove_file(from), || format!("cannot remove {from}"))
}

fn wait_for(path: &str) -> Result<()> {
    for _ in 0..500 {
        if fs::metadata(path).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(format!("{path} did not appear"))
}

/// Name resolution for a node that has no name server.
pub fn hosts(name: &str) -> Result<()> {
    let text = format!("127.0.0.1 localhost\n127.0.1.1 {name}\n");
    context(fs::write("/etc/hosts", text), || "cannot write /etc/hosts".to_owned())?;
    context(fs::write("/etc/hostname", format!("{name}\n")), || "cannot write /etc/hostname".to_owned())?;
    // No name server lies behind this network; an empty file keeps resolvers from asking the image's one.
    let _ = fs::remove_file("/etc/resolv.conf");
    context(fs::write("/etc/resolv.conf", ""), || "cannot write /etc/resolv.conf".to_owned())
}

fn node(address: &str, gateway: &str) -> Result<()> {
    let (ip, prefix, gateway) = parse_address(address, gateway)?;
    if !net::exists("eth0") {
        return Err("no eth0: the virtio network driver found no device".to_owned());
    }
    net::configure("eth0", ip, prefix, gateway)?;
    modprobe();
    net::enable_forwarding()?;
    mount(&disk("scratch")?, "/var/lib/docker", "ext4", libc::MS_NOATIME, "")?;
    // What an engine that was cut left behind would make the next one refuse to start.
    let _ = fs::remove_file("/var/run/docker.pid");
    println!("{READY} at {} s", sys::uptime());
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect();
    supervise(&[
        Service {
            name: "agent",
            command: words(format!("/sg/guest agent 0.0.0.0:{AGENT_PORT}")),
            log: None,
            path: PATH,
        },
        Service {
            name: "dockerd",
            command: words(format!(
                "dockerd -H unix:///var/run/docker.sock -H tcp://0.0.0.0:{DOCKER_PORT} --tls=false"
            )),
            log: Some(port(LOG_PORT)?),
            path: PATH,
        },
    ])
}

/// Splits `ADDRESS/PREFIX` and reads the gateway.
pub fn parse_address(address: &str, gateway: &str) -> Result<(Ipv4Addr, u8, Ipv4Addr)> {
    let (ip, prefix) =
        address.split_once('/').ok_or_else(|| format!("address {address} has no prefix length"))?;
    let ip = context(ip.parse(), || format!("bad address {address}"))?;
    let prefix = context(prefix.parse(), || format!("bad prefix length in {address}"))?;
    Ok((ip, prefix, context(gateway.parse(), || format!("bad gateway {gateway}"))?))
}

fn modprobe() {
    // Not fatal: a kernel may have some of these built in, and dockerd names what it misses.
    let status = Command::new("/sbin/modprobe").arg("-a").args(MODULES).env("PATH", PATH).status();
    if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
        println!("{MARK} modprobe: {status:?}");
    }
}

/// The block device whose virtio serial number is `serial`.
fn disk(serial: &str) -> Result<String> {
    let entries = context(fs::read_dir("/sys/block"), || "cannot list /sys/block".to_owned())?;
    for entry in entries.flatten() {
        let found = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if found.trim() == serial {
            return Ok(format!("/dev/{}", entry.file_name().to_string_lossy()));
        }
    }
    Err(format!("no disk with serial {serial}"))
}

/// The device of the virtio serial port called `name`.
fn port(name: &str) -> Result<String> {
    for _ in 0..300 {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            let found = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if found.trim() == name {
                return Ok(format!("/dev/{}", entry.file_name().to_string_lossy()));
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(format!("no virtio serial port called {name}"))
}

/// `sg.mode=run`: the program that came with the initramfs, its output as frames, then power off.
fn run_program() -> Result<()> {
    let path = port(RUN_PORT)?;
    let opened = OpenOptions::new().write(true).open(&path);
    let out = Arc::new(Mutex::new(context(opened, || format!("cannot open {path}"))?));
    let result = program_status(&out);
    let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
    let (kind, payload) = match &result {
        Ok(status) => (Kind::Exit, status.to_string()),
        Err(error) => (Kind::Error, error.clone()),
    };
    context(write_frame(&mut *out, kind, payload.as_bytes()), || format!("cannot write to {path}"))?;
    sys::power_off();
    Err("cannot power off".to_owned())
}

fn program_status(out: &Arc<Mutex<File>>) -> Result<i32> {
    let words = split(&context(fs::read("/sg/arguments"), || "cannot read the arguments".to_owned())?);
    let [program, arguments @ ..] = words.as_slice() else { return Err("no program to run".to_owned()) };
    let mut child = context(
        Command::new(program)
            .args(arguments)
            .env("PATH", PATH)
            .env("HOME", "/root")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn(),
        || format!("cannot run {program} (is it linked statically or against the image's glibc?)"),
    )?;
    let pumps = [
        child.stdout.take().map(|from| forward(from, Kind::Stdout, Arc::clone(out))),
        child.stderr.take().map(|from| forward(from, Kind::Stderr, Arc::clone(out))),
    ];
    let wanted = context(i32::try_from(child.id()), || "bad process id".to_owned())?;
    let status = loop {
        match sys::wait_any() {
            Some(ended) if ended.pid == wanted => break ended.status,
            Some(_) => {}
            None => return Err("the program vanished".to_owned()),
        }
    };
    for pump in pumps.into_iter().flatten() {
        let _ = pump.join();
    }
    Ok(status)
}

fn forward(
    mut from: impl Read + Send + 'static,
    kind: Kind,
    to: Arc<Mutex<File>>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
            if write_frame(&mut *to, kind, &buffer[..count]).is_err() {
                return;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_the_words_with_our_prefix() {
        let found = settings("console=ttyS0 sg.mode=node quiet sg.ip=10.78.0.11/24 panic=-1\n");
        assert_eq!(found.len(), 2);
        assert_eq!(found["mode"], "node");
        assert_eq!(found["ip"], "10.78.0.11/24");
    }
}
