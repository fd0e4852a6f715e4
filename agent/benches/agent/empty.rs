//! A program that does nothing, at a cgroup: what the kernel itself takes to call any program for a packet.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const CGROUP_SKB: u32 = 8;
const EGRESS: u32 = 1;
const ALLOW_MULTI: u32 = 2;

/// `r0 = 1; exit`: the packet may pass.
const PASS: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];

/// `union bpf_attr` for `BPF_PROG_LOAD`, as far as it is used.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log: [u32; 4],
    version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

/// `union bpf_attr` for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
struct Attach {
    target: i32,
    program: i32,
    kind: u32,
    flags: u32,
}

/// Attached to what a cgroup sends, until it is dropped.
pub struct Empty {
    program: OwnedFd,
    group: File,
}

impl Empty {
    pub fn attach(group: &Path) -> Result<Self> {
        let load = Load {
            kind: CGROUP_SKB,
            instructions: 2,
            code: PASS.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log: [0; 4],
            version: 0,
            flags: 0,
            name: *b"bench_empty\0\0\0\0\0",
            interface: 0,
            expected_attach_type: EGRESS,
        };
        let fd = call(PROG_LOAD, &load).context("cannot load an empty program")?;
        // SAFETY: the kernel's answer is a new descriptor, ours alone.
        let program = unsafe { OwnedFd::from_raw_fd(fd) };
        let empty = Self { program, group: File::open(group)? };
        call(PROG_ATTACH, &empty.target(ALLOW_MULTI)).context("cannot attach an empty program")?;
        Ok(empty)
    }

    fn target(&self, flags: u32) -> Attach {
        Attach { target: self.group.as_raw_fd(), program: self.program.as_raw_fd(), kind: EGRESS, flags }
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        // Otherwise it goes with the cgroup.
        let _ = call(PROG_DETACH, &self.target(0));
    }
}

fn call<T>(what: libc::c_int, attr: &T) -> io::Result<i32> {
    // SAFETY: `T` is laid out as the kernel wants it for this call, and lives through it, as does what it points to.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, what, std::ptr::from_ref(attr), size_of::<T>()) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(answer).map_err(io::Error::other)
}
