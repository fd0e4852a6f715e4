//! Balancing without a proxy: a container's `connect()` to a service's virtual address goes to the replica with the
//! fewest connections open from this node.
//!
//! Everything happens in the system call; packets then travel as if the application had named the replica. The agent
//! keeps the tables and takes out what is not to be used; what is not in them goes where it always went, to Swarm's
//! own balancing. TCP only: a datagram socket has no end that could be counted.
//!
//! A container is told by the cgroup that the program is attached to, so that equal addresses in different networks
//! cannot be mistaken: the attachment's storage holds the container's *scope*, its set of networks.

use core::arch::asm;

use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_CGROUP_STORAGE;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock_addr};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_sk_storage_get};
use aya_ebpf::macros::{btf_map, cgroup_sock, cgroup_sock_addr, map};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use swarmguard_common::kernel::{
    Backend, ConnectCounters, Frontend, Leases, MAX_BACKENDS, MAX_FRONTENDS, MAX_LEASES, frontend_key,
};

use crate::storage::AttachmentStorage;

/// What the programs answer: the call goes on.
const PASS: i32 = 1;
const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;

/// The scope of the container that a program is attached to; 0: none yet.
#[map]
static SCOPES: AttachmentStorage<u64, BPF_MAP_TYPE_CGROUP_STORAGE> = AttachmentStorage::new();

/// By [`frontend_key`]. Entries are replaced whole, and old ones freed when no program can see them any more.
#[map]
static FRONTENDS: HashMap<u64, Frontend> = HashMap::with_max_entries(MAX_FRONTENDS, BPF_F_NO_PREALLOC);

/// By [`Backend::slot`]. The agent sees it in its own memory.
#[map]
static LEASES: Array<Leases> = Array::with_max_entries(MAX_LEASES, BPF_F_MMAPABLE);

#[map]
static CONNECT_COUNTERS: PerCpuArray<ConnectCounters> = PerCpuArray::with_max_entries(1, 0);

/// What a socket holds.
#[repr(C)]
pub struct Held {
    /// As it was taken.
    generation: u64,
    /// [`Backend::slot`] + 1; 0: nothing.
    slot: u32,
    /// The virtual address that the application named, in network byte order.
    address: u32,
}

#[btf_map]
static HELD: SkStorage<Held> = SkStorage::new();

/// `connect()` of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn connect_v4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid for the whole program.
    let call = unsafe { &mut *ctx.sock_addr };
    if is_tcp(call)
        && let Some(to) = direct(call, call.user_ip4)
    {
        call.user_ip4 = to;
    }
    PASS
}

/// `connect()` of an IPv6 socket, which may well be to an IPv4 address: Java's sockets are all such.
#[cgroup_sock_addr(connect6)]
pub fn connect_v6(ctx: SockAddrContext) -> i32 {
    // SAFETY: as above.
    let call = unsafe { &mut *ctx.sock_addr };
    if !is_tcp(call) {
        return PASS;
    }
    // Another kind of address is that of no frontend, but a lease that is held ends.
    let mapped = call.user_ip6[0] == 0 && call.user_ip6[1] == 0 && call.user_ip6[2] == 0xffff_u32.to_be();
    let address = if mapped { call.user_ip6[3] } else { 0 };
    if let Some(to) = direct(call, address) {
        call.user_ip6[3] = to;
    }
    PASS
}

/// `getpeername()`: the application sees what it asked for.
#[cgroup_sock_addr(getpeername4)]
pub fn peer_name_v4(ctx: SockAddrContext) -> i32 {
    // SAFETY: as above.
    let call = unsafe { &mut *ctx.sock_addr };
    if let Some(named) = named(call) {
        call.user_ip4 = named;
    }
    PASS
}

/// The same of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn peer_name_v6(ctx: SockAddrContext) -> i32 {
    // SAFETY: as above.
    let call = unsafe { &mut *ctx.sock_addr };
    if let Some(named) = named(call) {
        call.user_ip6[3] = named;
    }
    PASS
}

/// A socket was closed for the last time.
#[cgroup_sock(sock_release)]
pub fn connect_release(ctx: SockContext) -> i32 {
    if let Some(held) = held(ctx.sock.cast::<c_void>(), 0) {
        give_back(held);
    }
    PASS
}

#[inline(always)]
fn is_tcp(call: &bpf_sock_addr) -> bool {
    call.type_ == SOCK_STREAM && call.protocol == IPPROTO_TCP
}

/// Where a connection to `address` goes, counted; `None`: where it would go anyway.
#[inline(always)]
fn direct(call: &bpf_sock_addr, address: u32) -> Option<u32> {
    // SAFETY: one word, which only the agent writes.
    let scope = unsafe { *SCOPES.get() } as u32;
    if scope == 0 {
        return None;
    }
    // SAFETY: a field of the context.
    let socket = unsafe { call.__bindgen_anon_1.sk }.cast::<c_void>();
    // SAFETY: entries are replaced, never changed.
    let Some(frontend) = (unsafe { FRONTENDS.get(frontend_key(scope, address)) }) else {
        // A socket may be connected anew, once its first attempt has failed.
        if let Some(held) = held(socket, 0) {
            give_back(held);
        }
        return None;
    };
    let chosen = pick(frontend)?;
    let leases = LEASES.get_ptr_mut(chosen.slot)?;
    let Some(held) = held(socket, BPF_SK_STORAGE_GET_F_CREATE.into()) else {
        count(|counters| counters.refused += 1);
        return None;
    };
    give_back(held);
    // SAFETY: of the map, and of the socket that this call is on.
    unsafe {
        held.generation = (*leases).generation;
        held.slot = chosen.slot + 1;
        held.address = address;
        add(&raw mut (*leases).open, 1);
    }
    count(|counters| counters.directed += 1);
    Some(chosen.address)
}

/// The replica with fewest connections; ties are broken at random, all alike.
#[inline(always)]
fn pick(frontend: &Frontend) -> Option<Backend> {
    let mut best = None;
    let mut fewest = u64::MAX;
    let mut ties: u32 = 1;
    // SAFETY: no arguments. One draw for all ties; each takes its own part of the numbers that follow from it.
    let mut random = unsafe { bpf_get_prandom_u32() } | 1;
    let mut index = 0;
    while index < MAX_BACKENDS {
        if index >= frontend.count as usize {
            break;
        }
        let backend = frontend.backends[index];
        index += 1;
        let Some(leases) = LEASES.get(backend.slot) else { continue };
        let open = leases.open;
        if open < fewest {
            (best, fewest, ties) = (Some(backend), open, 1);
        } else if open == fewest {
            ties += 1;
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            // One in `ties`: a division could panic as far as the compiler knows, and no program may.
            if (u64::from(random) * u64::from(ties)) >> 32 == 0 {
                best = Some(backend);
            }
        }
    }
    best
}

/// The virtual address that this socket was connected to.
#[inline(always)]
fn named(call: &bpf_sock_addr) -> Option<u32> {
    // SAFETY: a field of the context.
    let socket = unsafe { call.__bindgen_anon_1.sk }.cast::<c_void>();
    let held = held(socket, 0)?;
    if held.slot == 0 { None } else { Some(held.address) }
}

#[inline(always)]
fn give_back(held: &mut Held) {
    if held.slot == 0 {
        return;
    }
    let slot = held.slot - 1;
    held.slot = 0;
    let Some(leases) = LEASES.get_ptr_mut(slot) else { return };
    // SAFETY: of the map.
    unsafe {
        if (*leases).generation == held.generation {
            add(&raw mut (*leases).open, u64::MAX);
        }
    }
}

/// What is kept with a socket; `None` where it holds nothing.
#[inline(always)]
fn held<'a>(socket: *mut c_void, flags: u64) -> Option<&'a mut Held> {
    if socket.is_null() {
        return None;
    }
    let map = (&raw const HELD).cast_mut().cast::<c_void>();
    // SAFETY: a socket of the context, checked above; the helper answers null where it keeps nothing.
    unsafe { bpf_sk_storage_get(map, socket, core::ptr::null_mut(), flags).cast::<Held>().as_mut() }
}

#[inline(always)]
fn count(change: impl FnOnce(&mut ConnectCounters)) {
    if let Some(counters) = CONNECT_COUNTERS.get_ptr_mut(0) {
        // SAFETY: the value of this CPU.
        change(unsafe { &mut *counters });
    }
}

/// Adds for all CPUs to see.
///
/// # Safety
/// `to` is a value of a map.
#[inline(always)]
unsafe fn add(to: *mut u64, what: u64) {
    // SAFETY: one instruction on the caller's value.
    unsafe { asm!("lock *(u64 *)({to} + 0) += {what}", to = in(reg) to, what = in(reg) what) };
}
