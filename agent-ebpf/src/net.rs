//! Bytes and packets of each container, counted at its sockets.
//!
//! `cgroup_skb` runs where a packet meets a socket, in the socket's own cgroup: host-network containers and
//! containers that share a network namespace are told apart, which no interface counter can do. Not counted,
//! because no socket of the container takes part: what is dropped before it reaches a socket, what is only
//! forwarded, answers that the kernel gives by itself (ping, resets), raw Ethernet (`AF_PACKET`).
//! A socket belongs to the cgroup that created it, an accepted one to that of its listener.
//!
//! Two ways to the counters. `group_*` are attached to each container's cgroup and count into storage that
//! the kernel hangs onto the attachment: no look-up, nothing at all for packets of other cgroups, nested
//! cgroups included by inheritance. `root_*` are attached once, at the root, and find the container by the id
//! of the socket's cgroup or of one above it: for kernels or attachments that refuse the first way.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_skb_ancestor_cgroup_id, bpf_skb_load_bytes};
use aya_ebpf::macros::{cgroup_skb, map};
use aya_ebpf::maps::PerCpuHashMap;
use aya_ebpf::programs::SkBuffContext;
use swarmguard_common::kernel::{GroupCounters, MAX_GROUPS, MAX_LEVEL, NetCounters};

use crate::requests::follow;
use crate::storage::AttachmentStorage;

/// `BPF_F_NO_PREALLOC`: 4,096 entries for each possible CPU would be memory that most nodes never use.
const NO_PREALLOC: u32 = 1;
/// What a `cgroup_skb` program answers to let a packet pass.
const PASS: i32 = 1;
/// The loopback interface has this index in every network namespace.
const LOOPBACK: u32 = 1;
/// The number of TCP in a network header.
const TCP: u8 = 6;
/// Bytes that any header of IP or TCP has.
const LEAST_HEADER: usize = 20;

/// Containers counted through the root. The agent adds and deletes keys; programs never do, so that the map
/// holds containers only and cannot be filled by anything that runs on the node.
#[map]
static ROOT_COUNTERS: PerCpuHashMap<u64, GroupCounters> =
    PerCpuHashMap::with_max_entries(MAX_GROUPS, NO_PREALLOC);

/// Containers counted at their own cgroup.
#[map]
static GROUP_COUNTERS: AttachmentStorage<GroupCounters, BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE> =
    AttachmentStorage::new();

/// Counters of the cgroup that the running program is attached to.
#[inline(always)]
pub fn group_counters() -> &'static mut GroupCounters {
    // SAFETY: this CPU's value, which no other program uses meanwhile.
    unsafe { &mut *GROUP_COUNTERS.get() }
}

#[derive(Clone, Copy)]
pub enum Direction {
    Received,
    Sent,
}

/// Counts what sockets of the container receive.
#[cgroup_skb(ingress)]
pub fn group_ingress(ctx: SkBuffContext) -> i32 {
    count_here(ctx.skb.skb, Direction::Received);
    PASS
}

/// Counts what sockets of the container send.
#[cgroup_skb(egress)]
pub fn group_egress(ctx: SkBuffContext) -> i32 {
    count_here(ctx.skb.skb, Direction::Sent);
    PASS
}

#[inline(always)]
fn count_here(skb: *mut __sk_buff, direction: Direction) {
    // SAFETY: the context is valid for the whole program.
    if unsafe { (*skb).ifindex } != LOOPBACK {
        add(&mut group_counters().net, skb, direction);
    }
}

/// As `group_ingress`, and follows requests.
#[cgroup_skb(ingress)]
pub fn group_ingress_requests(ctx: SkBuffContext) -> i32 {
    count_and_follow(ctx.skb.skb, Direction::Received);
    PASS
}

/// As `group_egress`, and follows requests.
#[cgroup_skb(egress)]
pub fn group_egress_requests(ctx: SkBuffContext) -> i32 {
    count_and_follow(ctx.skb.skb, Direction::Sent);
    PASS
}

#[inline(always)]
fn count_and_follow(skb: *mut __sk_buff, direction: Direction) {
    // SAFETY: the context is valid for the whole program.
    if unsafe { (*skb).ifindex } != LOOPBACK {
        let counters = group_counters();
        add(&mut counters.net, skb, direction);
        follow(counters, skb, direction);
    }
}

/// Counts what sockets below the root receive.
#[cgroup_skb(ingress)]
pub fn root_ingress(ctx: SkBuffContext) -> i32 {
    count_from_root(ctx.skb.skb, Direction::Received);
    PASS
}

/// Counts what sockets below the root send.
#[cgroup_skb(egress)]
pub fn root_egress(ctx: SkBuffContext) -> i32 {
    count_from_root(ctx.skb.skb, Direction::Sent);
    PASS
}

#[inline(always)]
fn count_from_root(skb: *mut __sk_buff, direction: Direction) {
    // SAFETY: the context is valid for the whole program.
    if unsafe { (*skb).ifindex } == LOOPBACK {
        return;
    }
    let mut level = 1;
    while level <= MAX_LEVEL {
        // SAFETY: as above. Not bpf_get_current_cgroup_id: in a softirq that is whoever was interrupted.
        let id = unsafe { bpf_skb_ancestor_cgroup_id(skb, level as i32) };
        if id == 0 {
            // Above the socket's own cgroup, or no full socket at all.
            return;
        }
        if let Some(counters) = ROOT_COUNTERS.get_ptr_mut(&id) {
            // SAFETY: the map's value of this CPU; programs of this kind are not preempted by each other.
            add(unsafe { &mut (*counters).net }, skb, direction);
            // No return: a container within a container counts for both, as its CPU time does.
        }
        level += 1;
    }
}

#[inline(always)]
fn add(net: &mut NetCounters, skb: *mut __sk_buff, direction: Direction) {
    let (bytes, packets) = on_the_wire(skb);
    match direction {
        Direction::Received => {
            net.rx_bytes += bytes;
            net.rx_packets += packets;
        }
        Direction::Sent => {
            net.tx_bytes += bytes;
            net.tx_packets += packets;
        }
    }
}

/// Layer 3 bytes and packets of what the kernel carries as one buffer.
///
/// Offloads let one buffer stand for up to 64 KiB or more of segments, whose headers it holds only once. With
/// 1,448 bytes a segment that would be 3.5 % too little.
#[inline(always)]
fn on_the_wire(skb: *mut __sk_buff) -> (u64, u64) {
    // SAFETY: the context is valid for the whole program.
    let (len, size, segments) = unsafe { ((*skb).len, (*skb).gso_size, (*skb).gso_segs) };
    let len = u64::from(len);
    if size == 0 {
        return (len, 1);
    }
    let header = u64::from(header_len(skb));
    let size = u64::from(size);
    let segments = match segments {
        // A packet from a virtual machine's driver may leave the count to be computed.
        0 => (len.saturating_sub(header)).div_ceil(size),
        known => u64::from(known),
    };
    if segments < 2 {
        return (len, 1);
    }
    (len + (segments - 1) * header, segments)
}

/// Length of network and transport header, bytes; of the network header alone where the transport is none
/// that is ever split.
#[inline(always)]
fn header_len(skb: *mut __sk_buff) -> u32 {
    const UDP: u8 = 17;
    let (network, transport) = network_header(skb);
    match transport {
        TCP => network + tcp_header_len(skb, network),
        UDP => network + 8,
        _ => network,
    }
}

/// Payload of a TCP packet, bytes; 0 for all else.
#[inline(always)]
pub fn tcp_payload(skb: *mut __sk_buff) -> u32 {
    let (network, transport) = network_header(skb);
    if transport != TCP {
        return 0;
    }
    // SAFETY: the context is valid for the whole program.
    unsafe { (*skb).len }.saturating_sub(network + tcp_header_len(skb, network))
}

#[inline(always)]
fn tcp_header_len(skb: *mut __sk_buff, network: u32) -> u32 {
    u32::from(byte(skb, network, 12) >> 4) * 4
}

/// Length of the network header, bytes, and the transport's number.
#[inline(always)]
fn network_header(skb: *mut __sk_buff) -> (u32, u8) {
    let first = byte(skb, 0, 0);
    if first >> 4 == 6 { (40, byte(skb, 0, 6)) } else { (u32::from(first & 0x0f) * 4, byte(skb, 0, 9)) }
}

/// One byte of the header that begins at `start`, counted from the packet's network header; 0 where there is none.
///
/// From the buffer itself where the whole header is there, as it nearly always is: a call costs as much as all else here.
#[inline(always)]
fn byte(skb: *mut __sk_buff, start: u32, offset: u32) -> u8 {
    // SAFETY: the context is valid for the whole program.
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    let header = data + start as usize;
    if header + LEAST_HEADER <= end {
        // SAFETY: within the buffer, as was just checked: offsets are less than the least header.
        return unsafe { *((header + offset as usize) as *const u8) };
    }
    let mut value = 0u8;
    let to = (&raw mut value).cast::<c_void>();
    // SAFETY: the helper checks the offset, and writes one byte or zeroes it.
    unsafe { bpf_skb_load_bytes(skb.cast::<c_void>(), start + offset, to, 1) };
    value
}
